"""Scores of image pairs: a restoration beside its low-quality source or its reference, one number per pair."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoomiqa_reward.images.loading import ImageError, ImageSource, ImageSources, load_image, split_images
from zoomiqa_reward.model.ratings import Scores

Fidelity = Callable[[Tensor, Tensor], Tensor | float]
"""`fn(image, other)`, float32 CHW in [0, 1], returns a float or a tensor of one element."""


def required_pairs(name: str, key: str, others: ImageSources | None, count: int) -> list[ImageSource]:
    """Return the other image of each pair. Raises ValueError if they are missing or of another number."""
    if others is None:
        raise ValueError(f"reward {name!r} needs {key}=")
    listed = split_images(others)
    if len(listed) != count:
        raise ValueError(f"reward {name!r}: {key} holds {len(listed)} for {count} images")
    return listed


def fidelity_of_pairs(
    images: Sequence[ImageSource], others: Sequence[ImageSource], fidelity: Fidelity, floor: float = 0.0
) -> Scores:
    """Return the fidelity of each pair, clipped to [floor, 1]; not valid where an image cannot be read or it is NaN.

    A fidelity that returns tensors keeps its graph. Raises what `fidelity` raises, such as ValueError for other sizes.
    """
    values: list[Tensor] = []
    errors: list[str | None] = []
    for image, other in zip(images, others, strict=True):
        try:
            measured = fidelity(load_image(image), load_image(other))
            value = measured if isinstance(measured, Tensor) else torch.tensor(float(measured))
            value = value.to(torch.float32).reshape(()).clamp(floor, 1.0)  # clamp lets NaN through
            errors.append(None if bool(torch.isfinite(value)) else "fidelity is not a number")
        except ImageError as error:
            value = torch.tensor(math.nan)
            errors.append(str(error))
        values.append(value)
    value = torch.stack([item.to(values[0].device) for item in values]) if values else torch.zeros(0)
    valid = torch.isfinite(value.detach())
    return Scores(value=value, valid=valid, std=torch.full_like(value.detach(), math.nan), errors=tuple(errors))


def joined_errors(parts: dict[str, Scores], count: int) -> tuple[str | None, ...]:
    """Return for each image what could not be measured, by the names of the parts; None if nothing is missing."""
    errors: list[str | None] = []
    for index in range(count):
        wrong = [
            f"{name}: {scores.errors[index] or 'not measured'}"
            for name, scores in parts.items()
            if not bool(scores.valid[index])
        ]
        errors.append("; ".join(wrong) or None)
    return tuple(errors)
