"""The command line that SFT and RL share: a configuration file or a recipe, and a few options on top."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoomiqa_reward.runs.program import Parser, run_program


def run_trainer(
    argv: list[str] | None, *, name: str, description: str | None, kind: type, train: Callable[[Any], Path],
    read_data: Callable[[str], Any], data_help: str,
) -> int:  # fmt: skip
    """Read the options, train, print the folder of the result, and return the exit code.

    name: `sft` or `grpo`, the program and the recipe's part. kind: the configuration's class. read_data: makes one of
    its `data` of one `--data`. An error becomes one message on stderr and exit code 1.
    """
    from train_iqa.training.config_file import read_config
    from train_iqa.training.recipes import RECIPES

    parser = Parser(prog=f"python -m train_iqa.{name}", description=description)
    parser.add_argument("config", nargs="?", type=Path, help=f"YAML or JSON file with the fields of {kind.__name__}")
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="instead of a file")
    parser.add_argument("--data", action="append", help=f"{data_help} (may be repeated)")
    parser.add_argument("--model", help="what training starts from: nano, a folder or a hub id")
    parser.add_argument("--adapter", help="LoRA of an earlier stage, merged first")
    parser.add_argument("--out", type=Path, help="run folder (continued if it exists)")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", choices=["cpu"])
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
