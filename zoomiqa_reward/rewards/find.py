"""A reward by name: a metric of `restoration.metrics.registry`, or what a dotted path leads to.

This package imports `restoration` only when a metric's name is looked up.
"""

import inspect
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from zoomiqa_reward.rewards.base import Reward, missing_members

METRICS_MODULE = "restoration.metrics"
ZOOMIQA = "zoomiqa"
"""The reward's name that stands for the model given beside it."""
DEFAULT_MODEL = "nano"
TOGETHER = {"conditioned": "lq", "referenced": "hr"}
"""Rewards that judge an image together with another one, and which one they need."""


def model_of(name: str, model: str = DEFAULT_MODEL) -> str | None:
    """Return the Zoom-IQA model that a reward's name stands for, or None if it stands for another reward.

    `zoomiqa` stands for `model`. An embedded model (`nano`), a folder and a hub id `owner/name` stand for themselves.
    A folder in the working folder is a model only if it holds one, for outputs are often named after a reward.
    Raises ValueError if `name` and `model` are two different models.

    >>> model_of("zoomiqa", "owner/large"), model_of("nano"), model_of("niqe"), model_of("package.module:factory")
    ('owner/large', 'nano', None, None)
    """
    if name == ZOOMIQA:
        return model
    from zoomiqa_reward.model.checkpoint import embedded

    is_path = ("/" in name or os.sep in name) and (Path(name).is_dir() or ":" not in name)
    if name in TOGETHER or not (name in embedded() or _holds_model(Path(name)) or is_path):
        return None
    if model not in (DEFAULT_MODEL, name):
        raise ValueError(f"reward {name!r} and model {model!r} are two models: give one of them")
    return name


def _holds_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))


def find_reward(name: str) -> Reward:
    """Return the reward that `name` stands for: `niqe` and other metrics, or `package.module:factory`.

    A factory is called without arguments; a path may also lead to a reward itself.
    Raises ValueError that names what is missing: module, attribute, extra, or what the object lacks to be a reward.
    """
    if ":" not in name:
        return _metric(name)
    candidate = _attribute(name)
    if inspect.isroutine(candidate) or inspect.isclass(candidate):
        candidate = candidate()
    if missing := missing_members(candidate):
        lacks = ", ".join(missing)
        raise ValueError(
            f"reward {name!r} gives {type(candidate).__name__}, which is no reward: it lacks {lacks}; "
            "wrap a function with zoomiqa_reward.MetricReward"
        )
    reward: Reward = candidate
    return reward


def require_name(name: str) -> None:
    """Raise the ValueError of `find_reward` for a name that leads nowhere; no factory is called."""
    if ":" in name:
        _attribute(name)
    else:
        _metric(name)


def judged_together(quality: Reward, other: str) -> Reward:
    """Return `quality` judged together with another image of each: `conditioned` on its source, or `referenced`.

    These are `restoration.metrics.ConditionedReward`, which needs lq, and `ReferencedReward`, which needs hr. Raises
    ValueError for another word, for a quality that neither takes, and without the extra `restoration`.
    """
    if other not in TOGETHER:
        raise ValueError(f"{other!r}: must be one of {', '.join(TOGETHER)}")
    reward: Reward = getattr(_metrics(other), f"{other.capitalize()}Reward")(quality)
    return reward


def _attribute(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        module = import_module(module_name)
    except (ImportError, ValueError) as error:  # ValueError: an empty name
        raise ValueError(f"reward {name!r}: cannot import {module_name!r} ({error}); check the name") from error
    if not hasattr(module, attribute):
        raise ValueError(f"reward {name!r}: {module_name} has no {attribute!r}; give package.module:factory")
    return getattr(module, attribute)


def _metrics(name: str) -> ModuleType:
    try:
        return import_module(METRICS_MODULE)
    except ImportError as error:
        raise ValueError(
            f"reward {name!r}: metrics need an extra: pip install 'zoomiqa-reward[restoration]' ({error}); "
            "a reward of your own is package.module:factory"
        ) from error


def _metric(name: str) -> Reward:
    metrics = _metrics(name)
    try:
        reward: Reward = metrics.as_reward(name)
    except ValueError as error:
        here = f" (the folder {name} here holds no config.json)" if Path(name).is_dir() else ""
        raise ValueError(
            f"reward {name!r}: neither a Zoom-IQA model ('zoomiqa', 'nano', a folder, owner/name){here}, nor "
            f"package.module:factory, nor a metric ({error})"
        ) from error
    return reward
