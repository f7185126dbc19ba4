"""What a run knows of itself beside weights: counts, its best look, whether an alarm has ended it, its processes."""

import math
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Progress:
    """A part of a run's state."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """Start with `weights`, those of the base, as the best."""
        self.updates, self.seconds = 0, 0.0
        self.best_round, self.best_reward, self.best = 0, -math.inf, weights
        self.alarms: list[str] = []
        self.alarm_round = 0
        """Round of the first alarm; 0: none yet."""

    @property
    def stopped(self) -> bool:
        """Whether an alarm has ended the run."""
        return bool(self.alarms)

    def offer(self, number: int, reward: float, weights: dict[str, Tensor]) -> bool:
        """Take the weights of a look without alarm as the best if its reward is the highest; return whether it was."""
        if math.isnan(self.best_reward):  # NaN is never an ordering key: nothing was measured yet
            self.best_reward = -math.inf
        if not reward > self.best_reward:
            return False
        self.best_round, self.best_reward, self.best = number, reward, weights
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return everything."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        vars(self).update(state)


def finite(values: dict[str, float]) -> dict[str, float]:
    """Return what can be logged: numbers that were measured.

    >>> finite({"a": 1.0, "b": math.nan})
    {'a': 1.0}
    """
    return {name: float(value) for name, value in values.items() if math.isfinite(float(value))}


def processes(device: str | torch.device | None = None) -> Any:
    """Return accelerate's state of this process among all that were launched.

    Several processes on CPUs find each other only where accelerate is told that CPUs are meant.
    """
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available() if device is None else torch.device(device).type == "cpu"
    return PartialState(cpu=True) if on_cpu and int(os.environ.get("WORLD_SIZE", 1)) > 1 else PartialState()


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum over all processes; the tensor itself where there is one."""
    from accelerate.utils import reduce

    with torch.no_grad():
        return reduce(tensor, reduction="sum")


def gather(value: T) -> list[T]:
    """Return the value of each process, in their order, in every process."""
    from accelerate.utils import gather_object

    return list(gather_object([value]))


class Mean(float):
    """A mean that knows how many values it is of, so that the means of several processes can be put together."""

    count: int

    def __new__(cls, value: float, count: int = 1) -> "Mean":
        self = super().__new__(cls, value)
        self.count = count
        return self


def merged(reports: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the report of a round from those of its processes: counts (int) are added, means weighted by their
    counts (`Mean`) or alike.

    >>> merged([{"kept": 2, "score": Mean(1.0, 1)}, {"kept": 4, "score": Mean(4.0, 2)}, {"kept": 0}])
    {'kept': 6, 'score': 3.0}
    """
    if len(reports) == 1:
        return dict(reports[0])
    result: dict[str, float] = {}
    for name in dict.fromkeys(name for report in reports for name in report):
        values = [report[name] for report in reports if name in report]
        if all(isinstance(value, int) for value in values):
            result[name] = sum(values)
        else:
            counts = [value.count if isinstance(value, Mean) else 1 for value in values]
            total = sum(value * count for value, count in zip(values, counts, strict=True))
            result[name] = float(total / max(1, sum(counts)))
    return result


def agree(value: Any) -> Any:
    """Return the main process's value in every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]
