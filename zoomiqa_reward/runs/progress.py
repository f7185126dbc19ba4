"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoomiqa_reward.runs.progress_lines import ProgressLines

Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, what: str, *, streaming: bool) -> Iterator[Item]:
    """Yield the items; draw a bar on stderr when that is a terminal, print a line now and then when it is none.

    `streaming`: lines are printed to stdout meanwhile, so there is no bar where both are the same terminal.
    """
    shown = sys.stderr.isatty() and total > 1 and not (streaming and sys.stdout.isatty())
    if not sys.stderr.isatty():
        yield from ProgressLines(items, what, total)
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Not redirected: rich would send our stdout to the bar's stream.
    with Progress(
        *columns, console=Console(stderr=True), disable=not shown, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        yield from bar.track(items, total=total)
