"""The pipeline and the reward take turns on the device: a 7B reward and a diffusion model rarely fit side by side."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zoomiqa_reward.rewards.base import Reward, modules_of


class Offloader:
    """Whose turn it is on the device."""

    def __init__(self, pipeline: Any, reward: Reward, device: torch.device, *, enabled: bool) -> None:
        """Without `enabled` both stay where they are."""
        self._drawing = [component for component in pipeline.components.values() if isinstance(component, nn.Module)]
        self._scoring = modules_of(reward)
        self._device, self.enabled = device, enabled
        if enabled and not self._scoring:
            raise ValueError(
                f"offload=True: no network was found in the reward {reward.name!r} or its parts, so nothing could be "
                "moved; a reward that computes without one (a metric) needs no offload: switch it off. Otherwise let "
                "its class declare `modules` (torch modules) or `parts` (rewards), as `rewards.base.Reward` says"
            )
        if enabled:
            self._move(self._scoring, torch.device("cpu"))
            self._move(self._drawing, device)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """The reward on the device, the pipeline in main memory; the other way round afterwards."""
        if not self.enabled:
            yield
            return
        self._move(self._drawing, torch.device("cpu"))
        self._move(self._scoring, self._device)
        try:
            yield
        finally:
            self._move(self._scoring, torch.device("cpu"))
            self._move(self._drawing, self._device)

    def _move(self, parts: list[nn.Module], to: torch.device) -> None:
        for module in parts:
            module.to(to)
        if to.type == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()  # or the other side would not find the room
