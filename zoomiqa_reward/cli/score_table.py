"""`zoomiqa score --out`: ratings of many images in a table that a second call goes on with, and their summary.

A row is kept where the file's bytes and all that the rating depends on are the same: its columns `sha256` and
`fingerprint`. A renamed file is not measured again, a failed one is.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.images.listing import printable
from zoomiqa_reward.model.measuring import RatedImage, measure
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward
from zoomiqa_reward.runs.digest import file_digest
from zoomiqa_reward.runs.json_lines import as_float
from zoomiqa_reward.runs.outputs import MADE_BY, OutputError
from zoomiqa_reward.runs.progress import say
from zoomiqa_reward.runs.tables import read_table, write_table

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

SAVE_EVERY_S = 30.0
"""Seconds of measuring that a kill may cost."""
PERCENTILES = (5, 25, 50, 75, 95)
WORST = 5


@dataclass
class ScoreTable:
    """The rows of a table file: those of the images of this command in their order, then all others."""

    path: Path
    fingerprint: str
    overwrite: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept: int = 0
    """Images of this command that an earlier one had measured."""
    _before: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    _earlier: list[dict[str, Any]] = field(default_factory=list)
    """All rows that lie in the table; one stays there until the image has a new row."""

    def open(self) -> None:
        """Read what is there; with `overwrite` another table than ours goes. Raises OutputError for a damaged table."""
        self._before = {}
        try:
            before = read_table(self.path)
        except OutputError:
            if not self.overwrite:
                raise
            before = []
        self._earlier = [typed_row(row) for row in before if MADE_BY in row and "sha256" in row]
        for row in self._earlier:
            if row["valid"]:
                self._before[row["sha256"], row["fingerprint"]] = row

    def find(self, file: str, sha256: str | None) -> RatedImage | None:
        """Return the rating that an earlier command wrote for these bytes, or None."""
        row = self._before.get((sha256 or "", self.fingerprint))
        if row is None:
            return None
        self.kept += 1
        return replace(record_of(row), image=file)

    def records(self) -> list[RatedImage]:
        """Return the records of the rows that were added."""
        return [record_of(row) for row in self.rows]

    def add(self, record: RatedImage, sha256: str | None) -> None:
        """Hold one more row; `write` writes it."""
        self.rows.append(record.as_json() | {"sha256": sha256, "fingerprint": self.fingerprint})

    def write(self) -> None:
        """Write the table; what an earlier command measured stays in it until its turn. Raises OSError, OutputError."""
        renewed = {row["image"] for row in self.rows}
        if content := [*self.rows, *(row for row in self._earlier if row["image"] not in renewed)]:
            write_table(self.path, content, overwrite=self.overwrite)


def measure_into(
    table: ScoreTable, iqa: "ZoomIQA | RemoteZoomIQA", files: Sequence[str], *, chunk: int, **options: Any
) -> Iterator[RatedImage]:
    """Yield one record per file, in order; the table is written now and then, and at the end, whatever ends it.

    chunk: files that are measured together. options: those of `measure`.
    """
    saved = time.monotonic()
    try:
        for count, record in enumerate(measure_rows(table, iqa, files, chunk=chunk, **options), start=1):
            yield record
            if count % chunk == 0 and time.monotonic() - saved > SAVE_EVERY_S:
                table.write()
                saved = time.monotonic()
    finally:
        table.write()


def measure_rows(
    table: ScoreTable, iqa: "ZoomIQA | RemoteZoomIQA", files: Sequence[str], *, chunk: int, **options: Any
) -> Iterator[RatedImage]:
    """Yield one record per file, in order, and add its row to the table, which is not written."""
    for start in range(0, len(files), chunk):
        group = files[start : start + chunk]
        digests = [_digest(file) for file in group]
        earlier = [table.find(file, sha256) for file, sha256 in zip(group, digests, strict=True)]
        fresh = measure(iqa, [file for file, old in zip(group, earlier, strict=True) if old is None], **options)
        for old, sha256 in zip(earlier, digests, strict=True):
            record = next(fresh).record if old is None else old
            table.add(record, sha256)
            yield record


def fingerprint_of(iqa: "ZoomIQA | RemoteZoomIQA", *, mode: str, strict: bool, question: str | None) -> str:
    """Return the digest of all that a rating depends on beside the image. Raises UnknownState."""
    return ZoomIQAReward(iqa, mode, strict=strict, question=question).fingerprint


def summarize(records: Sequence[RatedImage]) -> dict[str, Any]:
    """Return count, mean, percentiles, the worst images and those without a rating; numbers are None without any."""
    valid = sorted((record for record in records if record.valid), key=lambda record: record.rating)
    ratings = np.array([record.rating for record in valid])
    return {
        "count": len(records),
        "measured": len(valid),
        "mean": float(ratings.mean()) if len(valid) else None,
        "percentiles": {str(p): float(np.percentile(ratings, p)) if len(valid) else None for p in PERCENTILES},
        "worst": [{"image": record.image, "rating": record.rating} for record in valid[:WORST]],
        "not_measured": [{"image": record.image, "error": record.error} for record in records if not record.valid],
    }


def show_summary(summary: dict[str, Any]) -> None:
    """Print the summary for people, on stdout."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    shown.add_row("images", f"{summary['count']}, {summary['measured']} of them measured")
    shown.add_row("mean rating", output.number(as_float(summary["mean"]), 2))
    levels = (f"{level} %: {output.number(as_float(value), 2)}" for level, value in summary["percentiles"].items())
    shown.add_row("percentiles", ", ".join(levels))
    for index, row in enumerate(summary["worst"]):
        shown.add_row("" if index else "worst", Text(f"{row['rating']:.2f}  {printable(row['image'])}"))
    for index, row in enumerate(summary["not_measured"]):
        shown.add_row("" if index else "not measured", Text(inputs.named(row["image"], row["error"]), style="red"))
    output.console().print(shown)


def watch(records: Iterator[RatedImage], then: Callable[[RatedImage], None]) -> list[RatedImage]:
    """Return all records; `then` gets each as it comes, and a failure is named on stderr."""
    seen = []
    for record in records:
        if not record.valid:
            say(f"not measured: {inputs.named(record.image, record.error)}")
        then(record)
        seen.append(record)
    return seen


def record_of(row: dict[str, Any]) -> RatedImage:
    """Return the record of a row that `ScoreTable.add` made."""
    return RatedImage(
        image=row["image"], rating=as_float(row["rating"]), std=as_float(row["std"]), valid=row["valid"],
        error=row["error"], mode=row["mode"], rounds=row["rounds"], model=row["model"], notes=tuple(row["notes"]),
    )  # fmt: skip


def _digest(file: str) -> str | None:
    try:
        return file_digest(file)
    except (OSError, ValueError):  # measuring it says why
        return None


def typed_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the types that CSV lost, and without the mark."""
    typed = {key: value for key, value in row.items() if key != MADE_BY}
    for key in ("rating", "std", "score_0_100"):
        typed[key] = None if typed[key] is None else float(typed[key])
    typed["valid"] = typed["valid"] in (True, "True")
    typed["rounds"] = int(typed["rounds"])
    notes = typed["notes"]
    typed["notes"] = notes.split("; ") if isinstance(notes, str) else list(notes or ())
    return typed
