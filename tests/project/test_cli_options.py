"""The table of all options in docs/cli.md is the commands' own; ZOOMIQA_WRITE_TABLES=1 writes it anew."""

import os

import typer
from conftest import ROOT

from zoomiqa_reward.cli.config_file import add_config
from zoomiqa_reward.cli.main import commands

PAGE = ROOT / "docs" / "cli.md"
BEGIN, END = "<!-- options: written by tests/project/test_cli_options.py -->\n", "<!-- end of options -->\n"


def options_of(command, name):
    """Return the Markdown table of one command's options, as `--help` has them."""
    rows = [f"### Options of `{name}`\n", "| option | meaning |", "|---|---|"]
    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.name == "help":
            continue
        flags = " / ".join(f"`{flag}`" for flag in [*parameter.opts, *parameter.secondary_opts])
        rows.append(f"| {flags} | {' '.join((parameter.help or '').split()).replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def all_options():
    tables = []
    for name, point in commands().items():
        command = point.load()
        app = command
        if not isinstance(command, typer.Typer):
            app = typer.Typer(add_completion=False)
            app.command(name)(command)
        found = typer.main.get_command(app)
        add_config(found)
        inner = getattr(found, "commands", None)
        tables += (
            [options_of(one, f"{name} {key}") for key, one in inner.items()] if inner else [options_of(found, name)]
        )
    return "\n".join(tables)


def test_every_option_of_every_command_stands_in_the_guide():
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    held, _, after = rest.partition(END)
    if os.environ.get("ZOOMIQA_WRITE_TABLES"):
        PAGE.write_text(before + BEGIN + all_options() + END + after, encoding="utf-8")
        return
    assert held == all_options(), "options changed: run this test with ZOOMIQA_WRITE_TABLES=1"
    assert held.count("### Options of") >= len(commands())
    assert "`--border-px`" in held
    for line in held.splitlines():
        assert not line.endswith("|  |"), f"an option without help: {line}"
