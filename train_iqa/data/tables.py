"""Reading label tables: a fault in a table is noted with its file and line, and the other lines are still read."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from train_iqa.data.record import Listing


def read_text(file: Path, results: Listing) -> str | None:
    """Return the text of a UTF-8 file (with or without byte order mark), None and a fault where there is none."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        results.fault("layout", file, "no such file; give the data set's own folder, as it was unpacked")
    except (OSError, UnicodeDecodeError) as error:
        results.fault("layout", file, f"cannot be read as UTF-8 text ({error})")
    return None


def read_csv(file: Path, columns: Sequence[str], results: Listing) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file:line, fields) of a comma-separated table that must have `columns`; others are kept too."""
    text = read_text(file, results)
    if text is None:
        return
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    names = reader.fieldnames or []
    lacking = [column for column in columns if column not in names]
    if lacking:
        results.fault("layout", file, f"no column {', '.join(lacking)}; it has {', '.join(names) or 'none'}")
        return
    for fields in reader:
        where = f"{file}:{reader.line_num}"
        if any(fields.get(column) is None for column in columns):
            results.fault("label", where, "fewer fields than columns")
        else:
            yield where, {key: value for key, value in fields.items() if isinstance(value, str)}


def number(value: object, where: object, what: str, results: Listing) -> float | None:
    """Return a finite number, None and a fault for anything else (also for True, an empty field, NaN)."""
    try:
        result = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if math.isfinite(result):
        return result
    results.fault("label", where, f"{what} is {value!r}, not a finite number")
    return None


def spread(value: object, where: object, results: Listing) -> float | None:
    """Return a standard deviation: NaN where the field is empty or absent, None and a fault where it is no number."""
    if value is None or value == "":
        return math.nan
    result = number(value, where, "standard deviation", results)
    if result is not None and result < 0:
        results.fault("label", where, f"standard deviation {result} is negative")
        return None
    return result
