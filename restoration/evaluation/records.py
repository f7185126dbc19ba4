"""One JSON line for each image that was measured: what an evaluation is resumed from and reported by."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zoomiqa_reward.runs.folder import bind
from zoomiqa_reward.runs.json_lines import append_line, as_float, cut_half_line, plain, write_json

RECORDS = "records.jsonl"
SETTINGS = "run.json"
MAY_DIFFER = ("n", "seeds", "headline", "not_headline", "started", "command", "conventions", "notes")
"""Settings that a resumed run may change: more candidates are added, and who judges is decided when reporting. The last
two follow from the options, the metrics and the dataset, which are compared."""

NOT_LOADED = "not loaded"
"""Stands for the hash of an item whose files could not be read or do not fit."""
NO_REFERENCE = "the reward needs hr, which is not there"
"""Of the ground truth's own row this is no problem."""

Key = tuple[str, str, int | None]


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One measured image. Numbers that could not be measured are NaN (JSON null) and have a reason."""

    image: str
    """The dataset's item."""
    row: str
    """`candidate`, `bicubic` or `hr`."""
    seed: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Each metric's own value, not oriented."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a metric has no value."""
    reward: float = math.nan
    """Oriented: higher is better."""
    reward_error: str | None = None
    seconds: float = math.nan
    """To make the candidate; a restorer that makes several at once spends it on the first of them."""
    peak_bytes: int | None = None
    """Most memory held while it was made: allocated on the GPU, or else by the whole process so far."""
    sha256: str | None = None
    """Of the image's 8-bit pixels."""
    lq_sha256: str
    hr_sha256: str | None
    error: str | None = None
    """Why there is no image; a resumed run tries again."""

    @property
    def key(self) -> Key:
        """What is measured once."""
        return self.image, self.row, self.seed

    def as_json(self) -> dict[str, Any]:
        """Return the fields, NaN as None."""
        return plain(asdict(self))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ImageRecord":
        """Return what `as_json` made. Raises ValueError naming what is missing or unknown."""
        field_names = {entry.name for entry in fields(cls)}
        if set(values) != field_names:
            raise ValueError(f"record with wrong fields: {', '.join(sorted(set(values) ^ field_names))}")
        numbers = {name: as_float(values[name]) for name in ("reward", "seconds")}
        metrics = {name: as_float(value) for name, value in values["metrics"].items()}
        return cls(**(values | numbers | {"metrics": metrics}))


class RecordFolder:
    """A run's folder: its settings, and its records appended line by line; without a folder, memory alone.

    A line counts when it ends: what a killed run left half written is cut off, and its image is measured again.
    """

    def __init__(self, folder: str | Path | None, settings: dict[str, Any]) -> None:
        """Open or begin. Raises ValueError where the folder belongs to a run with other settings, naming the first."""
        self.records: dict[Key, ImageRecord] = {}
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        bind(self.folder, settings, file=SETTINGS, results=(RECORDS,), free=MAY_DIFFER)
        cut_half_line(self.folder / RECORDS)
        self.records = {record.key: record for record in read_records(self.folder)}
        write_json(self.folder / SETTINGS, settings)

    def done(self, key: Key) -> bool:
        """Whether that image is there and measured; one that failed is not."""
        return key in self.records and self.records[key].error is None

    def add(self, record: ImageRecord) -> None:
        """Keep a record, on the disk before this returns."""
        self.records[record.key] = record
        if self.folder is None:
            return
        append_line(self.folder / RECORDS, record.as_json())


def read_settings(folder: Path) -> dict[str, Any]:
    """Return a run's settings. Raises ValueError where the folder is none of a run."""
    try:
        return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: no readable {SETTINGS} ({error}); give the folder of an evaluation") from error


def read_records(folder: Path) -> list[ImageRecord]:
    """Return the records of a run, the last of each key; a half line at the end is not one.

    Raises ValueError naming the line that cannot be read.
    """
    path = folder / RECORDS
    records: dict[Key, ImageRecord] = {}
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = ImageRecord.from_json(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: no record ({error}); delete the line") from error
        records[record.key] = record
    return list(records.values())
