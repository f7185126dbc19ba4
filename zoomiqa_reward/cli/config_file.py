"""`--config FILE`, the same for every command: defaults of its options from a YAML or TOML file.

The keys are the names of the options, without the dashes before them. What stands on the command line wins.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from zoomiqa_reward.errors import ZoomIQAError

SUFFIXES = (".toml", ".yaml", ".yml")


class ConfigFileError(ZoomIQAError, ValueError):
    """A file of `--config` that cannot be used; the message names the file and the key."""


def add_config(command: Any) -> None:
    """Give a click command the option `--config`; a group gives it to each of its commands."""
    for inner in getattr(command, "commands", {}).values():
        add_config(inner)
    if not hasattr(command, "commands") and not command.context_settings.get("ignore_unknown_options"):
        command.params.append(_option())


def read_config(file: Path) -> dict[str, Any]:
    """Return the keys and values of a file. Raises ConfigFileError, OSError."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigFileError(f"{file}: a configuration ends in {', '.join(SUFFIXES)}; rename it")
    text = file.read_bytes()
    try:
        content = tomllib.loads(text.decode("utf-8")) if suffix == ".toml" else _yaml(text)
    except ValueError as error:  # of UTF-8 and of TOML
        raise ConfigFileError(f"{file}: is no {suffix[1:].upper()} ({error}); correct it") from error
    if not isinstance(content, dict):
        raise ConfigFileError(f"{file}: holds {type(content).__name__}, not `option: value` lines; correct it")
    return content


def defaults_of(command: Any, content: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return {parameter: value} of the keys. Raises ConfigFileError for an unknown key or a value of another kind."""
    options = {flag.lstrip("-"): (option, True) for option in _options(command) for flag in option.opts}
    options |= {flag.lstrip("-"): (option, False) for option in _options(command) for flag in option.secondary_opts}
    defaults: dict[str, Any] = {}
    for key, value in content.items():
        if key not in options:
            names = ", ".join(sorted(options))
            raise ConfigFileError(f"{file}: {command.name} has no option {key!r}; it has {names}")
        option, is_first = options[key]
        if option.name in defaults:
            raise ConfigFileError(f"{file}: {key!r} is set twice, by another of its names; leave one out")
        defaults[option.name] = _value(option, value, is_first, f"{file}: {key}")
    return defaults


def _value(option: Any, value: Any, is_first: bool, what: str) -> Any:
    """Return the value as the command line would give it: a bool, a list of texts, or a text."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise ConfigFileError(f"{what} = {value!r}: must be true or false")
        return value is is_first
    values = value if option.multiple and isinstance(value, list) else [value]
    if any(isinstance(item, bool | list | dict) or item is None for item in values):
        kind = "a text, a number, or a list of them" if option.multiple else "a text or a number"
        raise ConfigFileError(f"{what} = {value!r}: must be {kind}")
    texts = [str(item) for item in values]  # so that 2.5 for a whole number is refused as on the command line
    return texts if option.multiple else texts[0]


def _options(command: Any) -> list[Any]:
    return [
        option
        for option in command.params
        if option.param_type_name == "option" and option.name not in ("config", "help")
    ]


def _yaml(text: bytes) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigFileError("YAML needs pyyaml: pip install pyyaml; or write TOML") from error
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _read_defaults(context: typer.Context, config: Path | None) -> None:
    if config is not None and not context.resilient_parsing:  # completion reads no file
        context.default_map = defaults_of(context.command, read_config(config), config)


def _option() -> Any:
    """Return a new click option `--config`, as typer makes it."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def carrier(
        config: Annotated[
            Path | None,
            typer.Option("--config", help="YAML or TOML file with defaults of these options.", is_eager=True,
                         expose_value=False, callback=_read_defaults),
        ] = None,
    ) -> None: ...  # fmt: skip

    return next(option for option in typer.main.get_command(app).params if option.name == "config")
