"""Every exception of this project by name: `except ZoomIQAError` catches what the three packages raise under a name.

Those of this package can be imported from here; `restoration` and `train_iqa.data` export theirs. Wrong arguments of a
function are a plain ValueError or TypeError.
"""

from typing import TYPE_CHECKING

from zoomiqa_reward.lazy import lazy_exports

if TYPE_CHECKING:
    from zoomiqa_reward.cli.config_file import ConfigFileError
    from zoomiqa_reward.images.loading import ImageError
    from zoomiqa_reward.model.checkpoint import CheckpointError
    from zoomiqa_reward.model.inputs import PromptError
    from zoomiqa_reward.model.text_server.client import NotOffered, RequestFailed, ServerError, ServerRefused
    from zoomiqa_reward.protocol.answers import AnswerError
    from zoomiqa_reward.protocol.spec import ProtocolError
    from zoomiqa_reward.rewards.base import GroupwiseError, NoReward
    from zoomiqa_reward.rewards.score_store import CacheError
    from zoomiqa_reward.runs.locks import SharingError
    from zoomiqa_reward.runs.outputs import OutputError
    from zoomiqa_reward.runs.settings import AnotherRun
    from zoomiqa_reward.serving.errors import FingerprintError, ServingError
    from zoomiqa_reward.video.decoding import VideoError


class ZoomIQAError(Exception):
    """Base of all exceptions of the three packages. Each is also a ValueError, RuntimeError, ImportError, ..."""


class UnknownState(ZoomIQAError, ValueError):
    """The state behind a value cannot be read, so the value can be neither cached nor resumed."""


_HOMES = {
    "AnotherRun": "runs.settings",
    "AnswerError": "protocol.answers",
    "CacheError": "rewards.score_store",
    "CheckpointError": "model.checkpoint",
    "ConfigFileError": "cli.config_file",
    "FingerprintError": "serving.errors",
    "GroupwiseError": "rewards.base",
    "ImageError": "images.loading",
    "NoReward": "rewards.base",
    "NotOffered": "model.text_server.client",
    "OutputError": "runs.outputs",
    "PromptError": "model.inputs",
    "ProtocolError": "protocol.spec",
    "RequestFailed": "model.text_server.client",
    "ServerError": "model.text_server.client",
    "ServerRefused": "model.text_server.client",
    "ServingError": "serving.errors",
    "SharingError": "runs.locks",
    "VideoError": "video.decoding",
}

__all__ = [
    "AnotherRun",
    "AnswerError",
    "CacheError",
    "CheckpointError",
    "ConfigFileError",
    "FingerprintError",
    "GroupwiseError",
    "ImageError",
    "NoReward",
    "NotOffered",
    "OutputError",
    "PromptError",
    "ProtocolError",
    "RequestFailed",
    "ServerError",
    "ServerRefused",
    "ServingError",
    "SharingError",
    "UnknownState",
    "VideoError",
    "ZoomIQAError",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES, root="zoomiqa_reward")
