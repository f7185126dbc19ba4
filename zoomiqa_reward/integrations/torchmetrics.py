"""The mean rating of a data set as a `torchmetrics.Metric`: any reward that needs no prompts."""

import itertools
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.images.loading import ImageSources
from zoomiqa_reward.integrations.batches import batch_images
from zoomiqa_reward.rewards.base import Reward, ask, require_pointwise
from zoomiqa_reward.rewards.loss import share_reward

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "zoomiqa_reward.integrations.torchmetrics needs torchmetrics: pip install torchmetrics"
    ) from error

ON_INVALID = ("nan", "drop")
_NUMBERS = itertools.count()


class ZoomIQAMetric(Metric):  # type: ignore[misc] # torchmetrics is not followed by the checker
    """Mean of a reward over all images seen, over all processes.

    Its model is no submodule, does not move, and is shared by clones.

    on_invalid: what an image that could not be measured does to the mean. `nan` (default) makes it NaN, which
    cannot be overlooked; `drop` leaves it out. `failed` counts them either way, and `first_error` holds the first
    reason in this process.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    measured: Tensor
    failed: Tensor
    number: Tensor

    def __init__(self, reward: Reward, *, on_invalid: str = "nan", **kwargs: Any) -> None:
        """Measure with `reward`; kwargs are torchmetrics' own. Raises ValueError for one that needs prompts."""
        super().__init__(**kwargs)
        if on_invalid not in ON_INVALID:
            raise ValueError(f"on_invalid={on_invalid!r}: must be one of {', '.join(ON_INVALID)}")
        require_pointwise(reward, "a mean over a data set adds up values of different groups")
        if "prompts" in reward.needs:
            raise ValueError(f"reward {reward.name!r} needs prompts; update() gets images only")
        self.reward = reward
        self.on_invalid = on_invalid
        self.first_error: str | None = None
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("measured", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("failed", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        # MetricCollection takes metrics with equal states for one, and then updates the first of them only. The digits
        # of this metric's number tell it from those of other rewards.
        digits = [int(digit) for digit in f"{next(_NUMBERS):064b}"]
        self.add_state("number", torch.tensor(digits), dist_reduce_fx="max")

    def __deepcopy__(self, memo: dict[int, object]) -> "ZoomIQAMetric":
        return share_reward(self, memo)

    def update(
        self, preds: ImageSources, target: ImageSources | None = None, *, lq: ImageSources | None = None
    ) -> None:
        """Add images: a float BCHW or CHW tensor in [0, 1], a uint8 tensor BCHW or CHW, a uint8 array BHWC, or a list.

        A list may hold any images that `load_image` takes, and uint8 tensors CHW.
        target: their references, lq: their low-quality images, for a reward that needs them; others ignore them.
        Raises ValueError where the reward needs what is missing.
        """
        sources = None if lq is None else _readable(lq)
        references = None if target is None else _readable(target)
        scores = ask(self.reward, _readable(preds), lq=sources, hr=references)
        valid = scores.valid.to(self.total.device)
        value = scores.value.detach().to(self.total.device, torch.float64)
        self.total += value[valid].sum()
        self.measured += valid.sum()
        self.failed += (~valid).sum()
        if self.first_error is None and not bool(valid.all()):
            self.first_error = scores.reason(valid.tolist().index(False), self.reward.name)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self.first_error = None

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Add a batch and return its value; torchmetrics resets this metric in between."""
        before = self.first_error
        value: Tensor = super().forward(*args, **kwargs)
        self.first_error = before or self.first_error
        return value

    def compute(self) -> Tensor:
        """Return the mean, float32; NaN where nothing was measured, or anything failed and `on_invalid` is `nan`.

        A warning then names the first reason.
        """
        if self.measured == 0 or (self.failed > 0 and self.on_invalid == "nan"):
            if self.failed > 0:
                count = int(self.failed + self.measured)
                reason = self.first_error or "in another process, which holds the reason"
                warnings.warn(
                    f"{self.reward.name}: {int(self.failed)} of {count} images could not be measured, so the mean is "
                    f"NaN; the first: {reason}", stacklevel=2
                )  # fmt: skip
            return torch.tensor(math.nan, device=self.total.device)
        return (self.total / self.measured).float()


def _readable(images: ImageSources) -> ImageSources:
    """Return images as rewards take them: 8-bit tensors, which torchmetrics' own metrics get, become arrays HWC."""
    if isinstance(images, Tensor) and images.dtype == torch.uint8:
        return batch_images(images if images.ndim == 4 else images[None])
    return batch_images(images) if isinstance(images, list | tuple) else images
