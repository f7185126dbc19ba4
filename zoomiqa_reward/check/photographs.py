"""What a check starts from: clean photographs, the user's own or those inside scikit-image's wheel.

The middle square of each is used as it is. Nothing is resampled: a reduced photograph is sharper than real ones.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zoomiqa_reward.images.loading import ImageError, describe, load_image

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


def load_photographs(
    sources: Iterable[Any], *, crop_px: int = CROP_PX
) -> tuple[list[Photograph], list[tuple[str, str]]]:
    """Return the middle squares of the sources that can be used, and (name, reason) of those that cannot.

    `sources`: whatever `load_image` takes, one by one. An image smaller than `crop_px` is used as large as it is, if
    both sides have `MIN_SIDE_PX`. Raises ValueError for a smaller `crop_px`.
    """
    if crop_px < MIN_SIDE_PX:
        raise ValueError(f"crop_px={crop_px}: must be at least {MIN_SIDE_PX}, or the ladders do not fit")
    photographs: list[Photograph] = []
    refused: list[tuple[str, str]] = []
    for source in sources:
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
            photographs.append(Photograph(name=name, image=image))
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
    return f"{width} x {height} px, but the ladders need {MIN_SIDE_PX} px a side; give a larger photograph"


def _flat(image: Tensor) -> str | None:
    contrast = float(image.std())
    if contrast >= MIN_CONTRAST:
        return None
    return f"its middle is flat (contrast {contrast:.3f}), so damage does not show; give one with detail there"
