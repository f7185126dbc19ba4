"""The photographs of the check, and their ladders of damage.

A check starts from clean photographs: those of the user, or those inside scikit-image's wheel. The middle square of
each is used without resampling, because a reduced photograph is sharper than real ones.

A ladder is one photograph that is damaged step by step, each step worse than the last, so its order is known. Five
ladders are damage that restorers leave or make. The sixth, `detail`, is like a pool of best-of-N: candidates for
**one** low-quality image, from the photograph itself down to its plain bicubic enlargement. They share
what the low-quality image shows, and differ in how much of the lost detail they hold.

Four more ladders (`WORSENINGS`) start from an image that is bad already. There a judge gains most from damage that it
takes for detail: grain on a soft image, edges around blocks and grain. Soft images are not sharpened, because a little
sharpening improves them.
"""

import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from zoomiqa_reward.images.filters import gaussian_blur, resize_bicubic, through_jpeg
from zoomiqa_reward.images.loading import ImageError, ImageSource, describe, load_image, to_pil

CROP_PX = 288
"""Side of the square: nine whole blocks of 96 px for NIQE, and quick on a CPU."""
MIN_SIDE_PX = 64
"""Below this the widest blur and the smallest copy of the ladders no longer fit."""
MIN_CONTRAST = 0.01
"""Standard deviation of the pixels: damage does not show on a flat image, so it has no order."""
BUNDLED = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
"""Public domain (NASA, SpaceX) or CC0 (chelsea, coffee), part of scikit-image's wheel: nothing is downloaded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Photograph:
    """A clean image, cropped."""

    name: str
    image: Tensor
    """[3, height, width] float32 in [0, 1]."""
    crop_px: int = 0
    """Side of the square that was asked for; the image is smaller where the photograph is."""


def load_photographs(
    sources: Iterable[ImageSource], *, crop_px: int = CROP_PX
) -> tuple[list[Photograph], list[tuple[str, str]]]:
    """Return the middle squares of the sources that can be used, and (name, reason) of those that cannot.

    `sources`: whatever `load_image` takes, one by one; one path is a list of one. An image smaller than `crop_px` is
    used as large as it is, if both sides have `MIN_SIDE_PX`. Raises ValueError for a smaller `crop_px`.
    """
    if crop_px < MIN_SIDE_PX:
        raise ValueError(f"crop_px={crop_px}: must be at least {MIN_SIDE_PX}, or the ladders do not fit")
    photographs: list[Photograph] = []
    refused: list[tuple[str, str]] = []
    for source in [sources] if isinstance(sources, str | os.PathLike) else sources:
        name = describe(source)
        try:
            whole = load_image(source).detach().cpu()
        except ImageError as error:
            refused.append((name, str(error)))
            continue
        image = _middle(whole, crop_px)
        if reason := _too_small(whole) or _flat(image):
            refused.append((name, f"{name}: {reason}"))
        else:
            photographs.append(Photograph(name=name, image=image, crop_px=crop_px))
    return photographs, refused


def bundled_photographs() -> Sequence[Path]:
    """Return the photographs inside scikit-image's wheel. Raises ImportError that names the extra and the way out."""
    way_out = "name photographs of your own, or pip install 'zoomiqa-reward[demo]'"
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError(f"no photographs given, and scikit-image, which has some, is missing: {way_out}") from error
    folder = Path(skimage.data.__file__).parent
    files = [folder / name for name in BUNDLED if (folder / name).exists()]
    if not files:
        raise ImportError(f"no photographs given, and this scikit-image brings none of {', '.join(BUNDLED)}: {way_out}")
    return files


def _middle(image: Tensor, side: int) -> Tensor:
    height, width = image.shape[1:]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return image[:, top : top + side, left : left + side].contiguous()


def _too_small(image: Tensor) -> str | None:
    height, width = image.shape[1:]
    if min(height, width) >= MIN_SIDE_PX:
        return None
    return f"{width} x {height} px, but the ladders need {MIN_SIDE_PX} px per side; give a larger photograph"


def _flat(image: Tensor) -> str | None:
    contrast = float(image.std())
    if contrast >= MIN_CONTRAST:
        return None
    return f"its middle is flat (contrast {contrast:.3f}), so damage does not show; give one with detail there"


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

    start: str = "untouched"
    """How the image that it is done to is called."""

    def labels(self) -> tuple[str, ...]:
        """Return how the steps are called, the image that it is done to first."""
        return (self.start, *(self.label.format(level) for level in self.levels))

    def ladder(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the image, then what each level makes of it."""
        return (image, *(self.apply(image, level).clamp(0, 1) for level in self.levels))


@dataclass(frozen=True, kw_only=True)
class Worsening:
    """Damage that is done to an image which is bad already."""

    damage: Damage
    spoil: Callable[[Tensor], Tensor]
    """Makes the bad image that the ladder starts from."""


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
    worsened: dict[str, tuple[Tensor, ...]]
    """By kind: a bad copy of the photograph, then ever worse ones."""

    @property
    def enlarged(self) -> Tensor:
        """The plain enlargement of the low-quality image: the worst honest candidate."""
        return self.ladders[DETAIL][-1]


def make_pool(photograph: Photograph) -> Pool:
    """Return the photograph with its ladders. The same photograph gives the same pixels, every time.

    Sides that are no multiples of `SCALE` are cut at the far edge: the source `lq` is a whole number of times smaller.
    """
    height, width = (side // SCALE * SCALE for side in photograph.image.shape[1:])
    hr = photograph.image[:, :height, :width].contiguous()
    return Pool(
        name=photograph.name, hr=hr, lq=reduce(hr, SCALE),
        ladders={damage.kind: damage.ladder(hr) for damage in DAMAGES},
        worsened={way.damage.kind: way.damage.ladder(way.spoil(hr)) for way in WORSENINGS},
    )  # fmt: skip


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

_NOISE, _SHARPENING = (0.02, 0.04, 0.08, 0.16), (1.5, 3, 6, 12)
_STD, _UNSHARP = "noise std {:g}", "unsharp {:g}"
WORSENINGS = (
    Worsening(damage=Damage(kind="noise on blur", label=_STD, levels=_NOISE, apply=add_noise, start="sigma 2.8 px"),
              spoil=lambda image: blur(image, 2.8)),
    Worsening(damage=Damage(kind="noise on soft", label=_STD, levels=_NOISE, apply=add_noise, start="100% lost"),
              spoil=lambda image: drop_detail(image, 1.0)),
    Worsening(damage=Damage(kind="edges on noise", label=_UNSHARP, levels=_SHARPENING, apply=oversharpen,
                            start="std 0.04"), spoil=lambda image: add_noise(image, 0.04)),
    Worsening(damage=Damage(kind="edges on jpeg", label=_UNSHARP, levels=_SHARPENING, apply=oversharpen,
                            start="quality 20"), spoil=lambda image: through_jpeg(image, 20)),
)  # fmt: skip
