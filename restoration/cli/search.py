"""`zoomiqa search`: beyond best-of-N at the same cost, by noise near the best noise or by fusing the best candidates.

What needs torch is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from restoration.cli import options
from restoration.cli.candidate_output import candidate_row, candidate_table
from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.cli.reward_option import RewardName, load_reward

if TYPE_CHECKING:
    from restoration.search import Fused

PER_ROUND, AMOUNT, TOP = 4, 0.5, 4
"""Defaults."""
Out = Annotated[Path, typer.Option(help="Folder for candidates, best.png and run.json; an existing run continues.")]
By = Annotated[
    Literal["noise", "fusion"],
    typer.Option(help="noise: move the best candidate's noise; fusion: blend the best candidates region by region."),
]
PerRound = Annotated[int, typer.Option(help="By noise: candidates per round, all near the same noise.", min=1)]
Amount = Annotated[float, typer.Option(help="By noise: share of new noise, above 0 up to 1.", min=0, max=1)]
Top = Annotated[int, typer.Option(help="By fusion: candidates that take part, the best ones.", min=1)]
Softness = Annotated[
    float | None,
    typer.Option(
        help="By fusion: difference of ratings that changes the ratio of weights by e; default: 0.01 of their range."
    ),
]
ViewPx = Annotated[int | None, typer.Option(help="By fusion: side of a view of the quality map, at least 16.", min=16)]
Lines = Annotated[bool, typer.Option("--json", help="Print one JSON line per candidate, and one for the fused image.")]


def search(
    image: options.ImageFile,
    by: By = "noise",
    out: Out = Path("search"),
    restorer: options.Restorers = ["nano"],  # noqa: B006  (typer reads it, nothing writes it)
    n: options.Count = 8,
    seed: options.Seed = 0,
    per_round: PerRound = PER_ROUND,
    amount: Amount = AMOUNT,
    top: Top = TOP,
    softness: Softness = None,
    view_px: ViewPx = None,
    scale: options.Scale = None,
    steps: options.Steps = None,
    prompt: options.Prompts = [],  # noqa: B006
    negative_prompt: options.NegativePrompt = "",
    tile_px: options.TilePx = None,
    colour_fix: options.ColourFix = "none",
    vary_sharpness: options.VarySharpness = None,
    plain: options.Plain = False,
    reward: RewardName = "zoomiqa",
    model: inputs.Model = "nano",
    mode: inputs.ModeOption = "direct",
    as_json: Lines = False,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
) -> int:
    """Restore an image N times, each time knowing more: search near the best noise, or fuse the best candidates."""
    from restoration.search import fuse, search_noise
    from zoomiqa_reward.images.loading import load_image
    from zoomiqa_reward.runs.outputs import require_folder

    idle = {
        "noise": {"--top": top != TOP, "--softness": softness is not None, "--view-px": view_px is not None},
        "fusion": {"--per-round": per_round != PER_ROUND, "--amount": amount != AMOUNT},
    }  # fmt: skip
    if given := [option for option, is_given in idle[by].items() if is_given]:
        raise typer.BadParameter(f"{given[0]} has no use in --by {by}; leave it out")
    if amount == 0:
        raise typer.BadParameter("--amount 0 would repeat the same noise; give more, up to 1")
    if softness is not None and softness <= 0:
        raise typer.BadParameter(f"--softness {softness}: must be above 0")
    require_folder(out)  # before the work, as the image
    pixels = load_image(image)
    judge = load_reward(reward, model=model, mode=mode, device=device, dtype=dtype, adapter=adapter, protocol=protocol)
    pool = options.load_restorers(
        restorer, plain, vary_sharpness, scale=scale, steps=steps, device=device, negative_prompt=negative_prompt,
        tile_px=tile_px, colour_fix=colour_fix,
    )  # fmt: skip
    options.tell_large(pixels, pool[0])
    asked: dict[str, Any] = {"n": n, "seed": seed, "prompts": prompt or None, "out": out}
    fused = None
    if by == "noise":
        result = search_noise(pool, image, judge, per_round=per_round, amount=amount, **asked)
        notes = [*result.notes]
    else:
        fused = fuse(pool, image, judge, top=top, softness=softness, view_px=view_px, **asked)
        assert fused.start is not None
        result, notes = fused.start, [*fused.start.notes, f"fused image: {fused.reason}"]
    if as_json:
        for candidate in result.order:
            output.json_line(candidate_row(candidate))
        if fused is not None:
            output.json_line(_fused_row(fused, out))
    else:
        candidate_table(result.order)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    best = result.best.score if fused is None else fused.best_score
    print(f"best: {out / 'best.png'} (score {best:.3f})", file=sys.stderr)
    return 0 if all(candidate.valid for candidate in result.candidates) else 2


def _fused_row(fused: "Fused", out: Path) -> dict[str, Any]:
    """Return the JSON line of the fused image; NaN becomes null."""
    from zoomiqa_reward.runs.json_lines import plain

    row = {key: fused.report[key] for key in ("is_chosen", "reason", "score", "best_candidate_score", "lr_consistency",
                                             "agrees", "sources", "shares", "cost")}  # fmt: skip
    return plain(row) | {"image": str(out / "fused.png")}
