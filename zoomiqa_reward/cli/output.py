"""Output of the measuring commands: JSON lines or a table on stdout, progress on stderr."""

import json
import math
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoomiqa_reward.images.listing import printable
from zoomiqa_reward.video.suffixes import is_clip

if TYPE_CHECKING:
    from zoomiqa_reward.model.measuring import Measured, RatedImage

Item = TypeVar("Item")


def json_line(fields: dict[str, Any]) -> None:
    """Print one JSON line and flush it. Characters that stdout cannot encode are escaped."""
    print(encodable(json.dumps(fields, ensure_ascii=False, allow_nan=False), fields), flush=True)


def encodable(line: str, fields: dict[str, Any]) -> str:
    """Return the line, or an ASCII version if stdout cannot encode it."""
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(fields, ensure_ascii=True, allow_nan=False)
    return line


def exit_code(records: Iterable["RatedImage"]) -> int:
    """Return 0, or 2 if some image could not be measured."""
    return 0 if all(record.valid for record in records) else 2


def table(
    records: list["RatedImage"],
    places: list[str] | None = None,
    *,
    columns: dict[str, list[float]] | None = None,
    reasons: list[str | None] | None = None,
) -> None:
    """Print the records as a table for people; `places` becomes the first column.

    columns: further numbers per record, by title, before the name. reasons: why a rated image is not ranked.
    """
    if not records:
        return
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in (["rank"] if places else []) + ["rating", "±", "0-100", *(columns or {})]:
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("clip" if is_clip(records[0].image) else "image", overflow="fold")
    for k, record in enumerate(records):
        cells = [number(record.rating, 2), number(record.std, 2), number(record.score_0_100, 1)]
        name = Text(printable(record.image))
        cells += [number(values[k], 2) for values in (columns or {}).values()]
        if not record.valid:
            name.append(f"\nnot rated: {record.error}", style="red")
        elif reasons and reasons[k]:
            name.append(f"\nnot ranked: {reasons[k]}", style="red")
        for note in record.notes:
            name.append(f"\n{note}", style="yellow")
        shown.add_row(*([places[k]] if places else []), *cells, name)
    console().print(shown)


def answer(measured: "Measured") -> None:
    """Print one assessment for people: both rounds, section by section."""
    record, out = measured.record, console()
    rating = f"{number(record.rating, 2)} of 5" if record.valid else "not rated"
    out.print(Text(f"{printable(record.image)}: {rating}", style="bold"))
    if record.error:
        out.print(Text(f"  {record.error}", style="red"))
    assessment = measured.assessment
    if assessment is None:
        return
    if assessment.warning:
        out.print(Text(f"  warning: {assessment.warning}", style="yellow"))
    for round_, turn in enumerate(assessment.turns, start=1):
        region = f", pixels {turn.crop_box}" if turn.crop_box else ""
        out.print(Text(f"  round {round_}{region}: rating {number(turn.rating, 2)}", style="cyan"))
        for label, body in turn.sections.items():
            out.print(Text(f"    {label}: {' '.join(body.split())}"))
        if not turn.sections:
            out.print(Text("    no section could be read; --json prints the raw answer", style="yellow"))


def console() -> Console:
    """Return a console on stdout that does not cut paths if stdout is no terminal."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False)


def digits_for(values: Iterable[float]) -> int:
    """Return decimals for numbers that stand in one column: 2, and 4 where none of them reaches 1.

    >>> digits_for([3.2, 0.5]), digits_for([0.012, math.nan])
    (2, 4)
    """
    return 2 if any(1 <= abs(value) < math.inf for value in values) else 4


def number(value: float, digits: int) -> str:
    """Return the number as text; None and NaN become a dash.

    >>> number(3.14159, 2), number(math.nan, 2), number(math.inf, 2)
    ('3.14', '-', 'inf')
    """
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
