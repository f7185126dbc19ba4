"""What refinement returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from restoration.refinement.journal import save_result
from restoration.refinement.records import Round
from restoration.selection.result import BestOfN


@dataclass(frozen=True, kw_only=True, eq=False)
class Refined:
    """A restoration, and how it came about."""

    history: tuple[Round, ...]
    """Round 0 first. The last one may have made no picture, and then says why the run stopped."""
    start: BestOfN
    """The candidates of round 0."""
    image_lq: Tensor
    """[3, height, width] float32 in [0, 1]: what was restored."""
    stopped: str
    """`satisfied`: the model asks for no closer look. `budget`: all rounds are used. `unreadable`: it cannot be told
    what the model asks for. `deterministic`: the region would come out the same again."""
    report: dict[str, Any]
    """What stands in run.json."""

    @property
    def kept(self) -> Round:
        """The last round that was accepted."""
        return next(one for one in reversed(self.history) if one.accepted)

    @property
    def image(self) -> Image.Image:
        """The result, RGB."""
        return self.kept.image

    @property
    def reward(self) -> float:
        """The result's reward."""
        return self.kept.reward

    @property
    def gain(self) -> float:
        """How far the reward rose above that of the start, which is what best-of-N alone gives."""
        return self.kept.reward - self.history[0].reward

    def save(self, folder: Any) -> Path:
        """Write refined.png, strip.png, run.json, rounds.jsonl, rounds/ and start/; return the folder.

        For a run with `out` they are there already. Raises OSError, and ValueError for a folder that holds another
        run.
        """
        return save_result(self, Path(folder))
