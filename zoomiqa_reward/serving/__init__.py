"""The reward as a service: `zoomiqa serve` answers over HTTP, `RemoteReward(url)` asks.

Both speak the format of `serving.wire`: lossless pixels in one safetensors file, scores in JSON. The client needs
nothing beyond the core; the server needs the extra `serve` (Ray Serve), which is imported when a server starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the client must not load the server."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
