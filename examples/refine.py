"""Denoise a photograph that is noisy in one corner, then let the model say where to do it again. A CPU is enough.

    python examples/refine.py [photo.jpg]

The restorer here is a function with a seed, so that nothing has to be loaded: the seed decides how much it smooths, for
the whole image at once. A corner that needs another strength than the rest is what a second look is for.
`Restorer.from_pretrained` takes a diffusers pipeline, its hub id or a network in its place.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from restoration.demo import bundled_photograph
from restoration.refinement import refine
from restoration.restorer.restorer import Restorer
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import load_image

SIDE_PX = 256
SEED = 5
"""With this one the region is kept; with another, everything may be refused."""


def calmed(image: Tensor, seed: int) -> Tensor:
    """Return the image mixed with its median over 5 x 5 pixels, by an amount that the seed fixes."""
    strength = float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))
    around = functional.unfold(functional.pad(image[None], (2, 2, 2, 2), mode="reflect"), 5)
    median = around.view(3, 25, -1).median(dim=1).values.view(image.shape)
    return image + strength * (median - image)


def damaged(image: Tensor) -> Tensor:
    """Return the image with noise in its lower right quarter."""
    noise = 0.15 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noise[:, : image.shape[1] // 2] = 0
    noise[:, :, : image.shape[2] // 2] = 0
    return (image + noise).clamp(0, 1)


def main(image: str | Path, model: str = "nano", out: Path | None = None) -> list[int]:
    """Print what came of each round; return the rounds' numbers."""
    image_lq = damaged(load_image(image)[:, :SIDE_PX, :SIDE_PX])
    result = refine(
        Restorer.from_pretrained(calmed), image_lq, ZoomIQA.from_pretrained(model), rounds=2,
        seed=SEED, out=out,
        lr_consistency_slack_db=6.0,  # a part of the noise counts as content, and taking it away costs
    )  # fmt: skip
    for step in result.history:
        print(f"round {step.number}: {'kept' if step.accepted else 'not kept'}, region {step.region}: {step.reason}")
    return [step.number for step in result.history]


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()], out=Path("refined"))
    print("look at refined/strip.png")
