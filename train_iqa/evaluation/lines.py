"""What was measured, one JSON line an image, so that a kill at any moment loses at most the image in work.

Each process appends to a file of its own; a line is one `write` to a file opened for appending, then flushed to disk. A
line that a kill cut short has no newline at its end: readers skip it and its owner removes it before going on.
"""

import json
import math
from pathlib import Path
from typing import Any

from zoomiqa_reward.runs.json_lines import append_line, cut_half_line

Key = tuple[str, str]
"""Data set, image id."""
PATTERN = "ratings-*.jsonl"


def read_lines(folder: Path) -> dict[Key, dict[str, Any]]:
    """Return the finished lines of all processes, by image; where two measured one, the first file's line stands.

    NaN is `null` in the files and None here. Raises ValueError for a finished line that is no JSON object.
    """
    found: dict[Key, dict[str, Any]] = {}
    for file in sorted(folder.glob(PATTERN)):
        data = file.read_bytes()
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
            try:
                fields = json.loads(line)
                key = (fields["dataset"], fields["id"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}:{number}: damaged ({error}); delete this line to measure it again") from error
            found.setdefault(key, fields)
    return found


class LineWriter:
    """Appends lines to the file of one process; a line that a kill cut short is removed first."""

    def __init__(self, folder: Path, process: int) -> None:
        self.file = folder / f"ratings-{process:04d}.jsonl"
        cut_half_line(self.file)

    def write(self, fields: dict[str, Any]) -> None:
        """Append one line; NaN and infinity become null. It is on the disk when this returns."""
        append_line(self.file, null(fields))


def null(value: Any) -> Any:
    """Return a value for JSON: numbers that are not finite become None, tuples lists, in any depth."""
    if isinstance(value, dict):
        return {str(key): null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_float(value: float | None) -> float:
    """Return a number of a line, NaN for null."""
    return math.nan if value is None else float(value)
