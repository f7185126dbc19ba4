"""A reward by name, loaded once per process, for hosts whose configuration holds texts only."""

import threading

from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.find import DEFAULT_MODEL, find_reward, judged_together, model_of
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

_LOADED: dict[tuple[str, str, str | None, str | None], Reward] = {}
_LOCK = threading.Lock()


def named_reward(
    name: str = DEFAULT_MODEL, mode: str = "direct", device: str | None = None, together: str | None = None
) -> Reward:
    """Return the reward that a name stands for; a second call with the same arguments returns the same object.

    name: a Zoom-IQA model (`nano`, a folder, a hub id), a metric (`niqe`), or `package.module:factory`. mode and device
    are those of a model. together: `conditioned` or `referenced` judges each image together with its low-quality image
    or its reference (`rewards.find.judged_together`). Safe in several threads. Raises ValueError as `find_reward` does.
    """
    with _LOCK:
        key = (name, mode, device, together)
        if key not in _LOADED:
            model = model_of(name)
            if model is None:
                if mode != "direct":
                    raise ValueError(f"mode={mode!r}: only for a Zoom-IQA model, not for the reward {name!r}")
                reward = find_reward(name)
            else:
                reward = ZoomIQAReward(ZoomIQA.from_pretrained(model, device=device), mode)
            _LOADED[key] = reward if together is None else judged_together(reward, together)
        return _LOADED[key]
