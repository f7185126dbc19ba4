"""What a check returns: who was checked, the measures, the verdicts; and its JSON."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from zoomiqa_reward.check.ladders import Pool
from zoomiqa_reward.check.measures import Measures
from zoomiqa_reward.check.verdict import Verdict


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckReport:
    """One reward, checked."""

    reward: str
    fingerprint: str | None
    deterministic: bool
    """What the reward says of itself; `notes` has it where the repeats say otherwise."""
    differentiable: bool
    photographs: tuple[str, ...]
    measures: Measures
    verdicts: tuple[Verdict, ...]
    errors: tuple[str, ...]
    """One entry per image that could not be measured."""
    notes: tuple[str, ...]
    shown: Pool
    """The first photograph's ladders, for the figure."""

    def as_json(self) -> dict[str, Any]:
        """Return the report without images; NaN and infinity are None (`spread` 0 tells the infinite ratios)."""
        verdicts = {
            one.use: {
                "verdict": one.verdict,
                "criteria": [asdict(criterion) | {"met": criterion.met} for criterion in one.criteria],
            }
            for one in self.verdicts
        }
        return _plain(
            {
                "reward": self.reward, "fingerprint": self.fingerprint, "deterministic": self.deterministic,
                "differentiable": self.differentiable, "photographs": self.photographs, "verdicts": verdicts,
                "measures": asdict(self.measures), "errors": self.errors, "notes": self.notes,
            }
        )  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
