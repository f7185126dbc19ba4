"""Images to pick from, made of photographs that scikit-image's wheel holds: nothing is downloaded."""

from pathlib import Path

import torch
from torch import Tensor

from restoration.degradation.classical import degrade_for_demo
from zoomiqa_reward.images.filters import gaussian_blur, through_jpeg
from zoomiqa_reward.images.loading import load_image, save_png


def write_samples(folder: Path) -> tuple[list[str], list[str]]:
    """Write the samples into `folder` and return the files to rate or compare, and those to restore.

    The first is a photograph as it is; the others are copies of it with one damage each. Raises ImportError if
    scikit-image is missing.
    """
    import skimage.data

    source = Path(skimage.data.__file__).parent
    cat, coffee, face = (load_image(source / f"{name}.png") for name in ("chelsea", "coffee", "astronaut"))
    noise = 0.08 * torch.randn(cat.shape, generator=torch.Generator().manual_seed(0))
    versions = {
        "cat_as_it_is": cat,
        "cat_blurred": gaussian_blur(cat[None], 2.0)[0],
        "cat_noisy": (cat + noise).clamp(0, 1),
        "cat_jpeg_10": through_jpeg(cat, 10),
    }
    small = {"small_face": degrade_for_demo(_middle(face, 512)), "small_coffee": degrade_for_demo(_middle(coffee, 400))}
    return _written(folder, versions), _written(folder, small)


def _middle(image: Tensor, side_px: int) -> Tensor:
    top, left = ((side - side_px) // 2 for side in image.shape[1:])
    return image[:, top : top + side_px, left : left + side_px]


def _written(folder: Path, images: dict[str, Tensor]) -> list[str]:
    return [str(save_png(image, folder / f"{name}.png")) for name, image in images.items()]
