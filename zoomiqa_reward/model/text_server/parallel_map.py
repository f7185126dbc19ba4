"""Several requests at once, their results in the order of what was asked."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(ask: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """Return ask(item) for each, in order, `workers` at once; items are drawn as they are needed.

    The first exception, in the order of the items, is raised; what has not begun by then is not begun.
    """
    waiting: deque[Future[R]] = deque()
    results: list[R] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(ask, item))
                if len(waiting) >= 2 * workers:
                    results.append(waiting.popleft().result())
            while waiting:
                results.append(waiting.popleft().result())
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return results
