"""Zoom-IQA as a reward and ranker for image restoration: how good is this image, why, how sure, which is best."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoomiqa_reward.cache import CachedReward
    from zoomiqa_reward.composite import CompositeReward, Term
    from zoomiqa_reward.model import ZoomIQA
    from zoomiqa_reward.ranking import Ranking, rank
    from zoomiqa_reward.ratings import Assessment, Ratings, Scores
    from zoomiqa_reward.reward import MetricReward, Reward, ZoomIQAReward
    from zoomiqa_reward.robust import RobustReward
    from zoomiqa_reward.turns import Turn

__version__ = "0.1.0"

_HOMES = {
    "Assessment": "ratings",
    "CachedReward": "cache",
    "CompositeReward": "composite",
    "MetricReward": "reward",
    "Ranking": "ranking",
    "Ratings": "ratings",
    "Reward": "reward",
    "RobustReward": "robust",
    "Scores": "ratings",
    "Term": "composite",
    "Turn": "turns",
    "ZoomIQA": "model",
    "ZoomIQAReward": "reward",
    "rank": "ranking",
}

__all__ = [
    "Assessment",
    "CachedReward",
    "CompositeReward",
    "MetricReward",
    "Ranking",
    "Ratings",
    "Reward",
    "RobustReward",
    "Scores",
    "Term",
    "Turn",
    "ZoomIQA",
    "ZoomIQAReward",
    "rank",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
