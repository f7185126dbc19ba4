"""Result of best-of-N, and its folder.

A kill at any moment neither loses nor repeats finished work:

    run.json           settings, fixed at the start; the ranking is added at the end
    candidates.jsonl   one line per candidate, appended when its image is in candidates/ and its score is known;
                       written again at the end for a reward that compares candidates and so scores all together
    cascade.jsonl      one line per candidate that the cascade's reward scored
    input.png          the low-quality image
    candidates/*.png   the images; best.png, sheet.png at the end

An image is renamed into place before its line is appended, and a line counts once its newline is there. So what a
kill leaves is at most one image without a line, which is made again, bit for bit, in its place.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from restoration.selection.candidates import Candidate, Explanation
from restoration.selection.sheet import sheet_of
from zoomiqa_reward.images.loading import save_png
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import append_line, as_float, plain, read_lines, write_json, write_lines
from zoomiqa_reward.runs.outputs import part_folder


@dataclass(frozen=True, kw_only=True, eq=False)
class BestOfN:
    """The candidates of one low-quality image."""

    candidates: tuple[Candidate, ...]
    """In the order of drawing: `candidates[k]` is candidate k."""
    identical: bool
    """All images are the same, so nothing was chosen. False for fewer than two."""
    stopped_early: bool
    notes: tuple[str, ...]
    """Notes that a reader of the numbers needs, such as why all candidates are identical."""
    report: Mapping[str, object]
    """The content of run.json."""
    image_lq: Image.Image | None = None
    """The input in 8 bits; None in a result that was put together by other code."""

    @property
    def order(self) -> tuple[Candidate, ...]:
        """The candidates, best first. Those without a score come last."""
        return tuple(
            sorted(
                self.candidates, key=lambda candidate: (candidate.rank is None, candidate.rank or 0, candidate.index)
            )
        )

    @property
    def best(self) -> Candidate:
        """The candidate of rank 1. Raises ValueError if none could be measured."""
        first = self.order[0]
        if not first.valid:
            raise ValueError(f"none of {len(self.candidates)} candidates could be measured; the first: {first.error}")
        return first

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write run.json, candidates.jsonl, the images that are held, best.png and sheet.png; return the folder.

        A run with `out` has written them already. Raises OSError, and ValueError for a folder that holds another run.
        """
        return save_result(self, Path(folder))


PENDING = "not scored yet: the run ended before the whole pool was drawn"
"""Why there is no score in the folder, of a reward that compares candidates."""
_NOT_RECORDED = {"rank", "held", "cascade_score", "cascade_error"}


class DrawFolder:
    """Candidates on disk; use `open_run`."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Read what is there. Raises ValueError for a folder of another run, or a damaged one."""
        self.folder = folder
        bind(folder, settings, key="settings", results=("candidates.jsonl",), facts=lambda: {"finished": False})
        part_folder(folder / "candidates")
        for half in (folder / "candidates").glob("*.tmp"):
            half.unlink()  # of a kill inside save_png
        self.done = {row["index"]: self._candidate(row) for row in read_lines(folder / "candidates.jsonl")}
        self.cascaded = {(row["index"], row["reward"]): row for row in read_lines(folder / "cascade.jsonl")}

    def add(self, candidate: Candidate, image: Image.Image | None) -> Candidate:
        """Write the image, then the line; return the candidate with its file.

        A candidate that is the same as another shares that one's file.
        """
        file = candidate.file
        if image is not None and file is None:
            file = save_png(image, self.folder / "candidates" / f"{candidate.index:04d}.png")
        candidate = replace(candidate, file=file)
        append_line(self.folder / "candidates.jsonl", record_of(candidate, self.folder))
        self.done[candidate.index] = candidate
        return candidate

    def score_together(self, candidates: Sequence[Candidate]) -> None:
        """Write all lines again, with the scores of one group. The scores of candidates outside of it are dropped."""
        pending: dict[str, Any] = {"score": math.nan, "std": math.nan, "valid": False, "error": PENDING}
        others = {index: replace(item, **pending) for index, item in self.done.items() if item.pixels is not None}
        self.done |= others | {candidate.index: replace(candidate, held=None) for candidate in candidates}
        rows = [record_of(item, self.folder) for _, item in sorted(self.done.items())]
        write_lines(self.folder / "candidates.jsonl", rows)

    def add_cascade(self, row: dict[str, Any]) -> None:
        """Append what the cascade's reward said: index, reward (fingerprint), score, error, explanation."""
        append_line(self.folder / "cascade.jsonl", row)
        self.cascaded[row["index"], row["reward"]] = row

    def _candidate(self, row: dict[str, Any]) -> Candidate:
        file = None if row["file"] is None else self.folder / row["file"]
        if file is not None and not file.exists():
            raise ValueError(f"{file} is missing, though candidates.jsonl lists it: put it back or use another folder")
        score, std = (as_float(row[key]) for key in ("score", "std"))
        why = Explanation.from_json(row.get("explanation"))
        return Candidate(**(row | {"file": file, "score": score, "std": std, "explanation": why}))


@contextmanager
def open_run(folder: Path, settings: dict[str, Any]) -> Iterator[DrawFolder]:
    """Open the folder for one process. Raises ValueError where another one works in it, or it holds another run."""
    with locked(folder):
        yield DrawFolder(folder, settings)


def settings_in(report: Mapping[str, object]) -> dict[str, Any]:
    """Return what a run depends on, from its report."""
    settings = report["settings"]
    assert isinstance(settings, dict)
    return settings


def save_result(result: "BestOfN", folder: Path) -> Path:
    """Write a result that has no folder yet; see `BestOfN.save`."""
    with open_run(folder, settings_in(result.report)) as run:
        for candidate in result.candidates:
            if candidate.index not in run.done:
                twin = None if candidate.same_as is None else run.done[candidate.same_as].file
                run.add(replace(candidate, file=twin), candidate.image if candidate.has_image() else None)
    write_artefacts(result, folder)
    return folder


def write_artefacts(result: "BestOfN", folder: Path) -> None:
    """Write input.png, best.png, sheet.png and the finished run.json."""
    if result.order[0].valid:
        save_png(result.best.image, folder / "best.png")
    if result.image_lq is not None:
        save_png(result.image_lq, folder / "input.png")
    save_png(sheet_of(result.order, result.report, result.image_lq), folder / "sheet.png")
    write_json(folder / "run.json", {**result.report, "finished": True})


def record_of(candidate: Candidate, folder: Path | None) -> dict[str, Any]:
    """Return a candidate's line: its fields, NaN as null, the file relative to the folder."""
    row = {item.name: getattr(candidate, item.name) for item in fields(candidate) if item.name not in _NOT_RECORDED}
    row["explanation"] = None if candidate.explanation is None else asdict(candidate.explanation)
    file = candidate.file
    return plain(row) | {
        "file": file.relative_to(folder).as_posix() if file is not None and folder is not None else None
    }
