"""Batches as other trainers hold them: images of any layout with one dictionary each, scored by any reward.

The dictionaries hold the low-quality image and the reference, as anything `load_image` takes, or as a data set's
`{"bytes": ..., "path": ...}`. Pixels are not changed: floats are not rounded, and nothing is shrunk or encoded.
"""

import io
from collections.abc import Iterable, Mapping
from typing import TypeGuard, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zoomiqa_reward.images.loading import ImageError, ImageSource
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward, ask, require_reward

ON_INVALID = ("nan", "raise")


def check_on_invalid(on_invalid: str) -> None:
    """Raise ValueError unless it is `nan` or `raise`."""
    if on_invalid not in ON_INVALID:
        raise ValueError(f"on_invalid={on_invalid!r}: must be one of {', '.join(ON_INVALID)}")


def require_valid(reward: Reward, scores: Scores) -> None:
    """Raise RuntimeError with the first reason if any image could not be measured."""
    if not bool(scores.valid.all()):
        index = scores.valid.tolist().index(False)
        raise RuntimeError(
            f"reward {reward.name!r} could not measure image {index}: {scores.reason(index, reward.name)}"
        )


def score_batch(
    reward: Reward, images: object, prompts: object, metadata: object, *, lq_key: str, hr_key: str
) -> Scores:
    """Return the scores of a batch, without gradients. reward: rates each image alone, as a batch may split a group.

    images: as `batch_images` takes them. metadata: a sequence of one dictionary per image, from which `lq` and `hr` are
    taken under their keys if the reward needs them. prompts: one text per image, or None.
    Raises ValueError for images of another form, and for what the reward needs and is not there.
    """
    require_reward(reward)
    sources = batch_images(images)
    sides: dict[str, list[ImageSource] | None] = {"hr": None, "lq": None}
    for name, key in (("hr", hr_key), ("lq", lq_key)):
        if name in reward.needs:
            sides[name] = [
                _entry(entry, key, index, reward.name)
                for index, entry in enumerate(dictionaries(metadata, len(sources)))
            ]
    texts = None
    if isinstance(prompts, Iterable) and not isinstance(prompts, str):
        texts = [str(prompt) for prompt in prompts]
    elif "prompts" in reward.needs:
        raise ValueError(f"reward {reward.name!r} needs prompts: pass a list with one text per image")
    return ask(reward, sources, lq=sides["lq"], hr=sides["hr"], prompts=texts)


def batch_images(images: object) -> list[ImageSource]:
    """Return the images of a batch, each as `load_image` takes it.

    Raises ValueError unless they are a float NCHW tensor, a uint8 NHWC array, a uint8 tensor NHWC or NCHW, or a list.
    """
    if isinstance(images, list | tuple):
        return [channels_last(image) if _is_eight_bit(image) else image for image in images]
    if isinstance(images, Tensor) and images.ndim == 4:
        if images.is_floating_point() and images.shape[1] in (1, 3):
            return list(images)
        if images.dtype == torch.uint8 and {images.shape[1], images.shape[3]} & {1, 3}:
            return [channels_last(image) for image in images]
    if isinstance(images, np.ndarray) and images.ndim == 4 and images.dtype == np.uint8 and images.shape[3] in (1, 3):
        return list(images)
    kind = f"{getattr(images, 'dtype', '')} {tuple(getattr(images, 'shape', ()))}".strip()
    raise ValueError(
        f"images ({type(images).__name__} {kind}): must be a float tensor NCHW in [0, 1], a uint8 array NHWC, or a list"
    )


def channels_last(image: Tensor) -> NDArray[np.uint8]:
    """Return a uint8 tensor HWC or CHW with 1 or 3 channels as an array HWC, which `load_image` takes.

    Where both orders are possible, in an image of 1 or 3 px, it is read as HWC.
    """
    ordered = image if image.shape[-1] in (1, 3) else image.permute(1, 2, 0)
    pixels: NDArray[np.uint8] = ordered.detach().cpu().numpy()
    return pixels


def _is_eight_bit(image: object) -> TypeGuard[Tensor]:
    return isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3


def dictionaries(metadata: object, count: int) -> list[Mapping[str, object]]:
    """Return the metadata as a list of dictionaries. Raises ValueError for something else or another length."""
    if not isinstance(metadata, list | tuple | np.ndarray) or not all(isinstance(entry, Mapping) for entry in metadata):
        raise ValueError(f"metadata is {type(metadata).__name__}: must be a sequence with one dictionary per image")
    if len(metadata) != count:
        raise ValueError(f"metadata holds {len(metadata)} for {count} images: pass one dictionary per image")
    return list(metadata)


def stored_image(value: object) -> ImageSource:
    """Return an image of a data set as `load_image` takes it; `{"bytes": ..., "path": ...}` is opened.

    Raises ImageError for bytes that are no image.
    """
    if not isinstance(value, Mapping) or not {"bytes", "path"} & set(value):
        return cast(ImageSource, value)  # load_image says what it cannot read
    if value.get("bytes") is None:
        return cast(ImageSource, value.get("path"))
    try:
        return Image.open(io.BytesIO(value["bytes"]))
    except OSError as error:
        raise ImageError(f"the bytes of {value.get('path') or 'an image'} are no image; store PNG or JPEG") from error


def _entry(metadata: Mapping[str, object], key: str, index: int, name: str) -> ImageSource:
    if metadata.get(key) is None:
        raise ValueError(f"reward {name!r} needs metadata[{index}][{key!r}]; it holds {sorted(metadata) or 'nothing'}")
    return stored_image(metadata[key])
