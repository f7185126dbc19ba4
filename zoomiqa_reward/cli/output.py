"""How the measuring commands speak: JSON lines or a table on stdout, progress on stderr."""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from zoomiqa_reward.cli.measuring import Measured, Record

Item = TypeVar("Item")


def json_line(fields: dict[str, Any]) -> None:
    """Print one JSON line, at once."""
    print(json.dumps(fields, ensure_ascii=False, allow_nan=False), flush=True)


def exit_code(records: Iterable["Record"]) -> int:
    """Return 0, or 2 where some image could not be measured."""
    return 0 if all(record.valid for record in records) else 2


def progress(items: Iterable[Item], total: int, what: str, *, streaming: bool) -> Iterator[Item]:
    """Yield the items; draw a bar on stderr when that is a terminal.

    `streaming`: lines are printed to stdout meanwhile, so there is no bar where both are the same terminal.
    """
    shown = sys.stderr.isatty() and total > 1 and not (streaming and sys.stdout.isatty())
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Not redirected: rich would send our stdout to the bar's stream.
    with Progress(
        *columns, console=Console(stderr=True), disable=not shown, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        yield from bar.track(items, total=total)


def table(records: list["Record"], places: list[str] | None = None) -> None:
    """Print the records for people; `places` is a first column."""
    if not records:
        return
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in (["rank"] if places else []) + ["rating", "±", "0-100"]:
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("image", overflow="fold")
    for k, record in enumerate(records):
        cells = [number(record.rating, 2), number(record.std, 2), number(record.score_0_100, 1)]
        name = Text(record.image)
        if not record.valid:
            name.append(f"\nnot rated: {record.error}", style="red")
        shown.add_row(*([places[k]] if places else []), *cells, name)
    console().print(shown)


def answer(measured: "Measured") -> None:
    """Print one assessed image for people: both rounds, section by section."""
    record, out = measured.record, console()
    rating = f"{number(record.rating, 2)} of 5" if record.valid else "not rated"
    out.print(Text(f"{record.image}: {rating}", style="bold"))
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
            out.print(Text("    no section could be read; --json holds the answer as it came", style="yellow"))


def console() -> Console:
    """Return a console on the present stdout, wide enough for whole paths when that is no terminal."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False)


def number(value: float, digits: int) -> str:
    """Return the number for people; a dash stands for none.

    >>> number(3.14159, 2), number(math.nan, 2)
    ('3.14', '-')
    """
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
