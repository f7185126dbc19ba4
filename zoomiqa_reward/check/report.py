"""What a check returns: who was checked, the measures, the verdicts; and its JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from zoomiqa_reward.check.ladders import Pool
from zoomiqa_reward.check.measures import Measures
from zoomiqa_reward.check.verdict import Verdict
from zoomiqa_reward.runs.json_lines import plain


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
    """One entry per image that could not be measured, contentless and emptied ones apart."""
    notes: tuple[str, ...]
    shown: Pool
    """The first photograph's ladders, for the figure."""

    def as_json(self) -> dict[str, Any]:
        """Return the report without images; NaN and infinity are None (`spread` 0 tells the infinite ratios)."""
        verdicts = {
            verdict.use: {
                "verdict": verdict.verdict, "num_images": verdict.num_images, "min_images": verdict.min_images,
                "criteria": [asdict(criterion) | {"met": criterion.met} for criterion in verdict.criteria],
            }
            for verdict in self.verdicts
        }  # fmt: skip
        return plain(
            {
                "reward": self.reward, "fingerprint": self.fingerprint, "deterministic": self.deterministic,
                "differentiable": self.differentiable, "photographs": self.photographs, "verdicts": verdicts,
                "measures": asdict(self.measures), "errors": self.errors, "notes": self.notes,
            }
        )  # fmt: skip
