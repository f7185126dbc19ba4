"""Progress of long work, on stderr: a bar on a terminal, a line now and then elsewhere; the one place that shows it."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY_S = 10.0
"""Seconds between two lines; work that is over before that prints none."""

Item = TypeVar("Item")

_CONSOLE = Console(stderr=True)  # of whatever stderr is at the time
_bars: list[Progress] = []
"""The bar that is drawn now, if any: a terminal has room for one."""


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


@contextlib.contextmanager
def counting(
    what: str, total: int | None = None, *, initial: int = 0, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Give a function that counts so many more as done; `initial` of `total` were done before.

    `shown`: whether this process is the one that speaks. Within another bar only the outer one is drawn.
    """
    if not shown or not sys.stderr.isatty() or _bars:
        lines: ProgressLines[None] = ProgressLines(None, what, total, initial)
        yield lines.update if shown and not sys.stderr.isatty() else lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Not redirected: rich would send our stdout to the bar's stream.
    with Progress(*columns, console=_CONSOLE, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(what, total=total, completed=initial)
        _bars.append(bar)
        try:
            yield lambda count: bar.advance(task, count)
        finally:
            _bars.pop()


def progress(
    items: Iterable[Item], total: int | None, what: str, *, streaming: bool = False, shown: bool = True
) -> Iterator[Item]:
    """Yield the items; draw a bar on stderr when that is a terminal, print a line now and then when it is none.

    `streaming`: lines are printed to stdout meanwhile, so there is no bar where both are the same terminal.
    """
    on_terminal = sys.stderr.isatty()
    has_bar = on_terminal and (total is None or total > 1) and not (streaming and sys.stdout.isatty())
    with counting(what, total, shown=shown and (has_bar or not on_terminal)) as count:
        for item in items:
            yield item
            count(1)


def say(text: str) -> None:
    """Print a line on stderr, above the bar where one is drawn."""
    if _bars:
        _CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    print(text, file=sys.stderr, flush=True)  # noqa: T201  (talk, as the commands print it)
