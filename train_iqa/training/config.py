"""A configuration from a YAML or JSON file, and the command line that SFT and RL share.

The fields are those of a frozen dataclass, nested ones as mappings. An unknown field is an error that lists the known
ones. The command line takes a configuration file or a recipe, and a few options that override it.
"""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from zoomiqa_reward.runs.program import Parser, run_program

T = TypeVar("T")


def read_config(kind: type[T], path: Path) -> T:
    """Return the configuration that the file holds. Raises ValueError naming the file and the field."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable YAML or JSON file: {error}") from error
    try:
        return _build(kind, data, "")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a field that stands twice, of which YAML takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping. Raises ConstructorError."""
        keys = [key.value for key, _ in node.value]
        if repeated := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{repeated[0]} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _fields(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        return _member(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where[:-1]}: must be a list, not {value!r}")
        return tuple(_build(inner[0], item, f"{where[:-1]}[{k}].") for k, item in enumerate(value))
    if kind is float:
        return _finite(value, where)
    wanted = str if kind is Path else kind
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ValueError(f"{where[:-1]}: must be of type {kind.__name__}, not {value!r}")
    return Path(value) if kind is Path else value


def _finite(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e-6 as a text
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where[:-1]}: must be a finite number, not {value!r}")
    return number


def _fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where[:-1] or 'the file'}: must be a mapping of fields, not {value!r}")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(value) - set(names)):
        raise ValueError(f"unknown field {where}{unknown[0]}; known: {', '.join(names)}")
    return kind(**{name: _build(hints[name], item, f"{where}{name}.") for name, item in value.items()})


def _member(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in members:
        return None
    nested = [member for member in members if dataclasses.is_dataclass(member)]
    plain = [member for member in members if member not in nested and member is not type(None)]
    chosen = nested if isinstance(value, dict) and nested else plain or nested
    return _build(chosen[0], value, where)


def run_trainer(
    argv: list[str] | None, *, name: str, description: str | None, kind: type, train: Callable[[Any], Path],
    read_data: Callable[[str], Any], data_help: str,
) -> int:  # fmt: skip
    """Read the options, train, print the folder of the result, and return the exit code.

    name: `sft` or `grpo`, the program and the recipe's part. kind: the configuration's class. read_data: makes one of
    its `data` of one `--data`. An error becomes one message on stderr and exit code 1.
    """
    from train_iqa.training.recipes import RECIPES

    parser = Parser(prog=f"python -m train_iqa.{name}", description=description)
    parser.add_argument("config", nargs="?", type=Path, help=f"YAML or JSON file with the fields of {kind.__name__}")
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="settings by name, instead of a file")
    parser.add_argument("--data", action="append", help=f"{data_help} (may be repeated)")
    parser.add_argument("--model", help="what training starts from: nano, a folder or a hub id")
    parser.add_argument("--adapter", help="LoRA of an earlier stage, merged first")
    parser.add_argument("--out", type=Path, help="run folder (continued if it exists)")
    parser.add_argument("--seed", type=int, help="of everything random")
    parser.add_argument("--steps", type=int, help="number of updates, instead of the recipe's")
    parser.add_argument("--device", choices=["cpu"], help="cpu: use no GPU; GPUs are chosen by the launcher")
    args = parser.parse_args(argv)
    if (args.config is None) == (args.recipe is None):
        parser.error("give either a configuration file or --recipe")

    def work() -> int:
        config = getattr(RECIPES[args.recipe](), name) if args.recipe else read_config(kind, args.config)
        given = {"name": args.model, "adapter": args.adapter, "device": args.device}
        config = replace(config, model=replace(config.model, **{k: v for k, v in given.items() if v is not None}))
        given = {"out": args.out, "seed": args.seed, "steps": args.steps}
        if args.data:
            given["data"] = tuple(read_data(text) for text in args.data)
        config = replace(config, **{k: v for k, v in given.items() if v is not None})
        sys.stdout.write(f"{train(config)}\n")
        return 0

    return run_program(f"train_iqa.{name}", work)
