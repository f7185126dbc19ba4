"""Rewards in the call forms of DDPO and Flow-GRPO trainers: `fn(images, prompts, metadata) -> (scores, info)`.

Both trainers pass a batch of images as a float tensor NCHW in [0, 1] or as a uint8 array NHWC, with one prompt and
one metadata dictionary an image. A restoration reward also needs the low-quality image, which travels in the metadata.
Pixels are handed on as they are: no 8-bit rounding of floats, no JPEG, no pickle, no shrinking.

Neither trainer knows failed measurements: here they are NaN, which shows up in its mean, or an error; never 0.
Source of the forms: the reward functions of kvablack/ddpo-pytorch (`ddpo_pytorch/rewards.py`) and of
yifan123/flow_grpo (`flow_grpo/rewards.py`, whose `multi_score` returns named scores with their weighted sum, `avg`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward, is_groupwise

ON_INVALID = ("nan", "raise")

RewardFunction = Callable[..., tuple[NDArray[np.float32], dict[str, Any]]]
FlowRewardFunction = Callable[..., tuple[dict[str, NDArray[np.float32]], dict[str, Any]]]


def ddpo_reward(reward: Reward, *, lq_key: str = "lq", hr_key: str = "hr", on_invalid: str = "nan") -> RewardFunction:
    """Return `fn(images, prompts, metadata)`, which gives (scores [batch] float32 higher-better, info).

    images: float NCHW tensor in [0, 1], uint8 NHWC array or tensor, or a list of anything `load_image` takes.
    metadata: a sequence of one dictionary an image. What `reward.needs` names is taken from there under `lq_key` and
    `hr_key` (any image), and from `prompts`. info: `valid` and `std` (arrays [batch]) and `errors` (a list).
    on_invalid: `nan` gives NaN for what could not be measured: drop those samples by `info["valid"]` before the
    advantage; `raise` raises RuntimeError with the first reason.
    fn raises ValueError for images of another form, or metadata that is missing or too short.
    """
    if on_invalid not in ON_INVALID:
        raise ValueError(f"on_invalid={on_invalid!r}: must be one of {', '.join(ON_INVALID)}")

    def fn(images: Any, prompts: Any = None, metadata: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        scores = _score(reward, images, prompts, metadata, {"lq": lq_key, "hr": hr_key})
        if on_invalid == "raise" and not bool(scores.valid.all()):
            index = scores.valid.tolist().index(False)
            raise RuntimeError(
                f"reward {reward.name!r} could not measure image {index}: {scores.reason(index, reward.name)}"
            )
        value, valid, std = (part.detach().cpu().numpy() for part in (scores.value, scores.valid, scores.std))
        return value, {"valid": valid, "std": std, "errors": list(scores.errors)}

    return fn


def flow_grpo_reward(
    reward: Reward, *, lq_key: str = "lq", hr_key: str = "hr", on_invalid: str = "nan"
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
            given = _dictionaries(metadata, len(ref_images)) if metadata else [{} for _ in ref_images]
            metadata = [{lq_key: reference} | dict(entry) for entry, reference in zip(given, ref_images, strict=True)]
        value, info = single(images, prompts, metadata)
        return {reward.name: value, "avg": value}, info

    return fn


def _score(reward: Reward, images: Any, prompts: Any, metadata: Any, keys: dict[str, str]) -> Scores:
    sources = batch_images(images)
    given: dict[str, Any] = {}
    wanted = reward.needs | ({"lq"} if is_groupwise(reward) else set())  # equal low-quality images are a group
    for name in sorted(wanted & {"lq", "hr"}):
        given[name] = [
            _entry(entry, keys[name], index, reward.name)
            for index, entry in enumerate(_dictionaries(metadata, len(sources)))
        ]
    if prompts is not None and not isinstance(prompts, str):
        given["prompts"] = [str(prompt) for prompt in prompts]
    elif "prompts" in reward.needs:
        raise ValueError(f"reward {reward.name!r} needs prompts: pass a list of one text an image")
    with torch.no_grad():
        return reward(sources, **given)


def batch_images(images: Any) -> list[Any]:
    """Return the images of a batch, each as `load_image` takes it.

    Raises ValueError unless they are a float NCHW tensor, a uint8 NHWC array or tensor, or a list.
    """
    if isinstance(images, list | tuple):
        return list(images)
    if isinstance(images, Tensor) and images.ndim == 4:
        if images.is_floating_point() and images.shape[1] in (1, 3):
            return list(images)
        if images.dtype == torch.uint8 and images.shape[3] in (1, 3):
            return list(images.cpu().numpy())
    if isinstance(images, np.ndarray) and images.ndim == 4 and images.dtype == np.uint8 and images.shape[3] in (1, 3):
        return list(images)
    kind = f"{getattr(images, 'dtype', '')} {tuple(getattr(images, 'shape', ()))}".strip()
    raise ValueError(
        f"images ({type(images).__name__} {kind}): must be a float tensor NCHW in [0, 1], a uint8 array NHWC, or a list"
    )


def _dictionaries(metadata: Any, count: int) -> Sequence[Mapping[str, Any]]:
    if not isinstance(metadata, list | tuple | np.ndarray) or not all(isinstance(entry, Mapping) for entry in metadata):
        raise ValueError(f"metadata is {type(metadata).__name__}: must be a sequence of one dictionary an image")
    if len(metadata) != count:
        raise ValueError(f"metadata holds {len(metadata)} for {count} images")
    return list(metadata)


def _entry(metadata: Mapping[str, Any], key: str, index: int, name: str) -> Any:
    if key not in metadata:
        raise ValueError(f"reward {name!r} needs metadata[{index}][{key!r}]; it holds {sorted(metadata) or 'nothing'}")
    return metadata[key]
