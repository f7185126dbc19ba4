"""`zoomiqa best-of-n`: restore an image, or each image of a folder, N times, rate the results, keep the best.

What needs torch is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restoration.cli import options
from restoration.cli.candidate_output import candidate_row, candidate_table
from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.cli.reward_option import RewardName, load_reward
from zoomiqa_reward.images.listing import printable
from zoomiqa_reward.runs.progress import progress, say

if TYPE_CHECKING:
    from restoration.selection.folder import FolderRow

Source = Annotated[str, typer.Argument(metavar="IMAGE", help="The low-quality image, or a folder.", show_default=False)]
Out = Annotated[
    Path, typer.Option(help="Folder for candidates, best.png, sheet.png, run.json; an existing run continues.")
]
BatchSize = Annotated[int, typer.Option(help="Candidates per call, with --batched.", min=1)]
CascadeTop = Annotated[int, typer.Option("--cascade", help="Judge this many of the best by the full answer (reason).")]
MinGain = Annotated[
    float,
    typer.Option(
        help="With --plain: stop when one more candidate is expected to raise the best less; 0: never.", min=0
    ),
]
Consensus = Annotated[
    float, typer.Option(help="Lower a score by this per 8-bit level from the candidates' mean; 0: not at all.", min=0)
]


def best_of_n(
    image: Source,
    out: Out = Path("best_of_n"),
    restorer: options.Restorers = ["nano"],  # noqa: B006  (typer reads it, nothing writes it)
    n: options.Count = 8,
    recursive: inputs.Recursive = False,
    seed: options.Seed = 0,
    scale: options.Scale = None,
    steps: options.Steps = None,
    prompt: options.Prompts = [],  # noqa: B006
    negative_prompt: options.NegativePrompt = "",
    tile_px: options.TilePx = None,
    colour_fix: options.ColourFix = "none",
    vary_sharpness: options.VarySharpness = None,
    plain: options.Plain = False,
    strict: inputs.Strict = True,
    batch_size: BatchSize = 1,
    cascade: CascadeTop = 0,
    min_gain: MinGain = 0.0,
    consensus: Consensus = 0.0,
    reward: RewardName = "zoomiqa",
    model: inputs.Model = "nano",
    mode: inputs.ModeOption = "direct",
    as_json: inputs.Json = False,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
) -> int:
    """Draw N restorations of an image, or of each one of a folder; keep the best. The same command continues."""
    from restoration.selection.best_of_n import Cascade
    from restoration.selection.early_stop import EarlyStop
    from restoration.selection.folder import images_of
    from zoomiqa_reward import ZoomIQAReward
    from zoomiqa_reward.images.loading import load_image
    from zoomiqa_reward.rewards.base import find_part
    from zoomiqa_reward.rewards.consensus import ConsensusReward
    from zoomiqa_reward.runs.outputs import require_folder

    if min_gain > 0 and not plain:
        raise typer.BadParameter(
            "--min-gain needs --plain: a varied pool's members are drawn once or twice, too few to foresee the next"
        )
    if batch_size > 1 and strict:
        raise typer.BadParameter("--batch-size needs --batched: by default candidates are made one by one")
    is_folder = Path(image).is_dir()
    if recursive and not is_folder:
        raise typer.BadParameter(f"--recursive needs a folder, and {image} is none")
    require_folder(out)  # before the work, as the image
    if is_folder:
        images_of(Path(image), out, recursive=recursive)
        inputs.tell_left_out(Path(image), recursive=recursive)
    pixels = None if is_folder else load_image(image)
    given: dict[str, Any] = {"device": device, "dtype": dtype, "adapter": adapter, "protocol": protocol}
    judge = load_reward(reward, model=model, mode=mode, is_model_needed=cascade > 0, **given)
    if consensus > 0:
        judge = ConsensusReward(judge, consensus)
    explainer = None
    if cascade:  # the model that rates also explains; beside another reward, it is the one of --model
        of_model = find_part(judge, ZoomIQAReward)
        iqa = inputs.load_model(model, **given) if of_model is None else of_model.iqa
        explainer = Cascade(reward=ZoomIQAReward(iqa, mode="reason"), top=cascade)
    restorers = options.load_restorers(
        restorer, plain, vary_sharpness, scale=scale, steps=steps, device=device, negative_prompt=negative_prompt,
        tile_px=tile_px, colour_fix=colour_fix,
    )  # fmt: skip
    asked: dict[str, Any] = {
        "n": n, "seed": seed, "prompts": prompt or None, "strict": strict, "batch_size": batch_size,
        "early_stop": EarlyStop(min_gain=min_gain) if min_gain > 0 else None, "cascade": explainer,
    }  # fmt: skip
    if is_folder:
        return _folder(restorers, Path(image), judge, out, as_json, recursive=recursive, **asked)
    if pixels is not None:
        options.tell_large(pixels, restorers[0])
    return _image(restorers, image, judge, out, as_json, **asked)


def _image(restorers: list[Any], image: str, judge: Any, out: Path, as_json: bool, **asked: Any) -> int:
    from restoration.selection.best_of_n import best_of_n as draw

    result = draw(restorers, image, judge, out=out, **asked)
    if as_json:
        for candidate in result.order:
            output.json_line(candidate_row(candidate))
    else:
        candidate_table(result.order)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if not result.order[0].valid:
        return 1
    print(f"best: {out / 'best.png'} (seed {result.best.seed}), all: {out / 'sheet.png'}", file=sys.stderr)
    return 0 if all(candidate.valid for candidate in result.candidates) else 2


def _folder(restorers: list[Any], folder: Path, judge: Any, out: Path, as_json: bool, **asked: Any) -> int:
    from restoration.selection.folder import SUMMARIES, best_of_folder, images_of

    count = len(images_of(folder, out, recursive=asked["recursive"]))
    rows = []
    results = best_of_folder(restorers, folder, judge, out, **asked)
    for row in progress(results, count, "images", streaming=as_json):
        rows.append(row)
        if row.error is not None:
            say(f"not restored: {_named(row)}")
        else:
            say(f"{len(rows)} of {count}: {printable(row.image)}: candidate {row.candidate}, {row.restorer}, "
                f"{output.number(row.score, 3)}")  # fmt: skip
        if as_json:
            output.json_line(folder_line(row))
    if not as_json:
        folder_table(rows)
    done = [row for row in rows if row.error is None]
    print(f"best: {out / 'best'}, {len(done)} of {count} images; table: {out / SUMMARIES[1]}", file=sys.stderr)
    if not done:
        return 1
    return 0 if all(row.error is None and row.measured == row.candidates for row in rows) else 2


def _named(row: "FolderRow") -> str:
    """Return why nothing was chosen, with the image's name once."""
    error = row.error or ""
    return printable(error if row.image in error else f"{row.image}: {error}")


def folder_line(row: "FolderRow") -> dict[str, Any]:
    """Return the JSON line of one image of a folder; NaN becomes null."""
    from zoomiqa_reward.runs.json_lines import plain

    return plain(asdict(row))


def folder_table(rows: "list[FolderRow]") -> None:
    """Print one line per image for people."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("score", "±", "bicubic", "candidate 0", "chosen"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("image", overflow="fold")
    digits = output.digits_for(row.score for row in rows)
    for row in rows:
        name = Text(printable(row.image))
        if row.error is not None:
            name = Text(f"not restored: {_named(row)}", style="red")
        numbers = [output.number(value, digits) for value in (row.score, row.std, row.bicubic, row.first)]
        shown.add_row(*numbers, "-" if row.candidate is None else str(row.candidate), name)
    output.console().print(shown)
