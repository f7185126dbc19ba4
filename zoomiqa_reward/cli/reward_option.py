"""The option `--reward`, the same for all commands, and the reward that it stands for."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from zoomiqa_reward.cli import inputs

if TYPE_CHECKING:
    from zoomiqa_reward.rewards.base import Reward

NAMES = (
    "'zoomiqa' (the option model), 'conditioned' (that model, with the input), 'nano', a folder or a hub id, "
    "a metric ('niqe'), or package.module:factory"
)
RewardName = Annotated[str, typer.Option("--reward", help=f"{NAMES}.")]
RewardOrNone = Annotated[str, typer.Option("--reward", help=f"{NAMES}; 'none': choose nothing.")]
RewardOrRecipes = Annotated[
    str | None, typer.Option("--reward", help=f"Replaces the reward of the recipe: {NAMES}.", show_default=False)
]


def load_reward(
    name: str,
    *,
    model: str = "nano",
    mode: str = "direct",
    question: str | None = None,
    num_samples: int = 1,
    device: str | None = None,
    dtype: str | None = None,
    adapter: str | None = None,
    protocol: str | None = None,
    is_model_needed: bool = False,
) -> "Reward":
    """Return the reward that `--reward` names. Modules in the working folder are found too.

    mode, question, num_samples: of a Zoom-IQA model. With several samples there is no seed, so that each call samples
    anew. is_model_needed: the command loads the model also beside another reward, so `--model` may be given then.
    Raises ValueError for a name that leads to no reward, and for an option of the model beside another reward.
    """
    from zoomiqa_reward.rewards.find import TOGETHER, find_reward, judged_together, model_of

    if name == "none":
        raise ValueError(
            "--reward none: this command needs a reward; leave the option out for the model's, or name one"
        )
    chosen = model if name in TOGETHER else model_of(name, model)
    if chosen is not None:
        from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

        iqa = inputs.load_model(chosen, device=device, dtype=dtype, adapter=adapter, protocol=protocol)
        seed = None if num_samples > 1 else 0
        reward = ZoomIQAReward(iqa, mode, question=question, num_samples=num_samples, seed=seed)
        return judged_together(reward, name) if name in TOGETHER else reward
    of_model = {} if is_model_needed else {"model": model, "dtype": dtype, "adapter": adapter, "protocol": protocol}
    refuse_model_options(name, mode=mode, question=question, num_samples=num_samples, **of_model)
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:  # a module beside the user, as with `python -m`
        sys.path.insert(0, here)
    return find_reward(name)


def refuse_model_options(name: str, **given: object) -> None:
    """Raise ValueError if an option that only a Zoom-IQA model has, by its name in Python, stands beside `name`."""
    defaults = {"model": "nano", "mode": "direct", "num_samples": 1}
    wrong = [f"--{key.replace('_', '-')}" for key, value in given.items() if value != defaults.get(key)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: only for a Zoom-IQA model, not for --reward {name}")
