"""`zoomiqa map`: where an image is good and where it is bad.

What needs torch is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoomiqa_reward.cli import inputs, output

if TYPE_CHECKING:
    from zoomiqa_reward.model.quality_map import QualityMap

ImageFile = Annotated[str, typer.Argument(help="Image to map.", show_default=False)]
FigureFile = Annotated[Path | None, typer.Option("--out", help="File for the figure of the map.")]
ViewPx = Annotated[
    int | None,
    typer.Option(help="Side of a view, the map's resolution; default: six image tokens, more in large images.", min=16),
]
OneLine = Annotated[bool, typer.Option("--json", help="Print one JSON line with every view on stdout.")]


def quality_map(
    image: ImageFile,
    out: FigureFile = None,
    view_px: ViewPx = None,
    as_json: OneLine = False,
    overwrite: inputs.Overwrite = False,
    model: inputs.Model = "nano",
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    strict: inputs.Strict = False,
    question: inputs.Question = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
) -> int:
    """Map where an image is good and where it is bad, from the ratings of overlapping views."""
    from zoomiqa_reward.images.loading import conversions, load_image, to_pil
    from zoomiqa_reward.images.map_figure import map_figure
    from zoomiqa_reward.runs.outputs import claim_file

    if out is not None:  # before the work
        claim_file(out, inputs=[image], overwrite=overwrite, suffixes=True)
    pixels = load_image(image)
    iqa = inputs.load_model(model, device=device, dtype=dtype, adapter=adapter, protocol=protocol)
    quality = iqa.quality_map(pixels, view_px=view_px, strict=strict, question=question)
    if as_json:
        output.json_line(map_row(image, quality, iqa.name, conversions(image)))
    else:
        _summary(image, quality, iqa.name)
    if out is not None:
        map_figure(to_pil(pixels), quality, out, name=Path(image).name, overwrite=overwrite)
        print(f"map: {out}", file=sys.stderr)
    return 0 if quality.valid else 2


def map_row(image: str, quality: "QualityMap", model: str, notes: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON line of a map: NaN as null, boxes as (left, top, right, bottom) in pixels."""
    from zoomiqa_reward.runs.json_lines import plain

    ratings = quality.ratings
    rows = zip(quality.boxes, ratings.mean.tolist(), ratings.std.tolist(), ratings.valid.tolist(), ratings.errors,
               strict=True)  # fmt: skip
    views = [dict(zip(("box", "rating", "std", "valid", "error"), row, strict=True)) for row in rows]
    low, high = quality.range
    lowest = quality.lowest()
    row: dict[str, Any] = plain({
        "image": image, "valid": quality.valid, "mean": quality.mean, "lowest": low, "highest": high,
        "lowest_box": None if lowest is None else quality.boxes[lowest], "resolution_px": quality.resolution_px,
        "step_px": quality.step_px, "size": tuple(reversed(quality.values.shape)), "views": views, "model": model,
        "notes": notes,
    })  # fmt: skip
    return row


def _summary(image: str, quality: "QualityMap", model: str) -> None:
    from zoomiqa_reward.runs.progress import say

    failed = [index for index, valid in enumerate(quality.ratings.valid.tolist()) if not valid]
    if failed:
        reason = inputs.named(image, quality.ratings.reason(failed[0], model))
        say(f"not rated: {len(failed)} of {len(quality.boxes)} views; the first: {reason}")
    if not quality.valid:
        return
    out = output.console()
    low, high = quality.range
    out.print(
        f"map {output.number(low, 2)} .. {output.number(high, 2)}, mean {output.number(quality.mean, 2)}; "
        f"{len(quality.boxes)} views, {len(failed)} without a rating; resolution {quality.resolution_px} px"
    )
    order = sorted(
        (index for index, valid in enumerate(quality.ratings.valid.tolist()) if valid),
        key=lambda index: float(quality.ratings.mean[index]),
    )
    for index in order[:3]:
        left, top, right, bottom = quality.boxes[index]
        rating = f"{float(quality.ratings.mean[index]):.2f} ± {output.number(float(quality.ratings.std[index]), 2)}"
        out.print(f"  {rating}  x {left}..{right}, y {top}..{bottom}")
