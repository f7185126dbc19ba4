"""What rewards of two images share: a restoration, and its low-quality input or its reference."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from restoration.metrics.registry import METRICS
from zoomiqa_reward.images.loading import ImageError, ImageSource, load_image
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward, require_pointwise
from zoomiqa_reward.rewards.metric import called_names

Fidelity = Callable[[Tensor, Tensor], Tensor | float]
"""`fn(image, other)`, float32 CHW in [0, 1], returns a float or a tensor of one element."""


class PairedReward(Reward):
    """A quality, judged together with the fidelity of the image to another one."""

    def _require_alone(self, quality: Reward, why: str) -> None:
        """Raise GroupwiseError or ValueError for a quality that cannot rate one image. why: how its value is used."""
        require_pointwise(quality, why)
        if extra := sorted(quality.needs - {"prompts"}):
            raise ValueError(f"quality {quality.name!r} needs {extra[0]}: pass one that rates an image alone")

    def _require_gradient(self) -> None:
        if not self.differentiable:
            raise ValueError(
                f"grad=True: {self.name!r} is not differentiable; it needs a differentiable quality, and a fidelity of "
                "tensors with fidelity_differentiable=True"
            )


def metric_names(fidelity: Fidelity) -> frozenset[str]:
    """Return the names of the registry's metrics that fidelity is, or that its code calls."""
    called = set(called_names(fidelity))
    return frozenset(name for name, metric in METRICS.items() if metric.fn is fidelity or metric.fn.__name__ in called)


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
            value = value.to(torch.float32).reshape(())
            value = value if bool(value.isfinite()) else value.detach()  # 0 times its gradient would be NaN
            value = value.clamp(floor, 1.0)  # clamp lets NaN through
            errors.append(None if bool(torch.isfinite(value)) else "fidelity is not a number")
        except ImageError as error:
            value = torch.tensor(math.nan)
            errors.append(str(error))
        values.append(value)
    value = torch.stack([item.to(values[0].device) for item in values]) if values else torch.zeros(0)
    valid = torch.isfinite(value.detach())
    return Scores(value=value, valid=valid, std=torch.full_like(value.detach(), math.nan), errors=tuple(errors))


def where_all_measured(*values: Tensor) -> list[Tensor]:
    """Return the values [batch] with NaN, and without a graph, at each image of which any of them is NaN.

    A product with NaN has the gradient NaN, which would spoil whatever else the images come from.
    """
    missing = torch.stack([column.detach().isnan() for column in values]).any(dim=0)
    return [torch.where(missing, torch.full_like(column.detach(), math.nan), column) for column in values]


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
