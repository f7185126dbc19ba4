"""Rewards in the call form of DDPO and Flow-GRPO, `fn(images, prompts, metadata) -> (scores, info)`, and back.

Both trainers pass a batch of images as a float tensor NCHW in [0, 1] or as a uint8 array NHWC, with one prompt and
one metadata dictionary per image. A restoration reward also needs the low-quality image, which is in the metadata.
Pixels are not changed: no 8-bit rounding of floats, no JPEG, no pickle, no shrinking.

Neither trainer has a value for failed measurements, and neither loop can drop a sample: both count them, and one NaN
reaches the advantages of all. So such an image is an error by default; a loop that drops samples may ask for NaN.
Source of the forms: the reward functions of kvablack/ddpo-pytorch (`ddpo_pytorch/rewards.py`) and of
yifan123/flow_grpo (`flow_grpo/rewards.py`, whose `multi_score` returns named scores with their weighted sum, `avg`).
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoomiqa_reward.integrations.batches import (
    batch_images,
    check_on_invalid,
    dictionaries,
    require_valid,
    score_batch,
)
from zoomiqa_reward.rewards.base import Reward, require_pointwise
from zoomiqa_reward.rewards.metric import MetricReward

__all__ = [
    "FlowRewardFunction",
    "RewardFunction",
    "batch_images",
    "ddpo_reward",
    "flow_grpo_reward",
    "from_reward_function",
]

RewardFunction = Callable[..., tuple[NDArray[np.float32], dict[str, Any]]]
FlowRewardFunction = Callable[..., tuple[dict[str, NDArray[np.float32]], dict[str, Any]]]


def ddpo_reward(reward: Reward, *, lq_key: str = "lq", hr_key: str = "hr", on_invalid: str = "raise") -> RewardFunction:
    """Return `fn(images, prompts, metadata)`, which gives (scores [batch] float32 higher-better, info).

    images: float NCHW tensor in [0, 1], uint8 NHWC array, uint8 NHWC or NCHW tensor, or a list of anything that
    `load_image` takes. metadata: a sequence with one dictionary per image. What `reward.needs` names is taken from
    there under `lq_key` and `hr_key` (any image), and from `prompts`. info: `valid` and `std` (arrays [batch]) and
    `errors` (a list).
    on_invalid: what cannot be measured; `raise` raises RuntimeError with the first reason, `nan` gives NaN, for a loop
    that drops such samples by `info["valid"]` before the advantage.
    Raises GroupwiseError for a reward that compares images within a group: a batch may hold a fragment of one.
    fn raises ValueError for images of another form, or metadata that is missing or too short.
    """
    check_on_invalid(on_invalid)
    require_pointwise(reward, "the trainer compares values of several batches within its own groups")

    def fn(images: Any, prompts: Any = None, metadata: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        scores = score_batch(reward, images, prompts, metadata, lq_key=lq_key, hr_key=hr_key)
        if on_invalid == "raise":
            require_valid(reward, scores)
        value, valid, std = (part.detach().cpu().numpy() for part in (scores.value, scores.valid, scores.std))
        return value, {"valid": valid, "std": std, "errors": list(scores.errors)}

    return fn


def flow_grpo_reward(
    reward: Reward, *, lq_key: str = "lq", hr_key: str = "hr", on_invalid: str = "raise"
) -> FlowRewardFunction:
    """Return `fn(images, prompts, metadata, ref_images=None, only_strict=True)` as Flow-GRPO's training loop calls it.

    It gives ({reward.name: scores, "avg": scores}, info), with the rest as `ddpo_reward` says. For Flow-GRPO's own
    `multi_score`, which sums several of the three-argument kind, use `ddpo_reward`. `ref_images`, if given, stand in
    for `lq` where the metadata holds none; `only_strict` changes nothing.
    """
    single = ddpo_reward(reward, lq_key=lq_key, hr_key=hr_key, on_invalid=on_invalid)

    def fn(
        images: Any, prompts: Any = None, metadata: Any = None, ref_images: Any = None, only_strict: bool = True
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        del only_strict
        if ref_images is not None and "lq" in reward.needs:
            is_given = metadata is not None and len(metadata) > 0
            given = dictionaries(metadata, len(ref_images)) if is_given else [{} for _ in ref_images]
            metadata = [{lq_key: reference} | dict(entry) for entry, reference in zip(given, ref_images, strict=True)]
        value, info = single(images, prompts, metadata)
        return {reward.name: value, "avg": value}, info

    return fn


def from_reward_function(
    fn: Callable[..., object], name: str, score_range: tuple[float, float], *, higher_is_better: bool = True,
    needs: Collection[str] = ("prompts",), key: str = "avg", lq_key: str = "lq", hr_key: str = "hr",
    fingerprint: str | None = None, batch_size: int = 8,
) -> MetricReward:  # fmt: skip
    """Return a reward that asks a reward function of these trainers: the other way round.

    fn: `fn(images, prompts, metadata)`, which gets a float NCHW tensor in [0, 1] with images of one size, one prompt
    each ("" unless `needs` names prompts) and one dictionary each, with the low-quality image and the reference, float
    CHW tensors, under `lq_key` and `hr_key` if `needs` names them. It returns (scores, info), or scores alone: one
    number per image, or a dictionary of such scores, of which `key` is taken. The rest is that of `MetricReward`.
    Raises ValueError as `MetricReward` does; a call raises KeyError for a dictionary without `key`.
    """

    def call(
        images: Tensor, prompts: list[str] | None = None, lq: Tensor | None = None, hr: Tensor | None = None
    ) -> Tensor:
        texts = [""] * len(images) if prompts is None else prompts
        others = {field: batch for field, batch in ((lq_key, lq), (hr_key, hr)) if batch is not None}
        metadata = [{field: batch[index] for field, batch in others.items()} for index in range(len(images))]
        answer = fn(images, texts, metadata)
        scores = answer[0] if isinstance(answer, tuple) else answer
        values: Any = scores[key] if isinstance(scores, Mapping) else scores
        return torch.as_tensor(values)

    return MetricReward(
        call, name, higher_is_better, score_range, needs, fingerprint=fingerprint, batched=True, batch_size=batch_size
    )
