"""The values of one sheet of an .xlsx workbook, read with the standard library.

Two data sets bring their labels so, and values are all that is needed of them: no formulas, styles or dates.
Source: ECMA-376 part 1, 18.3 (worksheets) and 18.4 (shared strings).
"""

import posixpath
import re
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

from zoomiqa_reward.errors import ZoomIQAError

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_REL = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_PACKAGE = "{http://schemas.openxmlformats.org/package/2006/relationships}"
_WORKBOOK = "xl/workbook.xml"
_MAX_COLUMNS = 16_384  # of the format; a reference beyond it is damage, not a reason to fill memory with None


class XlsxError(ZoomIQAError, ValueError):
    """A workbook that cannot be read, or without the sheet asked for."""


def read_sheet(file: Path, sheet: str | None = None) -> list[list[str | float | None]]:
    """Return the rows of a sheet (the first one if none is named); an empty cell is None, also before the first one.

    Numbers are floats, everything else is text; short rows are short. Raises XlsxError; OSError if there is no file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            part = _sheet_part(archive, sheet)
            strings = _shared_strings(archive)
            return [_row(element, strings) for element in _xml(archive, part).iter(f"{_MAIN}row")]
    except (zipfile.BadZipFile, zlib.error, ElementTree.ParseError, KeyError, IndexError, NotImplementedError) as error:
        raise XlsxError(f"{file}: no readable .xlsx workbook ({error})") from error
    except XlsxError as error:
        raise XlsxError(f"{file}: {error}") from error


def _xml(archive: zipfile.ZipFile, part: str) -> ElementTree.Element:
    return ElementTree.fromstring(archive.read(part))


def _sheet_part(archive: zipfile.ZipFile, sheet: str | None) -> str:
    links = {
        link.attrib["Id"]: link.attrib["Target"]
        for link in _xml(archive, "xl/_rels/workbook.xml.rels").iter(f"{_PACKAGE}Relationship")
    }
    sheets = {
        element.attrib["name"]: links[element.attrib[f"{_REL}id"]]
        for element in _xml(archive, _WORKBOOK).iter(f"{_MAIN}sheet")
    }
    if not sheets or (sheet is not None and sheet not in sheets):
        raise XlsxError(f"no sheet {sheet or ''}; it has {', '.join(sheets) or 'none'}")
    target = sheets[sheet if sheet is not None else next(iter(sheets))]
    return target.lstrip("/") if target.startswith("/") else posixpath.normpath(posixpath.join("xl", target))


def _shared_strings(archive: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    return [_text(item) for item in _xml(archive, "xl/sharedStrings.xml").iter(f"{_MAIN}si")]


def _text(item: ElementTree.Element) -> str:
    """Text of a string item: its own, or its runs'; phonetic hints (`rPh`) are not part of it."""
    direct = [item.findtext(f"{_MAIN}t") or ""]
    return "".join(direct + [run.findtext(f"{_MAIN}t") or "" for run in item.findall(f"{_MAIN}r")])


def _row(element: ElementTree.Element, strings: list[str]) -> list[str | float | None]:
    values: list[str | float | None] = []
    for cell in element.iter(f"{_MAIN}c"):
        column = _column(cell.attrib["r"]) if "r" in cell.attrib else len(values)
        values += [None] * (column - len(values))
        values.append(_value(cell, strings))
    return values


def _column(reference: str) -> int:
    """Return the column of a cell reference, from 0: A1 is 0, AA7 is 26."""
    match = re.match(r"[A-Z]{1,3}(?=\d)", reference)
    column = -1
    for letter in match[0] if match else "":
        column = 26 * (column + 1) + ord(letter) - ord("A")
    if not 0 <= column < _MAX_COLUMNS:
        raise XlsxError(f"cell reference {reference!r} is none")
    return column


def _value(cell: ElementTree.Element, strings: list[str]) -> str | float | None:
    kind, raw = cell.attrib.get("t", "n"), cell.findtext(f"{_MAIN}v")
    if kind == "inlineStr":
        inner = cell.find(f"{_MAIN}is")
        return None if inner is None else _text(inner)
    if raw is None or raw == "":
        return None
    if kind == "s":
        return strings[int(raw)]
    if kind != "n":
        return raw
    try:
        return float(raw)
    except ValueError as error:
        raise XlsxError(f"cell {cell.attrib.get('r')} holds {raw!r} as a number") from error
