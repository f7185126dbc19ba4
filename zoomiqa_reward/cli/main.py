"""The program `zoomiqa`: finds its subcommands by entry point, so that the core never imports the other packages.

Machine output (JSON, one line per image) goes to stdout, messages and progress to stderr. Exit code 0 done, 1 failed,
2 ran but some image could not be measured, 130 interrupted.
"""

import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import typer

from zoomiqa_reward.cli.config_file import add_config
from zoomiqa_reward.runs.program import GOES_ON, INTERRUPTED, TRACEBACK, forget_runs, message_of, what_is_left

GROUP = "zoomiqa.commands"
DISTRIBUTION = "zoomiqa-reward"
_PRINTED = "what was measured until then, if anything, is printed; give the other files alone to go on"
_IN_TABLE = (
    "what was measured until then, if anything, is printed or lies in the table given as --out, from where the same "
    "command goes on"
)
KEPT = {
    "score": _IN_TABLE, "assess": _PRINTED, "rank": _PRINTED, "best-of-n": GOES_ON, "evaluate": GOES_ON,
    "refine": GOES_ON, "search": GOES_ON, "tune": GOES_ON,
    "check": "nothing is kept; --count 3 takes a small part of the time",
    "serve": "the server has stopped; the same command starts it again",
    "web": "the page is gone; the same command serves it again",
}  # fmt: skip
"""What an interrupt leaves of a command, and how to go on."""


def main(argv: Sequence[str] | None = None) -> int:  # noqa: C901  (one clause an ending)
    """Run one subcommand and return its exit code; never raises, and never exits the interpreter.

    >>> main(["no-such-command"])
    1
    """
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    for stream in (sys.stdout, sys.stderr):  # a letter that the encoding lacks is escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    forget_runs()
    try:
        if (code := _run(args)) == INTERRUPTED:  # typer turns Ctrl-C into this code
            _say_interrupted(args)
        return code
    except typer.TyperException as error:  # wrong options; click's own code for them, 2, means something else here
        if message := error.format_message():  # none where the help was shown instead
            _say(f"zoomiqa: {message}\nTry: zoomiqa {_command_of(args)}--help")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        _say_interrupted(args)
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # the reader of stdout has gone (`zoomiqa ... | head`): say nothing more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # a CLI's last line: one message, the traceback on request
        if os.environ.get(TRACEBACK):
            raise
        _say(f"zoomiqa: {message_of(error)}")
        return 1


def commands() -> dict[str, EntryPoint]:
    """Return every registered subcommand by name, none of them loaded."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def _run(args: list[str]) -> int:
    available = commands()
    if args[0] == "--version":
        print(f"{DISTRIBUTION} {version(DISTRIBUTION)}")
        return 0
    if args[0] in available:
        available = {args[0]: available[args[0]]}
    app = typer.Typer(
        name="zoomiqa", no_args_is_help=True, pretty_exceptions_enable=False,
        help="Zoom-IQA: rate, explain and rank images; restore them and choose the best. "
        "Results on stdout (--json: a JSON line per image), messages on stderr. Exit code: 0 done, 1 failed, 2 some "
        "image could not be measured.",
    )  # fmt: skip
    app.callback()(lambda: None)  # keeps a lone command a subcommand
    for name, point in available.items():
        _add(app, name, point, wanted=name == args[0])
    try:
        group = typer.main.get_command(app)
        add_config(group)
        code = group(args=args, prog_name="zoomiqa", standalone_mode=False)
    except ModuleNotFoundError as error:
        if args[0] not in available or not available[args[0]].extras:
            raise
        _say(_missing(available[args[0]], error))
        return 1
    return code or 0


def _add(app: typer.Typer, name: str, point: EntryPoint, *, wanted: bool) -> None:
    """Register one subcommand. If its extra is missing, the call and the overview name the extra."""
    try:
        command: Any = point.load()
    except ModuleNotFoundError as error:
        if wanted and not point.extras:
            raise
        message = _missing(point, error)

        def command() -> int:
            _say(message)
            return 1

        anything = {"allow_extra_args": True, "ignore_unknown_options": True}
        app.command(name, help=f"(not installed: {message})", context_settings=anything)(command)
        return
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)


def _missing(point: EntryPoint, error: ModuleNotFoundError) -> str:
    extras = ",".join(point.extras)
    install = f"pip install -e '.[{extras}]' in your clone" if extras else f"reinstall {DISTRIBUTION}"
    return f"zoomiqa {point.name} needs {error.name!r}, which is not installed: {install}"


def _command_of(args: list[str]) -> str:
    return f"{args[0]} " if args[0] in commands() else ""


def _say_interrupted(args: list[str]) -> None:
    _say(f"zoomiqa: interrupted; {what_is_left(KEPT.get(args[0], 'nothing was written'))}")


def _say(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
