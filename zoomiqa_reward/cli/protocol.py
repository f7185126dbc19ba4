"""`zoomiqa protocol import`: read the official evaluator's prompts into a local protocol file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from zoomiqa_reward.cli import inputs

app = typer.Typer(help="Read the prompts of the official 7B evaluator.", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="The official evaluator's protocol.py, or a folder that holds it.")]
Out = Annotated[Path, typer.Option(help="Protocol file to write, or the folder to write it into.")]


@app.callback()
def _group() -> None:
    """Read the prompts of the official 7B evaluator."""


@app.command("import")
def import_(source: Source, out: Out = Path("zoomiqa_protocol.json"), overwrite: inputs.Overwrite = False) -> int:
    """Read the official prompts into a protocol file. The source is neither imported nor installed."""
    from zoomiqa_reward.protocol import PROTOCOL_FILE, import_official
    from zoomiqa_reward.protocol.official import find_source
    from zoomiqa_reward.runs.outputs import claim_file

    protocol = import_official(source)
    file = out / PROTOCOL_FILE if out.is_dir() else out
    claim_file(file, inputs=[source, find_source(source)], overwrite=overwrite)
    target = protocol.save(file, overwrite=overwrite)
    print(target)
    print(f"protocol {protocol.name}: pass it with --protocol {target}, or put it beside the weights", file=sys.stderr)
    return 0
