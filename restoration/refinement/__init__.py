"""Restoration guided by the model's reasoning: the region that it wants to look at closer is restored again.

`refine` runs it, `zoomiqa refine` does it from a shell, `docs/refine.md` says what to expect. `guidance.py`: what the
model asks for; `regions.py`: which pixels that is and how the new ones go in; `rounds.py`: the loop; `records.py`: what
comes back; `journal.py`: the folder; `strip.py`: the rounds as one picture.
"""

from restoration.refinement.records import Attempt, Round
from restoration.refinement.result import Refined
from restoration.refinement.rounds import refine

__all__ = ["Attempt", "Refined", "Round", "refine"]
