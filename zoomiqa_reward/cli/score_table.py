"""`zoomiqa score --out`: ratings of many images in a table that a second call goes on with, and their summary.

A row is kept where the file's bytes and all that the rating depends on are the same: its columns `sha256` and
`fingerprint`. A renamed file is not measured again, a failed one is.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.images.listing import printable
from zoomiqa_reward.model.measuring import FIELDS, RatedImage, measure
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward
from zoomiqa_reward.runs.digest import file_digest, file_stamp
from zoomiqa_reward.runs.json_lines import as_float
from zoomiqa_reward.runs.locks import alone_if_possible
from zoomiqa_reward.runs.outputs import MADE_BY, OutputError, behind_link
from zoomiqa_reward.runs.progress import say
from zoomiqa_reward.runs.tables import as_stored, read_table, write_table

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

COLUMNS = (*FIELDS, "sha256", "fingerprint")
"""Of the table, beside `made_by` and what the user adds."""
SAVE_EVERY_S = 30.0
"""Seconds of measuring that a kill may cost."""
PERCENTILES = (5, 25, 50, 75, 95)
WORST = 5
SHOWN = 3
"""Names in a message."""


@dataclass
class ScoreTable:
    """The rows of a table file: those of the images of this command in their order, then all others.

    Several commands may write one table: each reads it again before it writes, and keeps the rows of the others.
    Columns that the user added stay with their image. An image is known by its place, and a row names it by
    `names_in`.
    """

    path: Path
    fingerprint: str
    overwrite: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept: int = 0
    """Images of this command that an earlier one had measured."""
    replaced: dict[str, None] = field(default_factory=dict)
    """Names whose rows were of other bytes: images that were edited, or others of the same name, in order."""
    _before: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    _at_place: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """All rows that lie in the table, by the place of their image; they stay there until the image has a new row."""
    _seen: tuple[int, ...] | None = None
    """The file that was read or written last."""

    def open(self) -> None:
        """Read what is there; with `overwrite` another table than ours goes.

        Raises OutputError for a damaged table, and for a row that is not one of this command.
        """
        self._seen = _state_of(self.path)
        try:
            rows = [self._typed(number, row) for number, row in enumerate(read_table(self.path), start=1)]
        except OutputError:
            if not self.overwrite:
                raise
            rows = []
        self._at_place = {}
        by_name = {row["image"]: row for row in rows}
        for path, row in zip(_places_in(self.path, by_name), by_name.values(), strict=True):
            self._at_place.setdefault(path, []).append(row)
        self._before = {(row["sha256"], row["fingerprint"]): row for row in rows if row["valid"]}

    def _typed(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return typed_row(row)
        except ValueError as error:
            raise OutputError(
                f"{self.path}, row {number}: {error}; mend it, name another output, or begin anew with --overwrite"
            ) from error

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
        """Write the table; what other commands measured stays in it until its turn. Raises OSError, OutputError."""
        with alone_if_possible(_lock_file(self.path)):
            if _state_of(self.path) != self._seen:
                self.open()
            names = names_in(self.path, (row["image"] for row in self.rows))
            paths = _places_in(self.path, names)
            renewed = set(paths)
            content = [
                {**row, "image": name, **self._added_columns(path, row)}
                for path, name, row in zip(paths, names, self.rows, strict=True)
            ] + [row for path, rows in self._at_place.items() if path not in renewed for row in rows]
            if content:
                write_table(self.path, content, overwrite=self.overwrite)
                self._seen = _state_of(self.path)

    def tell_replaced(self) -> None:
        """Say on stderr which names had rows of other bytes."""
        if self.replaced:
            names = list(self.replaced)
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            say(
                f"{self.path}: new rows for files with other bytes than before: "
                f"{printable(', '.join(names[:SHOWN]))}{more}"
            )

    def _added_columns(self, path: str, row: dict[str, Any]) -> dict[str, Any]:
        """Return the user's columns of the rows that are replaced."""
        added: dict[str, Any] = {}
        for earlier in self._at_place.get(path, ()):
            if earlier["sha256"] and row["sha256"] and earlier["sha256"] != row["sha256"]:
                self.replaced[row["image"]] = None
            for key, value in earlier.items():
                if key not in row and (value is not None or key not in added):
                    added[key] = value
        return added


def names_in(table: Path, files: Iterable[str]) -> list[str]:
    """Return how a table names files: from its own folder, so that a name means the same in every working folder.

    Absolute names stay as they are.
    """
    here, folder, names = os.getcwd(), _folder_of(table), []
    for name in files:
        if not os.path.isabs(name):
            with contextlib.suppress(ValueError):  # another drive of Windows; a name that no disk holds
                path = os.path.join(here, name)
                if ".." in name and ".." in Path(name).parts:  # behind a link it leads elsewhere
                    path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
                path = os.path.normpath(path)
                inside = path.removeprefix(os.path.join(folder, ""))
                name = inside if inside != path else os.path.relpath(path, folder)
        names.append(as_stored(table, name))
    return names


def _places_in(table: Path, names: Iterable[str]) -> list[str]:
    """Return the absolute paths of files that a table names."""
    folder = _folder_of(table)
    return [str(Path(name)) if os.path.isabs(name) else os.path.normpath(os.path.join(folder, name)) for name in names]


def _folder_of(table: Path) -> str:
    return os.path.realpath(behind_link(table).parent)


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
        digests = [digest_if_readable(file) for file in group]
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


def digest_if_readable(file: str) -> str | None:
    """Return the sha256 of a file, None for what cannot be read as one: measuring it says why."""
    try:
        return file_digest(file)
    except (OSError, ValueError):
        return None


def typed_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the types that CSV lost, and without the mark. Raises ValueError that names the column."""
    if missing := [column for column in COLUMNS if column not in row]:
        raise ValueError(f"has no column {missing[0]!r}")
    if not row["image"]:
        raise ValueError("has no image")
    typed = {key: value for key, value in row.items() if key != MADE_BY}
    for key in ("rating", "std", "score_0_100"):
        typed[key] = None if typed[key] is None else _read(float, key, typed[key])
    valid = str(typed["valid"]).lower()  # a spreadsheet writes TRUE
    if valid not in ("true", "false"):
        raise ValueError(f"valid is {typed['valid']!r}; must be true or false")
    typed["valid"] = valid == "true"
    typed["rounds"] = _read(int, "rounds", typed["rounds"])
    notes = typed["notes"]
    typed["notes"] = notes.split("; ") if isinstance(notes, str) else list(notes or ())
    return typed


def _read(kind: Callable[[Any], Any], key: str, value: object) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} is {value!r}; must be a number") from error


def _state_of(path: Path) -> tuple[int, ...] | None:
    """Return what tells whether a file was replaced or changed; None without a file."""
    try:
        return file_stamp(path)
    except OSError:
        return None


def _lock_file(path: Path) -> Path:
    table = behind_link(path)
    return table.with_name(f".{os.fsdecode(os.fsencode(table.name)[:180])}.lock")  # a name has at most 255 bytes
