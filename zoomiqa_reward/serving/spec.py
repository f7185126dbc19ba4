"""What a server serves, and its limits.

The reward is named by plain values, which are sent to every replica; a replica builds the reward from them.

The limits say how much a server accepts and how long it waits. Every queue and every wait has a bound.
"""

import sys
from dataclasses import asdict, dataclass
from typing import Any

from zoomiqa_reward.images.loading import MAX_PIXELS
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.find import TOGETHER, ZOOMIQA, judged_together


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """A reward by name. All but `reward` and `search_path` belong to the model of `zoomiqa` or `conditioned`."""

    reward: str = ZOOMIQA
    """`zoomiqa`, `conditioned` and `referenced` (that model with lq or hr), a metric of restoration.metrics.registry
    (`niqe`), or `package.module:factory`."""
    model: str = "nano"
    """`nano`, a hub id, or a folder that every replica can read."""
    mode: str = "direct"
    """`direct` or `reason`."""
    question: str | None = None
    num_samples: int = 1
    """Answers drawn for one rating in mode `reason`."""
    device: str | None = None
    dtype: str | None = None
    """`float32`, `bfloat16` or `float16`; None: float32 on a CPU, bfloat16 on CUDA."""
    adapter: str | None = None
    protocol: str | None = None
    search_path: str | None = None
    """Folder in which a replica looks for `package.module` besides the installed ones."""

    def __post_init__(self) -> None:
        if self.has_model:
            from zoomiqa_reward.model.decoding import require_mode
            from zoomiqa_reward.model.turns import require_question

            require_mode(self.mode, self.num_samples)
            require_question(self.question)
            return
        model_options = ("model", "mode", "question", "num_samples", "device", "dtype", "adapter", "protocol")
        for name in model_options:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"{name}={getattr(self, name)!r} belongs to reward='zoomiqa', not to {self.reward!r}")

    @property
    def has_model(self) -> bool:
        """Whether the reward is a Zoom-IQA model's rating, alone or judged together with another image."""
        return self.reward == ZOOMIQA or self.reward in TOGETHER

    def build(self) -> tuple[Reward, Reward]:
        """Return the reward that answers strictly and the one that answers batches; they may be the same.

        Raises what loading a model raises, ValueError for a name that leads to no reward.
        """
        if self.has_model:
            from zoomiqa_reward import ZoomIQA, ZoomIQAReward

            iqa = ZoomIQA.from_pretrained(
                self.model, device=self.device, dtype=self.dtype, adapter=self.adapter, protocol=self.protocol
            )
            asked: dict[str, Any] = {"question": self.question, "num_samples": self.num_samples}
            strictly = ZoomIQAReward(iqa, self.mode, strict=True, **asked)
            batched = ZoomIQAReward(iqa, self.mode, strict=False, batch_size=MAX_BATCH, **asked)
            if self.reward in TOGETHER:
                return judged_together(strictly, self.reward), judged_together(batched, self.reward)
            return strictly, batched
        from zoomiqa_reward.rewards.find import find_reward

        if self.search_path is not None and self.search_path not in sys.path:
            sys.path.insert(0, self.search_path)
        reward = find_reward(self.reward)
        return reward, reward

    def require(self) -> None:
        """Raise what `build` would raise at once: a name, device, model or protocol that is not there.

        Cheap, so that a wrong name is told before processes start.
        """
        if self.has_model:
            from zoomiqa_reward.model.checkpoint import find_dtype, require_checkpoint
            from zoomiqa_reward.model.devices import find_device

            find_dtype(self.dtype, find_device(self.device))
            require_checkpoint(self.model, adapter=self.adapter, protocol=self.protocol)
            return
        from zoomiqa_reward.rewards.find import require_name

        if self.search_path is not None and self.search_path not in sys.path:
            sys.path.insert(0, self.search_path)
        require_name(self.reward)

    def as_json(self) -> dict[str, Any]:
        """Return what `/info` tells of it: no paths of the server's disk beyond the names given."""
        fields = asdict(self) if self.has_model else {"reward": self.reward}
        return {key: value for key, value in fields.items() if value is not None and key != "search_path"}


MAX_BATCH = 32
"""Images of one forward pass, at most; `Limits.batch_pixels` usually ends a batch earlier."""


MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one server. `/info` shows them, so that a client can cut its requests to size."""

    max_body_bytes: int = 64 * MIB
    """Bytes of one request's body; checked against Content-Length before the first of them is read."""
    max_images: int = 64
    """Images of one request."""
    max_pixels: int = 24_000_000
    """Pixels (width x height) of one image, checked before a PNG is decoded."""
    max_held_bytes: int = 256 * MIB
    """Bodies held at once, all requests together. While scored they take up to three times as much: the body, its
    images, and their copies in Ray's object store."""
    max_pending_images: int = 1024
    """Images accepted and not answered yet, all requests together."""
    max_connections: int = 256
    """Open connections; further ones are closed at once."""
    read_timeout_s: float = 20.0
    """From a connection's (or a next request's) first moment to the end of its head, and again to the end of its
    body: a client that sends byte by byte is cut off."""
    keep_alive_s: float = 15.0
    """How long a connection may lie idle between requests."""
    compute_timeout_s: float = 300.0
    """From a whole body to the answer; images not scored by then fail with `compute_timeout`."""
    batch_pixels: int = 1_000_000
    """Pixels of all images scored in one forward pass, for clients that ask for batching; a larger image goes alone."""
    batch_wait_s: float = 0.02
    """How long a batch that is not full waits for company."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value}: must be above 0")
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(f"max_pixels={self.max_pixels}: images of more than {MAX_PIXELS} are never decoded")
        if self.max_held_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_held_bytes={self.max_held_bytes} is below max_body_bytes={self.max_body_bytes}: a "
                "request of that size would always be refused; raise it"
            )
        if self.max_pending_images < self.max_images:
            raise ValueError(
                f"max_pending_images={self.max_pending_images} is below max_images={self.max_images}: a request "
                "of that many images would always be refused; raise it"
            )
