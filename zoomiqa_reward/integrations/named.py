"""A reward by name, loaded once per process, for hosts whose configuration holds texts only."""

import threading
from collections.abc import Iterable
from difflib import get_close_matches

from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.find import DEFAULT_MODEL, find_reward, judged_together, model_of
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

SIMILARITY = 0.75
"""Of two names, by difflib's ratio, from which one is a misspelling of the other (`model_name` and `model`: 0.67)."""
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


def refuse_misspelt(given: Iterable[str], options: Iterable[str]) -> None:
    """Raise ValueError for a name that is nearly one of `options`: it would be ignored, as a host's own names are."""
    names = list(options)
    for name in given:
        if get_close_matches(name, names, n=1, cutoff=SIMILARITY):
            raise ValueError(f"option {name!r} is not known and looks misspelt: must be one of {', '.join(names)}")
