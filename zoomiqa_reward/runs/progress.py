"""Progress of long work: a bar on a terminal; elsewhere a line now and then, where a bar would fill a log with control
characters.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY_S = 10.0
"""Seconds between two lines; work that is over before that prints none."""

Item = TypeVar("Item")


class ProgressLines(Generic[Item]):
    """Prints `what: 12 of 300, about 5 min left` on stderr; used like tqdm's bar."""

    def __init__(self, items: Iterable[Item] | None = None, what: str = "", total: int | None = None, initial: int = 0):
        """items: what is gone through; None: `update` is called instead. total: their number, if it is known."""
        self.items, self.what = items, what
        self.total = len(items) if total is None and hasattr(items, "__len__") else total  # type: ignore[arg-type]
        self.done = self.initial = initial
        self._began = self._told = time.monotonic()

    def __enter__(self) -> "ProgressLines[Item]":
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def __iter__(self) -> Iterator[Item]:
        for item in self.items or ():
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        """Count, and print a line where the last one is `EVERY_S` old."""
        self.done += count
        now = time.monotonic()
        if now - self._told < EVERY_S:
            return
        self._told = now
        sys.stderr.write(self.line(now - self._began) + "\n")
        sys.stderr.flush()

    def line(self, seconds: float) -> str:
        """Return the line after so many seconds."""
        if self.total is None:
            return f"{self.what}: {self.done}"
        left = seconds / max(self.done - self.initial, 1) * max(self.total - self.done, 0)
        shown = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        return f"{self.what}: {self.done} of {self.total}, about {shown} left"


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
