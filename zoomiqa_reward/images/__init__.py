"""Load images from any source, write them, and draw the figures of the project."""

from typing import TYPE_CHECKING

from zoomiqa_reward.lazy import lazy_exports

if TYPE_CHECKING:
    from zoomiqa_reward.images.loading import (
        ImageError,
        conversions,
        describe,
        load_image,
        load_images,
        save_png,
        to_pil,
    )

_HOMES = {
    "ImageError": "loading",
    "conversions": "loading",
    "describe": "loading",
    "load_image": "loading",
    "load_images": "loading",
    "save_png": "loading",
    "to_pil": "loading",
}

__all__ = [
    "ImageError",
    "conversions",
    "describe",
    "load_image",
    "load_images",
    "save_png",
    "to_pil",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
