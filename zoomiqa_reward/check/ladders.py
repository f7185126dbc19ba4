"""Images whose order is known: one photograph, damaged step by step in six ways, each step worse than the last.

Five ladders are damage that restorers leave or make. The sixth, `detail`, is a pool as best-of-N sees one: candidates
for **one** low-quality image, from the photograph itself down to its plain bicubic enlargement. They share what the
low-quality image shows and differ in how much of the lost detail they hold, so their order is not in dispute.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from zoomiqa_reward.check.photographs import Photograph
from zoomiqa_reward.images.filters import gaussian_blur, resize_bicubic, through_jpeg
from zoomiqa_reward.images.loading import load_image, to_pil

SCALE = 4
"""How many times smaller the low-quality image is."""
SHARPENING_SIGMA_PX = 1.0
NOISE_SEED = 0
DETAIL = "detail"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One way to make an image worse."""

    kind: str
    label: str
    """How a level is called, with its unit."""
    levels: tuple[float, ...]
    """Mildest first. Even the first step is meant to be seen: an order that people dispute tests nothing."""
    apply: Callable[[Tensor, float], Tensor]
    """[3, height, width] in [0, 1] and a level; the same size and range come back."""

    def labels(self) -> tuple[str, ...]:
        """Return how the steps are called, the untouched image first."""
        return ("untouched", *(self.label.format(level) for level in self.levels))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """One photograph with all its ladders."""

    name: str
    hr: Tensor
    """[3, height, width], the photograph."""
    lq: Tensor
    """[3, height / SCALE, width / SCALE], what rewards that need a source are given."""
    ladders: dict[str, tuple[Tensor, ...]]
    """By kind: the photograph, then ever worse copies of its size."""


def make_pool(photograph: Photograph) -> Pool:
    """Return the photograph with its ladders. The same photograph gives the same pixels, every time."""
    hr = photograph.image
    ladders = {
        damage.kind: (hr, *(damage.apply(hr, level).clamp(0, 1) for level in damage.levels)) for damage in DAMAGES
    }
    return Pool(name=photograph.name, hr=hr, lq=reduce(hr, SCALE), ladders=ladders)


def blur(image: Tensor, sigma_px: float) -> Tensor:
    """Return the image after a Gaussian blur, mirrored at the edges."""
    return gaussian_blur(image[None], sigma_px, radius_px=math.ceil(3 * sigma_px), edges="reflect")[0]


def add_noise(image: Tensor, std: float) -> Tensor:
    """Return the image with Gaussian noise; the pattern is always the same, so levels differ in strength alone."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    return (image + std * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def through_png(image: Tensor) -> Tensor:
    """Return the image as it comes back from a PNG file: rounded to 8 bits, otherwise as it was."""
    packed = io.BytesIO()
    to_pil(image).save(packed, "PNG")
    return load_image(Image.open(packed))


def reduce(image: Tensor, factor: float) -> Tensor:
    """Return the image `factor` times smaller (antialiased bicubic)."""
    height, width = (max(1, round(side / factor)) for side in image.shape[1:])
    return resize_bicubic(image, height, width)


def reduce_and_enlarge(image: Tensor, factor: float) -> Tensor:
    """Return what is left of the image at its own size after it was `factor` times smaller."""
    return resize_bicubic(reduce(image, factor), *image.shape[1:])


def oversharpen(image: Tensor, amount: float) -> Tensor:
    """Return the image plus `amount` times what a blur of `SHARPENING_SIGMA_PX` takes away, clipped."""
    return (image + amount * (image - blur(image, SHARPENING_SIGMA_PX))).clamp(0, 1)


def drop_detail(image: Tensor, share: float) -> Tensor:
    """Return the image without `share` of what its reduction by `SCALE` loses; at 1, the bicubic enlargement."""
    return (1 - share) * image + share * reduce_and_enlarge(image, SCALE)


DAMAGES = (
    Damage(kind="blur", label="sigma {:g} px", levels=(0.7, 1.4, 2.8, 5.6), apply=blur),
    Damage(kind="noise", label="std {:g}", levels=(0.02, 0.04, 0.08, 0.16), apply=add_noise),
    Damage(kind="jpeg", label="quality {:g}", levels=(70, 40, 20, 8), apply=through_jpeg),
    Damage(kind="downsample", label="{:g} times smaller", levels=(1.5, 2, 3, 6), apply=reduce_and_enlarge),
    Damage(kind="oversharpen", label="unsharp {:g}", levels=(1.5, 3, 6, 12), apply=oversharpen),
    Damage(kind=DETAIL, label="{:.0%} lost", levels=(0.25, 0.5, 0.75, 1.0), apply=drop_detail),
)
