"""Where round 2 looks: from the box that a model names to pixels, and the cut itself.

The rules are the official evaluator's, inferred from its recorded decisions (`benchmarks/conformance.py` checks all
of them): corners sorted, truncated to whole pixels and clamped; area scaled about the box's centre into the policy's
range and clipped to the image; a side that is then shorter than `min_side_px` is widened: half of what is missing,
rounded down, goes before its start, the rest after its end, and at the far border all of it before the start; truncated
to whole pixels at last. A box that means nothing gives the central half of the image, and that one crop is not
enlarged.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoomiqa_reward.protocol.spec import CropPolicy

Box = tuple[float, float, float, float]
PixelBox = tuple[int, int, int, int]
ImageOrTensor = TypeVar("ImageOrTensor", Image.Image, Tensor)

OFFICIAL_CROP = CropPolicy()


def usable_box(bbox: Any) -> Box | None:
    """Return four finite numbers, not all zero, as floats; None for anything else (a text, a mapping, 3 numbers).

    >>> usable_box([0.1, 0.2, 0.3, "0.4"]), usable_box("none"), usable_box([0, 0, 0, 0])
    ((0.1, 0.2, 0.3, 0.4), None, None)
    """
    if isinstance(bbox, str | bytes | Mapping) or not isinstance(bbox, Iterable):
        return None
    try:
        sides = [float(side) for side in bbox]
    except (TypeError, ValueError, OverflowError):
        return None
    if len(sides) != 4 or not all(map(math.isfinite, sides)) or not any(sides):
        return None
    return (sides[0], sides[1], sides[2], sides[3])


def box_shares(bbox: object, width: int, height: int, margin: float = 0.0) -> Box | None:
    """Return a named box as fractions of the sides, corners in order, within the image; None for an unusable one.

    As in `zoom_box`: four numbers within 0..1 are fractions already, otherwise they are pixels. margin: the fraction by
    which every edge is moved outwards (`Protocol.box_margin`).

    >>> box_shares([0.5, 0.75, 0.25, 0.25], 100, 200), box_shares([50, 20, 150, 100], 100, 200)
    ((0.25, 0.25, 0.5, 0.75), (0.5, 0.1, 1.0, 0.5))
    >>> box_shares([0.5, 0.75, 0.25, 0.0625], 100, 200, margin=0.125)
    (0.125, 0.0, 0.625, 0.875)
    """
    box = usable_box(bbox)
    if box is None:
        return None
    if not all(0 <= side <= 1 for side in box):
        box = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    x1, y1, x2, y2 = (min(max(side, 0.0), 1.0) for side in box)
    left, top, right, bottom = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    return max(left - margin, 0.0), max(top - margin, 0.0), min(right + margin, 1.0), min(bottom + margin, 1.0)


def zoom_box(bbox: Any, width: int, height: int, policy: CropPolicy = OFFICIAL_CROP) -> tuple[PixelBox, bool]:
    """Return the region to cut, (left, top, right, bottom) in pixels, and whether it is the central fallback.

    `bbox` is what the answer holds, in any order of corners. If all four numbers lie in 0..1 they are shares of the
    image's sides, otherwise pixels. The region always lies inside the image and is never empty; its area is within
    the policy's range except where the image's border or `min_side_px` forbids. An unusable box (see `usable_box`)
    gives the central half of each side and True.
    Raises ValueError if the image has no pixels.

    >>> zoom_box([0.25, 0.25, 0.75, 0.75], 100, 200)
    ((25, 50, 75, 150), False)
    >>> zoom_box("the left part", 100, 200)
    ((25, 50, 75, 150), True)
    """
    if width < 1 or height < 1:
        raise ValueError(f"image of {width}x{height} pixels: both sides must be at least 1 to be cropped")
    box = usable_box(bbox)
    if box is None:
        return _central(width, height), True
    if all(0 <= side <= 1 for side in box):
        box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    left, right = _whole_pixels(box[0], box[2], width)
    top, bottom = _whole_pixels(box[1], box[3], height)
    scale = _area_scale((right - left) * (bottom - top), width * height, policy)
    left, right = _resize_span(left, right, scale, width, policy.min_side_px)
    top, bottom = _resize_span(top, bottom, scale, height, policy.min_side_px)
    return (left, top, right, bottom), False


def zoomed_size(box: PixelBox, width: int, height: int, central: bool = False) -> tuple[int, int]:
    """Return (width, height) of the crop `box` after enlarging: it keeps its shape and fits the image's size.

    The central fallback keeps its own size.
    """
    crop_width, crop_height = box[2] - box[0], box[3] - box[1]
    if central:
        return crop_width, crop_height
    aspect = crop_width / crop_height
    if aspect > width / height:
        return width, max(1, int(width / aspect))
    return max(1, int(height * aspect)), height


def zoom(image: ImageOrTensor, bbox: Any, policy: CropPolicy = OFFICIAL_CROP) -> tuple[ImageOrTensor, PixelBox]:
    """Return the enlarged crop and the region it shows.

    A PIL image gives a PIL image, cut and enlarged (Lanczos) in its own 8 bits, as the official evaluator does it;
    palette and 1-bit images become RGB first, since Pillow cannot interpolate those. A float CHW tensor in [0, 1]
    gives a float32 CHW tensor in [0, 1] on the same device: the same Lanczos filter on each channel in float (PIL
    mode F), width first, clamped after each direction because Lanczos overshoots; it differs from the 8-bit way by
    rounding only. The tensor way is cut off from autograd: round 2 is text, which has no gradient.
    Raises TypeError for any other image and ValueError for a tensor that is not float CHW.
    """
    if isinstance(image, Image.Image):
        width, height = image.size
    elif isinstance(image, Tensor):
        if image.ndim != 3 or not image.is_floating_point():
            raise ValueError(f"zoom needs a float CHW tensor, not {image.dtype} of shape {tuple(image.shape)}")
        height, width = image.shape[1:]
    else:
        raise TypeError(f"zoom takes a PIL image or a float CHW tensor, not {type(image).__name__}; use load_image")
    box, central = zoom_box(bbox, width, height, policy)
    size = zoomed_size(box, width, height, central)
    cut = _zoom_pil if isinstance(image, Image.Image) else _zoom_tensor
    return cut(image, box, size), box


def rating_to_score(rating: float) -> float:
    """Return the rating on the 0..100 scale: clipped to 1..5, then linear (1 is 0, 5 is 100). NaN stays NaN.

    >>> [rating_to_score(rating) for rating in (0, 1.5, 3, 6)]
    [0.0, 12.5, 50.0, 100.0]
    """
    if math.isnan(rating):  # min and max would turn NaN into an end of the scale
        return math.nan
    return (min(max(rating, 1.0), 5.0) - 1.0) * 25.0


def _central(width: int, height: int) -> PixelBox:
    left, top, right, bottom = width // 4, height // 4, 3 * width // 4, 3 * height // 4
    return left, top, max(right, left + 1), max(bottom, top + 1)  # a side of 1 pixel has no half


def _whole_pixels(a: float, b: float, side: int) -> tuple[int, int]:
    start, end = sorted((int(a), int(b)))
    start = min(max(start, 0), side - 1)
    return start, max(min(end, side), start + 1)


def _area_scale(area: int, image_area: int, policy: CropPolicy) -> float:
    if area < policy.min_area_frac * image_area:
        return math.sqrt(policy.min_area_frac * image_area / area)
    if area > policy.max_area_frac * image_area:
        return math.sqrt(policy.max_area_frac * image_area / area)
    return 1.0


def _resize_span(start: int, end: int, scale: float, side: int, min_side_px: int) -> tuple[int, int]:
    # In float, and in this order: the recorded crops hold cases in which 2.0 comes out as 1.999... and becomes 1.
    shortest = min(min_side_px, side)
    centre, half = (start + end) / 2, (end - start) * scale / 2
    low, high = max(centre - half, 0.0), min(centre + half, float(side))
    if high - low < shortest:
        low = max(low - (shortest - (high - low)) // 2, 0.0)
        high = min(low + shortest, float(side))
        low = max(low - max(shortest - (high - low), 0.0), 0.0)
    return int(low), int(high)


def _zoom_pil(image: Image.Image, box: PixelBox, size: tuple[int, int]) -> Image.Image:
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGB")
    crop = image.crop(box)
    return crop if crop.size == size else crop.resize(size, Image.Resampling.LANCZOS)


def _zoom_tensor(image: Tensor, box: PixelBox, size: tuple[int, int]) -> Tensor:
    left, top, right, bottom = box
    crop = image.detach()[:, top:bottom, left:right].to(torch.float32)
    if (right - left, bottom - top) == size:
        return crop.clone()
    channels = [_enlarge(_enlarge(channel, (size[0], bottom - top)), size) for channel in crop.cpu().numpy()]
    return torch.from_numpy(np.stack(channels)).to(image.device)


def _enlarge(channel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # One direction at a time, clamped after each: Pillow's 8-bit way cuts the overshoot there too, and without this
    # the two ways would differ by up to a tenth beside hard edges.
    enlarged = Image.fromarray(np.ascontiguousarray(channel)).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(enlarged).clip(0.0, 1.0)
