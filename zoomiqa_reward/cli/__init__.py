"""Subcommands of `zoomiqa`, loaded by name from the entry-point group `zoomiqa.commands`.

A command is a function with typer annotations (or a `typer.Typer`) that returns its exit code: 0 done, 1 failed,
2 ran but some image could not be measured; None counts as 0.
"""
