"""The one pixel path: float32 CHW in [0, 1] -> the vision tower's patches, by transformers' own image processor.

The processor's uint8 route rounds twice and cuts autograd; this one hands it floats with `do_rescale=False`, so
gradients reach the pixels. Values are not clamped after resizing: bicubic overshoot is what the models see in
training too, and a clamp would kill the gradient at black and white.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from zoomiqa_reward.images.loading import ImageError
from zoomiqa_reward.model.repeatable import resized


def factor_of(image_processor: Any) -> int:
    """Return patch x merge: the pixels that one language token covers along a side (28 or 32)."""
    return int(image_processor.patch_size) * int(image_processor.merge_size)


def whole_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return (height, width) of a whole image after the processor's own resize.

    Raises ImageError for an aspect ratio above 200, which the processor refuses.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    try:
        high, wide = smart_resize(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    except ValueError as error:
        raise ImageError(
            f"image of {width} x {height} px cannot be resized for the model ({error}); crop its long side"
        ) from error
    return int(high), int(wide)


def to_patches(
    image_processor: Any, images: Sequence[Tensor], *, min_pixels: int, max_pixels: int, resize: bool
) -> tuple[Tensor, Tensor]:
    """Return (pixel_values [patches, patch_dim], image_grid_thw [images, 3]) for float32 CHW images in [0, 1].

    `resize=True` resizes to multiples of patch x merge within the pixel budget, as the processor does; with
    `resize=False` nothing is resampled and both sides must be such multiples already (ValueError). Keeps autograd
    and the device. Raises ImageError for an aspect ratio above 200.
    """
    factor = factor_of(image_processor)
    if resize:
        budget = {"factor": factor, "min_pixels": min_pixels, "max_pixels": max_pixels}
        images = [resized(image, *whole_size(*image.shape[1:], **budget)) for image in images]
    for image in images:
        _, height, width = image.shape
        if height % factor or width % factor:
            raise ValueError(f"a view of {width} x {height} px is read unresized: sides must be multiples of {factor}")
    out = image_processor(
        images=list(images),
        do_resize=False,
        do_rescale=False,
        do_convert_rgb=False,
        input_data_format="channels_first",  # guessing from the shape fails on images 1 or 3 pixels wide
        return_tensors="pt",
    )
    return out["pixel_values"], out["image_grid_thw"]
