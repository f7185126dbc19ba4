"""Restore a small noisy copy of a photograph eight times, rate the results, keep the best. A CPU is enough.

    python examples/best_of_n.py [photo.jpg]

The restorer here is a function with a seed, so that nothing has to be loaded: bicubic enlargement with sharpening and
denoising that the seed chooses. `Restorer.from_pretrained` takes a diffusers pipeline, its hub id or a network in its
place; the rest stays as it is.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from restoration import degrade_for_demo
from restoration.demo import bundled_photograph
from restoration.restorer import Restorer
from restoration.selection import best_of_n
from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image


def sharpened(image: Tensor, seed: int) -> Tensor:
    """Return the picture four times larger, denoised and sharpened by amounts that the seed fixes."""
    random = np.random.default_rng(seed)
    softness, amount = float(random.uniform(0, 0.6)), float(random.uniform(0, 4))
    calm = (1 - softness) * image + softness * blur(image)
    large = functional.interpolate(calm[None], scale_factor=4, mode="bicubic", align_corners=False)[0]
    return (large + amount * (large - blur(blur(large)))).clamp(0, 1)


def blur(image: Tensor) -> Tensor:
    """Return the picture after a 3 x 3 binomial blur."""
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row[None]).repeat(3, 1, 1, 1)
    return functional.conv2d(functional.pad(image[None], (1, 1, 1, 1), mode="reflect"), kernel, groups=3)[0]


def main(image: str | Path, model: str = "nano", out: Path | None = None) -> list[int]:
    """Print rank, score and seed of each candidate; return their numbers, best first."""
    image_lq = degrade_for_demo(load_image(image), scale=4)
    reward = ZoomIQAReward(ZoomIQA.from_pretrained(model))
    result = best_of_n(Restorer.from_pretrained(sharpened), image_lq, reward, n=8, seed=0, out=out)
    for candidate in result.order:
        print(f"{candidate.rank or '-'}. candidate {candidate.index}  {candidate.score:.2f}  seed {candidate.seed}")
    return [candidate.index for candidate in result.order]


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()], out=Path("best_of_n"))
    print("look at best_of_n/sheet.png")
