"""Ladders: one image ever more damaged, so that the model learns the order and no number.

Full-reference labels say little where the image was bad before: fine noise on a soft image, or an image ten times too
dark, hardly changes them, and a tuned restorer finds such gaps at once. Here every rung must be rated below the one
before it, by a gap that grows with the damage. A hinge loss leaves the rest of the ratings alone.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from train_iqa.nano.degradations import Array, colour_noise, gaussian_blur, jpeg, oversharpen, resize
from train_iqa.nano.dense import reorient
from train_iqa.nano.language import PAIR_SCALE
from train_iqa.nano.store import Store

RUNGS = 3
"""Images of a ladder, the one without further damage first."""
GOOD_LABEL = 3.3
"""Pseudo-MOS from which a crop may start a ladder: blur on a noisy crop would be an improvement."""
SOFT_SHARE = 0.5
GAP = 0.9
"""Ratings between no damage and the strongest."""
HEADROOM_SHARE = 0.3
"""Largest gap, as a share of the first image's rating above 1: the rating of a bad image cannot fall far."""


def _between(low: float, high: float, strength: float) -> float:
    return float(low * (high / low) ** strength)


def add_noise(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Return the image with Gaussian noise, of each channel or of brightness alone."""
    shape = image.shape if rng.random() < 0.5 else (*image.shape[:2], 1)
    return image + rng.normal(0, _between(0.008, 0.15, strength), shape).astype(np.float32)


def add_grain(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Return the image with noise that is correlated over a few pixels."""
    return colour_noise(image, strength, rng)[0]


def darken(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Return the image at 1/3 to 1/14 of its brightness."""
    return image / _between(3, 14, strength)


def flatten(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Return the image with 0.5 to 0.08 of its contrast."""
    mean = image.mean()
    return mean + (image - mean) * _between(0.5, 0.08, strength)


def add_lattice(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Return the image with lines every 2 (a checkerboard), 4 or 8 pixels, as a decoder or a JPEG leaves them."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    period = int(rng.choice([2, 4, 8]))
    pattern = (x + y) % 2 * 2.0 - 1 if period == 2 else ((x % period == 0) | (y % period == 0)) * 1.5
    return image + (_between(0.006, 0.06, strength) * pattern[..., None]).astype(np.float32)


def blur(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Return the image behind a Gaussian of 0.6 to 16 pixels."""
    return gaussian_blur(image, 0.08 + 1.42 * strength, rng)[0]


def pixelate(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Return the image as a copy of 1/2 to 1/8 of its size, enlarged to squares of one colour."""
    height, width, factor = *image.shape[:2], _between(2, 8, strength)
    small = resize(image, round(width / factor), round(height / factor), "box")
    return resize(small, width, height, "nearest")


def shrink(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Return the image as a copy of 1/1.5 to 1/8 of its size, enlarged again."""
    height, width, factor = *image.shape[:2], _between(1.5, 8, strength)
    return resize(resize(image, round(width / factor), round(height / factor), "bicubic"), width, height, "bicubic")


def compress(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Return the image as a JPEG of quality 75 to 5."""
    return jpeg(image, strength, rng)[0]


def sharpen(image: Array, strength: float, rng: np.random.Generator) -> Array:
    """Return the image sharpened too much."""
    return oversharpen(image, 0.25 + 0.75 * strength, rng)[0]


Damage = Callable[[Array, float, np.random.Generator], Array]
ON_ANY: tuple[Damage, ...] = (add_noise, add_noise, add_noise, add_grain, darken, flatten, add_lattice, pixelate)
"""Kinds that make a soft image worse as well; fine noise counts three times."""
ON_SHARP: tuple[Damage, ...] = (*ON_ANY, blur, blur, shrink, shrink, compress, sharpen)


def soften(image: Array, rng: np.random.Generator) -> Array:
    """Return the image as blur, a box filter or an enlargement leaves it."""
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        return gaussian_blur(image, rng.uniform(0.25, 0.85), rng)[0]
    factor = _between(2, 6, rng.random())
    small = resize(image, round(width / factor), round(height / factor), "box")
    return resize(small, width, height, str(rng.choice(["bilinear", "bicubic", "hamming"])))


def draw_ladder(image: Array, rng: np.random.Generator) -> tuple[list[Array], list[float]]:
    """Return `RUNGS` images HWC in [0, 1], best first, and the gap between each and the next."""
    is_soft = rng.random() < SOFT_SHARE
    first = soften(image, rng) if is_soft else image
    kinds = ON_ANY if is_soft else ON_SHARP
    damage = kinds[int(rng.integers(len(kinds)))]
    strengths = sorted(rng.random(RUNGS - 1))
    seed = int(rng.integers(2**31))  # one draw of the noise for all rungs: only its strength differs
    rungs = [first, *(damage(first, strength, np.random.default_rng(seed)) for strength in strengths)]
    gaps = [GAP * (0.1 + strengths[0]), *(GAP * float(step) for step in np.diff(strengths))]
    return [rung.clip(0, 1).astype(np.float32) for rung in rungs], gaps


def ladder_batch(store: Store, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` ladders of crops that a store holds: images (count * RUNGS, 3, H, W) and gaps (count, RUNGS - 1).

    Empty where the store holds no good crop.
    """
    good = np.flatnonzero(store.labels[: store.count] >= GOOD_LABEL)
    if not len(good):
        return store.images[:0].float(), torch.zeros(0, RUNGS - 1, device=store.device)
    ladders = []
    for index in rng.choice(good, count):
        crop = (store.images[int(index)].float() / 255).permute(1, 2, 0).cpu().numpy()
        ladders.append(draw_ladder(crop, rng))
    images = torch.from_numpy(np.stack([rung for rungs, _ in ladders for rung in rungs])).permute(0, 3, 1, 2)
    images = reorient(images, int(rng.integers(8)), (2, 3)).contiguous().to(store.device)
    return images, torch.tensor([gaps for _, gaps in ladders], device=store.device)


def ladder_loss(means: Tensor, gaps: Tensor) -> Tensor:
    """Return the mean shortfall of ratings (B, RUNGS) from the gaps (B, RUNGS - 1) that they must have.

    >>> float(ladder_loss(torch.tensor([[4.0, 3.0, 2.5]]), torch.tensor([[0.5, 0.2]])))
    0.0
    """
    headroom = HEADROOM_SHARE * (means.detach()[:, :1] - 1).clamp_min(0)
    shortfall = torch.minimum(gaps, headroom) - (means[:, :-1] - means[:, 1:])
    return (shortfall.clamp_min(0) / PAIR_SCALE).mean()
