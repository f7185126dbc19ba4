"""Reading label tables: a fault in a table is noted with its file and line, and the other lines are still read."""

import csv
import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from openpyxl import load_workbook
from openpyxl.utils.exceptions import InvalidFileException

from train_iqa.data.record import Listing
from zoomiqa_reward.errors import ZoomIQAError


def read_text(file: Path, listing: Listing) -> str | None:
    """Return the text of a UTF-8 file (with or without byte order mark), None and a fault where there is none."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        listing.fault("layout", file, "no such file; give the data set's own folder, as it was unpacked")
    except (OSError, UnicodeDecodeError) as error:
        listing.fault("layout", file, f"cannot be read as UTF-8 text ({error})")
    return None


def read_csv(file: Path, columns: Sequence[str], listing: Listing) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file:line, fields) of a comma-separated table that must have `columns`; others are kept too.

    White space around a field is not part of it. A row with more fields than columns is a fault: a comma within a field
    would shift all that follow.
    """
    text = read_text(file, listing)
    if text is None:
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        yield from _checked_rows(reader, file, columns, listing)
    except csv.Error as error:
        listing.fault("layout", f"{file}:{reader.line_num}", f"no readable table ({error}); is a quote left open?")


def _checked_rows(
    reader: "csv.DictReader[str]", file: Path, columns: Sequence[str], listing: Listing
) -> Iterator[tuple[str, dict[str, str]]]:
    names = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    lacking = [column for column in columns if column not in names]
    if lacking:
        listing.fault("layout", file, f"no column {', '.join(lacking)}; it has {', '.join(names) or 'none'}")
        return
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        listing.fault("layout", file, f"two columns are named {', '.join(repeated)}; rename one")
        return
    for fields in reader:
        where = f"{file}:{reader.line_num}"
        if any(surplus.strip() for surplus in fields.get(None, ())):
            listing.fault("label", where, "more fields than columns; put a field that holds a comma in quotes, and use "
                          "a decimal point")  # fmt: skip
            continue
        if any(fields.get(column) is None for column in columns):
            listing.fault("label", where, "fewer fields than columns")
        else:
            yield where, {key: value.strip() for key, value in fields.items() if isinstance(value, str)}


class SheetError(ZoomIQAError, ValueError):
    """A workbook that cannot be read, or without the sheet asked for."""


def read_sheet(file: Path, sheet: str | None = None) -> list[list[str | float | None]]:
    """Return the rows of a sheet of an .xlsx workbook (the first one if none is named); an empty cell is None.

    Numbers are floats; rows end with their last value. Raises SheetError; OSError if there is no file.
    """
    with open(file, "rb") as content:
        try:
            book = load_workbook(content, read_only=True, data_only=True)
            if sheet is not None and sheet not in book.sheetnames:
                raise SheetError(f"{file}: no sheet {sheet}; it has {', '.join(book.sheetnames) or 'none'}")
            table = book[book.sheetnames[0] if sheet is None else sheet]
            return [_values(row) for row in table.iter_rows(values_only=True)]
        except (zipfile.BadZipFile, InvalidFileException, ParseError, KeyError, IndexError, TypeError) as error:
            raise SheetError(f"{file}: no readable .xlsx workbook ({error})") from error


def _values(row: Sequence[Any]) -> list[str | float | None]:
    cells = [float(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell for cell in row]
    while cells and cells[-1] is None:
        cells.pop()
    return cells


def number(value: object, where: object, what: str, listing: Listing) -> float | None:
    """Return a finite number, None and a fault for anything else (also for True, an empty field, NaN, `4_0`)."""
    is_none = isinstance(value, bool) or (isinstance(value, str) and "_" in value)  # float("4_0") is 40
    try:
        result = math.nan if is_none else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if math.isfinite(result):
        return result
    listing.fault("label", where, f"{what} is {value!r}, not a finite number")
    return None


def spread(value: object, where: object, listing: Listing) -> float | None:
    """Return a standard deviation: NaN where the field is empty or absent, None and a fault where it is no number."""
    if value is None or value == "":
        return math.nan
    result = number(value, where, "standard deviation", listing)
    if result is not None and result < 0:
        listing.fault("label", where, f"standard deviation {result} is negative")
        return None
    return result
