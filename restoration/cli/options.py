"""Options that several commands of this package share, and the restorers that they stand for.

What needs torch is imported when a command runs, so that `--help` and wrong options answer at once.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoomiqa_reward.runs.progress import say

if TYPE_CHECKING:
    from torch import Tensor

    from restoration.restorer.restorer import Restorer

ImageFile = Annotated[str, typer.Argument(help="The low-quality image.", show_default=False)]
RestorerName = Annotated[str, typer.Option("--restorer", help="'nano' (embedded, x4), a hub id or a folder.")]
Restorers = Annotated[
    list[str], typer.Option(help="'nano' (embedded, x4), a hub id or a folder; repeat the option for a mixed pool.")
]
Count = Annotated[int, typer.Option("--n", help="Number of candidates.", min=1)]
Prompts = Annotated[list[str], typer.Option("--prompt", help="Prompt, if pipelines or rewards take text; repeatable.")]
NegativePrompt = Annotated[str, typer.Option(help="Negative prompt.")]
VarySharpness = Annotated[
    float | None,
    typer.Option(help="0..1: each seed sees a softer or sharper input.  [default: that of the pool; plain: 0]",
                 min=0, max=1, show_default=False),
]  # fmt: skip
Plain = Annotated[
    bool,
    typer.Option("--plain/--varied", help="Vary only the seed; default: also bicubic and varied sharpness."),
]
Seed = Annotated[int, typer.Option(help="Determines every restoration.", min=0)]
Scale = Annotated[int | None, typer.Option(help="Enlargement, for pipelines without a fixed one.", min=1)]
DatasetScale = Annotated[int, typer.Option(min=1, help="Enlargement.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.", min=1)]
TilePx = Annotated[int | None, typer.Option(help="Restore in tiles of this side, in low-quality pixels.")]
ColourFix = Annotated[str, typer.Option(help="none, adain or wavelet.")]
Degradation = Annotated[str, typer.Option(help="Degradation of good images: bicubic, mild, moderate or realesrgan.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first LIMIT images.")]
ResultJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON line on stdout.")]


LARGE_PIXELS = 4_000_000
"""Pixels of a restoration above which a candidate takes long on a CPU, without a line in between."""


def tell_large(image: "Tensor", restorer: "Restorer") -> None:
    """Say on stderr how large the restorations of a whole photograph become, before the first one is made.

    image: [3, height, width].
    """
    _, height, width = image.shape
    scale = restorer.scale or 1
    if height * width * scale**2 > LARGE_PIXELS:
        say(
            f"{width} x {height} px become {width * scale} x {height * scale} px: each restoration takes long and much "
            "memory; for a quick look crop or shrink the image; --tile-px 256 limits the memory"
        )


def load_restorers(
    names: list[str], plain: bool, vary_sharpness: float | None, *, scale: int | None, steps: int | None,
    device: str | None, negative_prompt: str, tile_px: int | None, colour_fix: str,
) -> "list[Restorer]":  # fmt: skip
    """Load the pool that the options ask for, and print the names on stderr."""
    from restoration.restorer.restorer import Restorer
    from restoration.selection.pool import merge_pools, varied_pool

    print(f"loading restorers: {', '.join(names)} ...", file=sys.stderr)
    given: dict[str, Any] = {
        "scale": scale, "steps": steps, "device": device, "negative_prompt": negative_prompt, "tile_px": tile_px,
        "colour_fix": colour_fix,
    }  # fmt: skip
    if plain:
        return [Restorer.from_pretrained(name, vary_sharpness=vary_sharpness or 0.0, **given) for name in names]
    return merge_pools([varied_pool(name, vary_sharpness=vary_sharpness, **given) for name in names])
