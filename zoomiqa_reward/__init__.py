"""Zoom-IQA as a reward and ranker for image restoration: how good is this image, why, how sure, which is best."""

from typing import TYPE_CHECKING

from zoomiqa_reward.lazy import lazy_exports

if TYPE_CHECKING:
    from zoomiqa_reward.images.loading import ImageError, load_image
    from zoomiqa_reward.model.ranking import Ranking, rank
    from zoomiqa_reward.model.ratings import Assessment, Ratings, Scores
    from zoomiqa_reward.model.turns import Turn
    from zoomiqa_reward.model.zoomiqa import ZoomIQA
    from zoomiqa_reward.rewards.cached import CachedReward
    from zoomiqa_reward.rewards.composite import CompositeReward, Term
    from zoomiqa_reward.rewards.reward import MetricReward, Reward, ZoomIQAReward
    from zoomiqa_reward.rewards.robust import RobustReward
    from zoomiqa_reward.serving.remote import RemoteReward

__version__ = "0.1.0"

_HOMES = {
    "Assessment": "model.ratings",
    "CachedReward": "rewards.cached",
    "CompositeReward": "rewards.composite",
    "ImageError": "images.loading",
    "MetricReward": "rewards.reward",
    "Ranking": "model.ranking",
    "Ratings": "model.ratings",
    "RemoteReward": "serving.remote",
    "Reward": "rewards.reward",
    "RobustReward": "rewards.robust",
    "Scores": "model.ratings",
    "Term": "rewards.composite",
    "Turn": "model.turns",
    "ZoomIQA": "model.zoomiqa",
    "ZoomIQAReward": "rewards.reward",
    "load_image": "images.loading",
    "rank": "model.ranking",
}

__all__ = [
    "Assessment",
    "CachedReward",
    "CompositeReward",
    "ImageError",
    "MetricReward",
    "Ranking",
    "Ratings",
    "RemoteReward",
    "Reward",
    "RobustReward",
    "Scores",
    "Term",
    "Turn",
    "ZoomIQA",
    "ZoomIQAReward",
    "load_image",
    "rank",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
