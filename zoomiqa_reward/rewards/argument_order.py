"""Messages for arguments of the wrong kind: in the wrong order, or a class in place of an object."""

import os
from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from zoomiqa_reward.images.loading import ImageError
from zoomiqa_reward.rewards.base import NoReward

_IMAGE_KINDS = (str, os.PathLike, Image.Image, np.ndarray, Tensor)


def require_order(
    call: str, *, judges: Mapping[str, object] | None = None, images: Mapping[str, object] | None = None
) -> None:
    """Look only at the kinds of arguments, by name. call: how the function is called, for the message.

    judges: models or rewards. images: single images. Raises NoReward, ImageError.
    """
    for name, value in (judges or {}).items():
        if isinstance(value, (*_IMAGE_KINDS, list, tuple)):
            raise NoReward(f"{name}={type(value).__name__}: must be a model or a reward; the arguments are {call}")
        if isinstance(value, type):
            raise NoReward(_of_class(name, value))
    for name, value in (images or {}).items():
        if not isinstance(value, _IMAGE_KINDS):
            raise ImageError(
                f"{name}={type(value).__name__}: must be one image (a path, a PIL image, a numpy array or a tensor); "
                f"the arguments are {call}"
            )


def require_object(name: str, value: object) -> None:
    """Raise TypeError for a class where an object of it belongs, which could be called all the same."""
    if isinstance(value, type):
        raise TypeError(_of_class(name, value))


def _of_class(name: str, value: type) -> str:
    return f"{name}={value.__name__}: is a class; pass an object of it, such as {value.__name__}(...)"
