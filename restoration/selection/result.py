"""What best-of-N returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restoration.selection.candidates import Candidate
from restoration.selection.run_folder import save_result


@dataclass(frozen=True, kw_only=True, eq=False)
class BestOfN:
    """The candidates of one low-quality picture."""

    candidates: tuple[Candidate, ...]
    """In the order drawn: `candidates[k]` is candidate k."""
    identical: bool
    """All pictures are the same, so there was nothing to choose. False where there are fewer than two."""
    stopped_early: bool
    notes: tuple[str, ...]
    """What a reader of the numbers has to know, such as why all candidates are identical."""
    report: dict[str, Any]
    """What stands in run.json."""

    @property
    def order(self) -> tuple[Candidate, ...]:
        """The candidates, best first, those without a score last."""
        return tuple(sorted(self.candidates, key=lambda one: (one.rank is None, one.rank or 0, one.index)))

    @property
    def best(self) -> Candidate:
        """The candidate of rank 1. Raises ValueError where none could be measured."""
        first = self.order[0]
        if not first.valid:
            raise ValueError(f"none of {len(self.candidates)} candidates could be measured; the first: {first.error}")
        return first

    def save(self, folder: Any) -> Path:
        """Write run.json, candidates.jsonl, the pictures that are held, best.png and sheet.png; return the folder.

        For a run with `out` they are there already. Raises OSError, and ValueError for a folder that holds another
        run.
        """
        return save_result(self, Path(folder))
