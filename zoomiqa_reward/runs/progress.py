"""Progress of long work, on stderr: a bar on a terminal, a line now and then elsewhere; the one place that shows it."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoomiqa_reward.runs.progress_lines import ProgressLines

Item = TypeVar("Item")

_CONSOLE = Console(stderr=True)  # of whatever stderr is at the time
_bars: list[Progress] = []
"""The bar that is drawn now, if any: a terminal has room for one."""


@contextlib.contextmanager
def counting(
    what: str, total: int | None = None, *, initial: int = 0, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Give a function that counts so many more as done; `initial` of `total` were done before.

    `shown`: whether this process is the one that speaks. Within another bar only the outer one is drawn.
    """
    if not shown or not sys.stderr.isatty() or _bars:
        lines = ProgressLines(None, what, total, initial)
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
