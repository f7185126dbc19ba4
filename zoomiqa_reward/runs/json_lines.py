"""Files that survive a kill: a line of JSON counts once its newline is on the disk, other files appear whole.

JSON has no NaN: `plain` writes NaN as null and infinity as a text, and `as_float` reads both back.
"""

import errno
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoomiqa_reward.runs.outputs import naming, replacing, write_text


def append_line(file: Path, row: dict[str, Any]) -> None:
    """Append one JSON line in one write, and wait until the disk has it."""
    line = _dumps(row) + "\n"
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        with naming(file):
            if os.write(handle, line.encode()) != len(line.encode()):
                raise OSError(errno.ENOSPC, "a line was written only in part")
            os.fsync(handle)
    finally:
        os.close(handle)


def write_lines(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a file of JSON lines in one step, within a run's folder. Raises OutputError elsewhere, if it exists."""
    write_text(file, "".join(_dumps(row) + "\n" for row in rows))


def cut_half_line(file: Path) -> None:
    """Cut off what a kill left without its newline; a missing file stays missing."""
    if file.exists():
        held = file.read_bytes()
        if (whole := held.rfind(b"\n") + 1) < len(held):
            os.truncate(file, whole)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; cut off a last line that a kill left without its end.

    Raises ValueError for a damaged line that is not the last.
    """
    if not file.exists():
        return []
    cut_half_line(file)
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: damaged ({error}); use another folder") from error
    return rows


def trim_lines(file: Path, key: str, last: float) -> None:
    """Drop the rows whose `key` is above `last`, and all from the first damaged one on: they will be made again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if line.endswith(b"\n") and row[key] <= last:
            kept.append(line)
    with replacing(file) as half:
        half.write_bytes(b"".join(kept))


def write_json(file: Path, content: Any, indent: int = 2, *, overwrite: bool = False) -> None:
    """Write a JSON file in one step. Raises OutputError outside a run's folder, as `outputs.replacing` does."""
    write_text(file, _dumps(content, indent=indent) + "\n", overwrite=overwrite)


def plain(value: Any) -> Any:
    """Return a value for JSON, in any depth: NaN becomes None, infinity a text, a tuple a list.

    An infinitely good score is no missing one: read back as NaN, it would be the worst.

    >>> plain({"reward": math.nan, "psnr": math.inf, "seeds": (3, 4)})
    {'reward': None, 'psnr': 'Infinity', 'seeds': [3, 4]}
    """
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def as_float(value: float | str | None) -> float:
    """Return a number that `plain` wrote, NaN for None."""
    return math.nan if value is None else float(value)


def _dumps(content: Any, indent: int | None = None) -> str:
    """Return JSON that UTF-8 can hold: a file name in other bytes comes as surrogates, which JSON escapes."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    if any("\ud800" <= mark <= "\udfff" for mark in text):
        return json.dumps(content, indent=indent, ensure_ascii=True, allow_nan=False)
    return text
