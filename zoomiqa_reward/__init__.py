"""Zoom-IQA as a reward and ranker for image restoration: how good is this image, why, how sure, which is best."""

from typing import TYPE_CHECKING

from zoomiqa_reward.lazy import lazy_exports

if TYPE_CHECKING:
    from zoomiqa_reward.errors import ZoomIQAError
    from zoomiqa_reward.images.loading import ImageError, load_image
    from zoomiqa_reward.model.quality_map import QualityMap, quality_map
    from zoomiqa_reward.model.ranking import Ranking, rank
    from zoomiqa_reward.model.ratings import Assessment, Ratings, Scores
    from zoomiqa_reward.model.turns import Turn
    from zoomiqa_reward.model.zoomiqa import ZoomIQA
    from zoomiqa_reward.rewards.base import Reward, require_pointwise, walk
    from zoomiqa_reward.rewards.cached import CachedReward
    from zoomiqa_reward.rewards.composite import CompositeReward, Term
    from zoomiqa_reward.rewards.consensus import ConsensusReward
    from zoomiqa_reward.rewards.loss import ZoomIQALoss
    from zoomiqa_reward.rewards.metric import MetricReward
    from zoomiqa_reward.rewards.robust import RobustReward
    from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward
    from zoomiqa_reward.serving.remote import RemoteReward
    from zoomiqa_reward.video.scoring import ClipScore, score_clip

__version__ = "0.1.0"

_HOMES = {
    "Assessment": "model.ratings",
    "CachedReward": "rewards.cached",
    "ClipScore": "video.scoring",
    "CompositeReward": "rewards.composite",
    "ConsensusReward": "rewards.consensus",
    "ImageError": "images.loading",
    "MetricReward": "rewards.metric",
    "QualityMap": "model.quality_map",
    "Ranking": "model.ranking",
    "Ratings": "model.ratings",
    "RemoteReward": "serving.remote",
    "Reward": "rewards.base",
    "RobustReward": "rewards.robust",
    "Scores": "model.ratings",
    "Term": "rewards.composite",
    "Turn": "model.turns",
    "ZoomIQA": "model.zoomiqa",
    "ZoomIQAError": "errors",
    "ZoomIQALoss": "rewards.loss",
    "ZoomIQAReward": "rewards.zoomiqa",
    "load_image": "images.loading",
    "quality_map": "model.quality_map",
    "rank": "model.ranking",
    "require_pointwise": "rewards.base",
    "score_clip": "video.scoring",
    "walk": "rewards.base",
}

__all__ = [
    "Assessment",
    "CachedReward",
    "ClipScore",
    "CompositeReward",
    "ConsensusReward",
    "ImageError",
    "MetricReward",
    "QualityMap",
    "Ranking",
    "Ratings",
    "RemoteReward",
    "Reward",
    "RobustReward",
    "Scores",
    "Term",
    "Turn",
    "ZoomIQA",
    "ZoomIQAError",
    "ZoomIQALoss",
    "ZoomIQAReward",
    "load_image",
    "quality_map",
    "rank",
    "require_pointwise",
    "score_clip",
    "walk",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
