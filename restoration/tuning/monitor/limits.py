"""How far a signal may move from the base model's: mean +- deviations of that mean, on the side that hacking takes."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from restoration.metrics.registry import find_metrics
from restoration.tuning.config import MonitorConfig
from zoomiqa_reward.runs.bootstrap import bootstrap_deviation
from zoomiqa_reward.runs.json_lines import write_json

SIDES = {"reward": "low", "fragility": "high", "lr_consistency": "low", "fine_energy": "both", "grid_peak": "high",
         "gram": "high", "diversity": "low"}  # fmt: skip
"""On which side of the base a signal alarms; a held-out metric does on its worse one."""

LEAST_MEASURED = 2
"""Images below which a mean has no deviation, and so no limit."""
MOST_LOST = 0.5
"""Share of the images that the base model could measure; more lost is an alarm of its own."""
LEAST_ROOM = {"lr_consistency": 1.0}
"""Smallest distance of a limit from the base, whatever the deviation: a base at the cap of LR-consistency has none."""
LEAST_FRAGILITY = 0.01
"""The same for `fragility`, as a share of the reward's range: a smaller loss by a JPEG is no alarm."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a signal may not cross."""

    base: float
    """The base model's mean."""
    deviation: float
    """Bootstrap deviation of that mean over images and candidates."""
    low: float | None
    high: float | None

    def crossed(self, value: float) -> bool:
        """Return whether a value is outside; one that could not be measured any more is."""
        if not math.isfinite(value):
            return True
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)

    def words(self, name: str, value: float) -> str:
        """Return what to say of a value outside."""
        if not math.isfinite(value):
            return f"{name} can no longer be measured (the base model had {self.base:.4g})"
        side, bound = ("below", self.low) if self.low is not None and value < self.low else ("above", self.high)
        return f"{name} {value:.4g} is {side} {bound:.4g} (the base model has {self.base:.4g})"


def limits_of(
    rows: dict[str, list[float]], again: dict[str, list[float]], config: MonitorConfig, room_to: dict[str, float]
) -> tuple[dict[str, Limit], list[str]]:
    """Return the limits by signal, and the signals that have none: the base model has too few measurable images.

    Images that one of the base model's draws left unmeasured are no part of a limit; see `compared`.

    rows: of the base model's candidates by the monitor's seeds, one number per validation image; their mean is the
    limits' centre. again: of its candidates by other seeds, where they were measured. room_to: by signal, a value that
    is no alarm: limits give way to it. `kl` is 0 for the base, so its limit is a setting.
    """
    metrics = {metric.name: "low" if metric.higher_is_better else "high" for metric in find_metrics(config.metrics)}
    sides, limits, left_out = SIDES | metrics, {}, []
    for name, row in rows.items():
        other = again.get(name)
        measured = np.isfinite(row) if other is None else np.isfinite(row) & np.isfinite(other)
        if measured.sum() < LEAST_MEASURED:
            left_out.append(name)
            continue
        row = [value for value, is_measured in zip(row, measured, strict=True) if is_measured]
        other = None if other is None else [value for value, ok in zip(other, measured, strict=True) if ok]
        base, deviation = float(np.mean(row)), bootstrap_deviation(row, other)
        room = max(config.deviations * deviation, LEAST_ROOM.get(name, 0.0))
        limits[name] = Limit(
            base=base, deviation=deviation,
            low=min(base - room, room_to.get(name, base)) if sides[name] in ("low", "both") else None,
            high=max(base + room, room_to.get(name, base)) if sides[name] in ("high", "both") else None,
        )  # fmt: skip
    return limits | {"kl": Limit(base=0.0, deviation=0.0, low=None, high=config.max_kl)}, left_out


def compared(now: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Return the mean of a signal now and of the base model, over the images that both could measure; NaN for none.

    >>> compared([1.0, math.nan, 3.0], [0.0, 5.0, 2.0])
    (2.0, 1.0)
    """
    pairs = [(a, b) for a, b in zip(now, base, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not pairs:
        return math.nan, math.nan
    return float(np.mean([a for a, _ in pairs])), float(np.mean([b for _, b in pairs]))


def count_newly_unmeasured(now: Sequence[float], base: Sequence[float]) -> int:
    """Return how many images the base model could measure and this one cannot."""
    return sum(math.isfinite(b) and not math.isfinite(a) for a, b in zip(now, base, strict=True))


def write_limits(file: Path, limits: dict[str, Limit], left_out: Sequence[str]) -> None:
    """Write the limits in one step."""
    write_json(file, {"left_out": list(left_out), "limits": {name: asdict(limit) for name, limit in limits.items()}})


def read_limits(file: Path) -> tuple[dict[str, Limit], list[str]]:
    """Return what `write_limits` wrote."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return {name: Limit(**fields) for name, fields in content["limits"].items()}, content["left_out"]
