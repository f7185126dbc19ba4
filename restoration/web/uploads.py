"""Images that strangers upload: what one may weigh, and how it is opened.

An upload is checked before it is decoded. Messages name it by its file name, never by its path on this machine.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from zoomiqa_reward.images.filters import resize_bicubic
from zoomiqa_reward.images.loading import ImageError, load_image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is read of an upload: formats that Pillow decodes itself. Others would start programs such as Ghostscript."""


@dataclass(frozen=True, kw_only=True)
class StudioLimits:
    """How large an upload and a request may be."""

    max_upload_mib: int = 64
    """Largest file, in MiB."""
    max_pixels: int = 9_000_000
    """Largest image that is rated, width x height: a little more than 4K."""
    max_files: int = 12
    """Images that are compared at once."""
    max_input_px: int = 160
    """Longest side of an image that is restored."""
    max_candidates: int = 16
    """Restorations of one image."""


def open_upload(file: str | os.PathLike[str] | None, *, max_pixels: int) -> Tensor:
    """Return an uploaded image as `load_image` does: float32 CHW RGB in [0, 1].

    The header is read first, so that an image of more than `max_pixels` (width x height) is never decoded.
    Raises ImageError: no file, not an image, too many pixels, damaged. The message holds the file's name alone.
    """
    if file is None:
        raise ImageError("no image yet: upload one, or pick an example")
    name = Path(file).name
    try:
        with Image.open(file, formats=FORMATS) as image:
            pixels, size = image.width * image.height, f"{image.width} x {image.height}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: {_rule(max_pixels)}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{name}: not an image that this page reads; upload a PNG, JPEG, WebP or TIFF file") from error
    if pixels > max_pixels:
        raise ImageError(f"{name}: {pixels / 1e6:.0f} million pixels ({size}); {_rule(max_pixels)}")
    try:
        return load_image(file)
    except ImageError as error:
        raise ImageError(str(error).replace(os.fspath(file), name)) from error


def _rule(max_pixels: int) -> str:
    return f"this page takes at most {max_pixels / 1e6:g} million: crop or shrink the image"


def fit_input(image: Tensor, max_px: int, *, shrink: bool) -> tuple[Tensor, str]:
    """Return a CHW image with sides of at most `max_px`, and a sentence on what was done, empty if nothing was.

    shrink: the whole image, reduced by a bicubic kernel; otherwise its middle, with its pixels as they are.
    """
    _, height, width = image.shape
    if max(height, width) <= max_px:
        return image, ""
    if shrink:
        factor = max_px / max(height, width)
        small = resize_bicubic(image, max(1, round(height * factor)), max(1, round(width * factor)))
        return small, f"Restored: the image of {width} x {height} px, shrunk to {small.shape[2]} x {small.shape[1]} px."
    top, left = max(0, height - max_px) // 2, max(0, width - max_px) // 2
    middle = image[:, top : top + max_px, left : left + max_px].clone()
    return middle, f"Restored: the middle {middle.shape[2]} x {middle.shape[1]} px of {width} x {height} px."
