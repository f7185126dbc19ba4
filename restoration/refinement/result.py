"""Result of a refinement, and its folder.

A kill at any moment loses at most the round in progress:

    run.json        settings, fixed at the start; the outcome is added at the end
    rounds.jsonl    one line per round, appended when its image is in rounds/
    rounds/*.png    the best attempt of each round, kept or not; refined.png, strip.png at the end
    start/          round 0, a best-of-N run of its own

An image is renamed into place before its line is appended, and a line counts once its newline is there.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from restoration.refinement.records import Round, round_of, row_of
from restoration.refinement.strip import strip_of
from restoration.selection.result import BestOfN, settings_in
from zoomiqa_reward.images.loading import save_png
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import append_line, read_lines, write_json
from zoomiqa_reward.runs.outputs import part_folder


@dataclass(frozen=True, kw_only=True, eq=False)
class Refined:
    """A refined restoration, and the rounds that led to it."""

    history: tuple[Round, ...]
    """Round 0 first. The last round may have no image; its reason then tells why the run stopped."""
    start: BestOfN
    """The candidates of round 0."""
    image_lq: Tensor
    """[3, height, width] float32 in [0, 1]: the input."""
    stopped: str
    """`satisfied`: the model asks for no closer look. `budget`: all rounds are used. `unreadable`: the answer
    cannot be read. `deterministic`: the restorer would repeat the refused region."""
    report: Mapping[str, object]
    """The content of run.json."""

    @property
    def ending(self) -> str:
        """Why the run stopped, in words."""
        reason = self.history[-1].reason
        return {
            "satisfied": reason, "budget": "all rounds are used",
            "unreadable": f"the model's answer cannot be read ({reason})",
            "deterministic": "the restorer takes no seed, so it would repeat what was refused",
        }[self.stopped]  # fmt: skip

    @property
    def kept(self) -> Round:
        """The last round that was accepted."""
        return next(round_ for round_ in reversed(self.history) if round_.accepted)

    @property
    def image(self) -> Image.Image:
        """The result, RGB."""
        return self.kept.image

    @property
    def reward(self) -> float:
        """The result's reward; of one that compares images, the value within the group of its round."""
        return self.kept.reward

    @property
    def gain(self) -> float:
        """Reward of the result less that of the start, which is the result of best-of-N alone.

        Of a reward that compares images it is the sum of what each kept round gained over the image before it, as the
        values of two groups cannot be compared.
        """
        kept = [round_ for round_ in self.history[1:] if round_.accepted]
        if any(not math.isnan(round_.before) for round_ in kept):
            return math.fsum(round_.reward - round_.before for round_ in kept)
        return self.kept.reward - self.history[0].reward

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write refined.png, strip.png, run.json, rounds.jsonl, rounds/ and start/; return the folder.

        A run with `out` has written them already. Raises OSError, and ValueError for a folder that holds another run.
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
        bind(folder, settings, key="settings", results=(LINES,), facts=lambda: {"finished": False})
        part_folder(folder / "rounds")
        for half in (folder / "rounds").glob("*.tmp"):
            half.unlink()  # of a kill inside save_png
        self.history = [round_of(row, folder) for row in read_lines(folder / LINES)]
        if [item.number for item in self.history] != list(range(len(self.history))):
            raise ValueError(f"{folder / LINES}: the rounds are not 0, 1, 2, ... in order; use another folder")

    def add(self, item: Round, image: Image.Image | None) -> Round:
        """Record a round with its best try; return it with its file, or with the image itself."""
        if self.folder is None:
            item = replace(item, held=image)
        else:
            file = self.folder / "rounds" / f"{item.number:02d}.png"
            item = replace(item, file=None if image is None else save_png(image, file), held=None)
            append_line(self.folder / LINES, row_of(item, self.folder))
        self.history.append(item)
        return item


def save_result(result: "Refined", folder: Path) -> Path:
    """Write a result that has no folder yet; see `Refined.save`."""
    with locked(folder):
        return _save_result(result, folder)


def _save_result(result: "Refined", folder: Path) -> Path:
    result.start.save(folder / "start")
    journal = Journal(folder, settings_in(result.report))
    for item in result.history[len(journal.history) :]:
        journal.add(item, item.image if item.has_image() else None)
    rows = [row_of(item, folder) for item in journal.history[: len(result.history)]]  # they have files now
    write_artefacts(replace(result, report={**result.report, "rounds": rows}), folder)
    return folder


def write_artefacts(result: "Refined", folder: Path) -> None:
    """Write refined.png, strip.png and the finished run.json."""
    save_png(result.image, folder / "refined.png")
    save_png(strip_of(result), folder / "strip.png")
    write_json(folder / "run.json", {**result.report, "finished": True})
