"""Moving average of the trained weights: what is monitored and saved, since single updates are noisy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Average of parameters over updates."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Start at the parameters' present values.

        decay: of one update; the first ones use (1 + n) / (10 + n) where that is less, so that the start is soon
        forgotten. 0 follows exactly. Raises ValueError outside [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must be at least 0 and below 1")
        self.parameters, self.decay, self.updates = list(parameters), decay, 0
        self.averages = [part.detach().clone() for part in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Mix in the present values."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for average, part in zip(self.averages, self.parameters, strict=True):
            average.lerp_(part.detach().to(average.device), 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages instead of the values inside."""
        held = [part.detach().clone() for part in self.parameters]
        self._set(self.averages)
        try:
            yield
        finally:
            self._set(held)

    def state_dict(self) -> dict[str, list[Tensor] | int]:
        """Return averages and count."""
        return {"averages": [part.cpu().clone() for part in self.averages], "updates": self.updates}

    def load_state_dict(self, state: dict[str, list[Tensor] | int]) -> None:
        """Restore what `state_dict` returned."""
        for average, part in zip(self.averages, state["averages"], strict=True):  # type: ignore[arg-type]
            average.copy_(part)
        self.updates = int(state["updates"])  # type: ignore[arg-type]

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for part, value in zip(self.parameters, values, strict=True):
            part.copy_(value)
