"""What a tuning run needs, asked before anything is written: a refused call leaves no run in its folder."""

import warnings
from collections.abc import Sequence

import torch

from restoration.restorer.loading import Pipeline
from restoration.restorer.network_state import switches_of
from restoration.tuning.data import Example
from zoomiqa_reward.rewards.base import Reward, require_reward
from zoomiqa_reward.rewards.normalise import group_keys


def require_inputs(reward: Reward, examples: Sequence[Example]) -> None:
    """Raise ValueError for a reward that needs a text or a truth where an image has none, NoReward for no reward."""
    require_reward(reward)
    untold = [example.name for example in examples if not example.prompt]
    if "prompts" in reward.needs and untold:
        raise ValueError(
            f"reward {reward.name!r} needs prompts, and {untold[0]} has none: give load_examples(..., prompts=[...])"
        )
    blind = [example.name for example in examples if example.hr is None]
    if "hr" in reward.needs and blind:
        raise ValueError(
            f"reward {reward.name!r} needs hr, which {blind[0]} does not have: give ground truths, or another reward"
        )


def require_truths(truth_weight: float, examples: Sequence[Example]) -> None:
    """Raise ValueError for an image to learn from without a ground truth, where the loss has a part of it."""
    without = [example.name for example in examples if example.hr is None]
    if truth_weight > 0 and without:
        raise ValueError(
            f"{without[0]} has no ground truth, but truth_weight needs one: give it, or set truth_weight=0"
        )


def require_others(examples: Sequence[Example], validation: Sequence[Example]) -> None:
    """Raise ValueError for an image that the monitor would judge by and the run would learn from.

    By the ground truth where there is one: the same photograph may be degraded in two ways.
    """
    learned, keys = (
        group_keys([example.lq if example.hr is None else example.hr for example in side])
        for side in (examples, validation)
    )
    if both := [example.name for example, key in zip(validation, keys, strict=True) if key in learned]:
        raise ValueError(
            f"validation image {both[0]} is one of those to learn from: the monitor needs others, or it would see what "
            "was learned by heart as a gain"
        )


def require_gradients(module: torch.nn.Module) -> None:
    """Raise ValueError for a network in float16."""
    if any(parameter.dtype == torch.float16 for parameter in module.parameters()):
        raise ValueError(
            f"{type(module).__name__} is in float16, whose gradients vanish without a loss scale: load the pipeline in "
            "float32 and set mixed_precision='bf16', or convert it with pipeline.to(torch.bfloat16)"
        )


def warn_unsaved(pipeline: Pipeline) -> None:
    """Warn of what was put on loaded networks, such as FreeU or a hook: the images show it, no saved pipeline does."""
    for name, component in pipeline.components.items():
        if unsaved := [key.lstrip(".") for key in switches_of(component) if not key.endswith("processor")]:
            warnings.warn(
                f"{name} has {', '.join(unsaved)}, which save_pretrained does not write: the saved pipeline makes "
                "other images than those that are scored; remove it, or put it on the loaded result again",
                stacklevel=3,
            )


def require_scale(examples: Sequence[Example], scale: int) -> None:
    """Raise ValueError for a ground truth that is not as large as what the pipeline makes."""
    for example in examples:
        made = tuple(scale * side for side in example.lq.shape[1:])
        if example.hr is not None and tuple(example.hr.shape[1:]) != made:
            given = f"{example.hr.shape[2]} x {example.hr.shape[1]} px"
            raise ValueError(
                f"{example.name}: the ground truth has {given}, and the pipeline makes {made[1]} x {made[0]}, {scale} "
                f"times the low-quality image; degrade by --scale {scale}, or set denoiser_options={{'scale': ...}} "
                "for a pipeline without a fixed scale"
            )
