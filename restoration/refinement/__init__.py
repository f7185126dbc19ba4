"""Restoration guided by the model's reasoning: the region that it names is restored again.

`refine` runs it, `zoomiqa refine` does it from a shell, `docs/refine.md` says what to expect. `regions.py`: what
the model asks for, which pixels that is and how the new ones go in; `rounds.py`: the loop; `records.py`: its rounds;
`result.py`: what comes back, and the folder; `strip.py`: the rounds as one image.
"""

from restoration.refinement.records import Attempt, Round
from restoration.refinement.result import Refined
from restoration.refinement.rounds import refine

__all__ = ["Attempt", "Refined", "Round", "refine"]
