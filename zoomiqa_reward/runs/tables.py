"""Tables of results in a file of the user's: JSON lines, CSV or Parquet, by the suffix.

A table is written whole and in one step, so a kill leaves the one before. Every row names the program in its column
`made_by`; without it the file is the user's, and `outputs.claim_file` leaves it alone.
"""

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoomiqa_reward.runs.json_lines import plain
from zoomiqa_reward.runs.outputs import MADE_BY, SOFTWARE, OutputError, claim_file, first_row, replacing

SUFFIXES = (".jsonl", ".csv", ".parquet")
_EXTRA = "pip install 'zoomiqa-reward[restoration]'"


def claim_table(
    path: str | os.PathLike[str], *, inputs: Sequence[object] = (), overwrite: bool = False, columns: Sequence[str] = ()
) -> Path:
    """Return the path of a table that may be written; call it before the work.

    columns: those that this command's tables have, so that no hour of another command's results is replaced.
    Raises OutputError as `claim_file` does, for another command's table, for another suffix, and for Parquet where
    pyarrow is not installed.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise OutputError(
            f"{target}: {target.suffix or 'no suffix'} is no table; end the name in {', '.join(SUFFIXES[:-1])} or "
            f"{SUFFIXES[-1]}"
        )
    if _is_parquet(target):
        _parquet()
    claim_file(target, inputs=inputs, overwrite=overwrite)
    if columns and target.exists() and not overwrite:
        before = first_row(target)
        if missing := [column for column in columns if column not in before]:
            raise OutputError(
                f"{target}: holds the table of another command, for it has no column {missing[0]!r}; name another "
                "output, or allow it with --overwrite"
            )
    return target


def write_table(path: Path, rows: Sequence[dict[str, Any]], *, overwrite: bool = False) -> None:
    """Write the rows in one step; numbers that are not finite, and columns that a row lacks, become empty.

    Values are texts, numbers, bools, None, and lists of texts, which CSV joins by `; `. Raises OutputError, OSError.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row if key != MADE_BY))
    content = [plain({key: row.get(key) for key in columns}) | {MADE_BY: SOFTWARE} for row in rows]
    with replacing(path, overwrite=overwrite) as half:
        if _is_parquet(path):
            arrow, parquet = _parquet()
            texts = [
                {key: _cell(value, rows[k].get(key)) for key, value in row.items()} for k, row in enumerate(content)
            ]
            parquet.write_table(arrow.Table.from_pylist(texts), half)
            return
        text = _csv(content) if path.suffix.lower() == ".csv" else "".join(f"{json.dumps(row)}\n" for row in content)
        half.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def as_stored(path: Path, text: str) -> str:
    """Return a text as a table at `path` gives it back: Parquet holds no bytes of a file name that are no UTF-8."""
    return _utf8(text) if _is_parquet(path) else text


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table that `write_table` wrote, nothing for a missing file.

    A CSV file has texts for all values, with None for an empty one. Raises OutputError for a damaged file, and for a
    row of CSV with more cells than the header.
    """
    if not path.exists():
        return []
    try:
        if _is_parquet(path):
            content: list[dict[str, Any]] = _parquet()[1].read_table(path).to_pylist()
            return content
        # A file name may hold \r, and a spreadsheet begins its CSV with a mark of UTF-8.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if path.suffix.lower() == ".csv":
                return _rows_of_csv(csv.DictReader(file, strict=True))
            return [json.loads(line) for line in file.read().split("\n") if line.strip()]
    except (ValueError, csv.Error) as error:  # pyarrow's own errors are ValueErrors
        raise OutputError(f"{path}: damaged ({error}); name another file, or delete this one") from error


def _rows_of_csv(rows: "csv.DictReader[str]") -> list[dict[str, Any]]:
    """Return the rows with None for an empty cell. Raises ValueError for a row with more cells than the header."""
    content = []
    for row in rows:
        if None in row:
            raise ValueError(f"line {rows.line_num} has more cells than the header")
        content.append({key: value or None for key, value in row.items()})
    return content


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [MADE_BY])
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "; ".join(value) if isinstance(value, list) else value for key, value in row.items()})
    return text.getvalue()


def _cell(value: Any, number: Any) -> Any:
    """Return what Arrow can hold: infinity as the number, bytes of a file name that are no UTF-8 escaped."""
    if isinstance(number, float) and math.isinf(number):
        return number
    return _utf8(value) if isinstance(value, str) else value


def _utf8(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _parquet() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet. Raises OutputError that names the extra."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise OutputError(f".parquet needs pyarrow, which is not installed: {_EXTRA}; or write .csv") from error
    return pyarrow, parquet
