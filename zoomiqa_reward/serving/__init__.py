"""The reward as a service: `zoomiqa serve` answers over HTTP, `RemoteReward(url)` asks.

Both speak the format of `serving.wire`: lossless pixels in one safetensors file, scores in JSON. The client needs
nothing beyond the core; the server needs the extra `serve` (Ray Serve), which is imported when a server starts.
"""

from typing import TYPE_CHECKING

from zoomiqa_reward.lazy import lazy_exports

if TYPE_CHECKING:
    from zoomiqa_reward.serving.errors import FingerprintError, ServingError
    from zoomiqa_reward.serving.remote import RemoteReward
    from zoomiqa_reward.serving.server import RewardServer, ServeConfig
    from zoomiqa_reward.serving.spec import Limits, RewardSpec

_HOMES = {
    "FingerprintError": "errors",
    "Limits": "spec",
    "RemoteReward": "remote",
    "RewardServer": "server",
    "RewardSpec": "spec",
    "ServeConfig": "server",
    "ServingError": "errors",
}

__all__ = [
    "FingerprintError",
    "Limits",
    "RemoteReward",
    "RewardServer",
    "RewardSpec",
    "ServeConfig",
    "ServingError",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
