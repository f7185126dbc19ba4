"""From hints to words: for each state of an image, the hint that shows it and from where on it is possible or certain.

Between the two numbers both the claim and its denial stand: a hint in doubt contradicts neither. The numbers
stand in `hint_thresholds.json` with where they came from; `calibrate.py` chooses them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from train_iqa.curation.hints import Hints, ImageHints

SHIPPED = Path(__file__).with_name("hint_thresholds.json")

STATES: Mapping[str, tuple[str, int]] = {
    "noisy": ("noise", 1),
    "blurred": ("blur", 1),
    "blocky": ("blocking", 1),
    "dark": ("brightness", -1),
    "bright": ("brightness", 1),
    "flat": ("contrast", -1),
    "harsh": ("contrast", 1),
    "faded": ("colourfulness", -1),
    "garish": ("colourfulness", 1),
}
"""State -> its hint, and +1 where high values show it, -1 where low ones do."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Of one state, in the hint's own unit."""

    possible: float
    """Short of it the state is not there."""
    certain: float
    """Beyond it the state is there."""


@dataclass(frozen=True, kw_only=True)
class HintThresholds:
    """Of all states."""

    of: Mapping[str, Threshold]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What they were chosen on, how, and how many images each side had."""

    def __post_init__(self) -> None:
        if set(self.of) != set(STATES):
            raise ValueError(f"thresholds for {sorted(self.of)}: must be for {', '.join(STATES)}")
        for state, threshold in self.of.items():
            sign = STATES[state][1]
            if not sign * threshold.possible <= sign * threshold.certain:
                raise ValueError(f"{state}: certain={threshold.certain} must lie beyond possible={threshold.possible}")

    @classmethod
    def load(cls, file: Path = SHIPPED) -> "HintThresholds":
        """Read a file of thresholds. Raises ValueError naming it."""
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                of={name: Threshold(**threshold) for name, threshold in data["of"].items()},
                provenance=data["provenance"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: no readable file of hint thresholds: {error}") from error

    def as_json(self) -> dict[str, Any]:
        """Return the file's content."""
        return {
            "of": {name: asdict(threshold) for name, threshold in self.of.items()},
            "provenance": dict(self.provenance),
        }

    def belief(self, state: str, hints: Hints) -> float:
        """Return 1 where the hints show the state, 0 where they show that it is not there, 0.5 in between; NaN."""
        name, sign = STATES[state]
        value = sign * getattr(hints, name)
        if math.isnan(value):
            return math.nan
        limit = self.of[state]
        return 1.0 if value > sign * limit.certain else 0.0 if value < sign * limit.possible else 0.5

    def words(self, hints: Hints) -> dict[str, str]:
        """Return hint -> its value in words, for a judge that reads."""
        phrases: dict[str, list[str]] = {}
        for state, (name, _) in STATES.items():
            belief = self.belief(state, hints)
            states = phrases.setdefault(name, [])
            if math.isnan(belief):
                states.append("not measurable")
            elif belief == 1.0:
                states.append(state)
            elif belief == 0.5:
                states.append(f"perhaps {state}")
        usual = {"noise": "clean", "blur": "sharp", "blocking": "no blocks"}
        return {name: states[0] if states else usual.get(name, "normal") for name, states in phrases.items()}

    def contradicts(self, state: str, is_present: bool, hints: ImageHints, *, in_box: bool) -> bool:
        """Return whether the hints speak against a claim that a state is, or is not, there.

        in_box: the claim is about the box that the answer names, so only the hints inside it count. Otherwise a state
        that either the whole image or the box may show is there for somebody who says so, and one that either of them
        certainly shows is wrongly denied. A hint that could not be measured says nothing.
        """
        views = [hints.box] if in_box and hints.box is not None else [hints.whole, hints.box]
        beliefs = [self.belief(state, view) for view in views if view is not None]
        beliefs = [belief for belief in beliefs if not math.isnan(belief)]
        if not beliefs:
            return False
        return max(beliefs) == 0.0 if is_present else max(beliefs) == 1.0


@cache
def shipped() -> HintThresholds:
    """Return the thresholds of this release."""
    return HintThresholds.load()
