"""What refinement returns, and the folder that it lies in.

What refinement returns.

The folder of a refinement, written so that a kill at any moment loses at most the round in work.

    run.json        what the run is made of (`settings`, fixed at its start), and its outcome once it is done
    rounds.jsonl    one line a round, appended when its image lies in rounds/
    rounds/*.png    each round's best try, kept or not; refined.png, strip.png at the end
    start/          round 0, a best-of-N run of its own

An image is renamed into place before its line is appended, and a line counts once its newline is there.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from restoration.refinement.records import Round, round_of, row_of
from restoration.refinement.strip import strip_of
from restoration.selection.result import BestOfN, check_settings
from zoomiqa_reward.images.loading import save_png
from zoomiqa_reward.runs.json_lines import append_line, read_lines, write_json


@dataclass(frozen=True, kw_only=True, eq=False)
class Refined:
    """A restoration, and how it came about."""

    history: tuple[Round, ...]
    """Round 0 first. The last one may have made no image, and then says why the run stopped."""
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


LINES = "rounds.jsonl"


class Journal:
    """The rounds so far, on disk or, without a folder, in memory."""

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        """Read what is there. Raises ValueError for a folder of another run, or a damaged one."""
        self.folder = folder
        self.history: list[Round] = []
        if folder is None:
            return
        (folder / "rounds").mkdir(parents=True, exist_ok=True)
        if (folder / LINES).exists() and not (folder / "run.json").exists():
            raise ValueError(f"{folder} holds rounds without run.json: what made them is unknown; use another one")
        check_settings(folder, settings)
        for half in (folder / "rounds").glob("*.tmp"):
            half.unlink()  # of a kill inside save_png
        self.history = [round_of(row, folder) for row in read_lines(folder / LINES)]
        if [one.number for one in self.history] != list(range(len(self.history))):
            raise ValueError(f"{folder / LINES}: the rounds are not 0, 1, 2, ... in order; use another folder")

    def add(self, one: Round, image: Image.Image | None) -> Round:
        """Record a round with its best try; return it with its file, or with the image itself."""
        if self.folder is None:
            one = replace(one, held=image)
        else:
            file = self.folder / "rounds" / f"{one.number:02d}.png"
            one = replace(one, file=None if image is None else save_png(image, file), held=None)
            append_line(self.folder / LINES, row_of(one, self.folder))
        self.history.append(one)
        return one


def save_result(result: "Refined", folder: Path) -> Path:
    """Write a result that has no folder yet; see `Refined.save`."""
    result.start.save(folder / "start")
    journal = Journal(folder, result.report["settings"])
    for one in result.history[len(journal.history) :]:
        journal.add(one, one.image if one.has_image() else None)
    rows = [row_of(one, folder) for one in journal.history[: len(result.history)]]  # they have files now
    write_artefacts(replace(result, report=result.report | {"rounds": rows}), folder)
    return folder


def write_artefacts(result: "Refined", folder: Path) -> None:
    """Write refined.png, strip.png and the finished run.json."""
    save_png(result.image, folder / "refined.png")
    save_png(strip_of(result), folder / "strip.png")
    write_json(folder / "run.json", result.report | {"finished": True})
