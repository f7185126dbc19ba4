"""State that threads share: one lock per object, and temporary changes that the first thread makes and the last undoes.

A save, a change and a restore by two threads at once leave the change behind for good: the second saves what the first
has changed. So code that changes a shared object for a while uses `shared_change`, and code that needs the
object alone, because the object keeps something between two calls, uses `exclusive`.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

Undo = Callable[[], None]


@dataclass(eq=False)
class _Shared:
    """What is known of one object."""

    lock: Any = field(default_factory=threading.RLock)
    """Held by code that needs the object alone."""
    changes: dict[str, tuple[int, Undo]] = field(default_factory=dict)
    """Name -> how many have made this change, and how it is undone."""


_GUARD = threading.RLock()
_KNOWN: dict[int, _Shared] = {}
"""By identity: modules may compare equal, or have no hash."""


@contextmanager
def exclusive(*owners: object) -> Iterator[None]:
    """Hold the objects alone: other threads wait at their own `exclusive`. The same thread may enter again.

    Locks are taken in one order, so that two calls with the same objects cannot wait for each other.
    """
    with ExitStack() as stack:
        for owner in sorted(owners, key=id):
            stack.enter_context(_shared(owner).lock)
        yield


@contextmanager
def shared_change(owner: object, name: str, make: Callable[[], Undo]) -> Iterator[None]:
    """Change an object inside. `make` makes the change and returns what undoes it.

    Where several threads are inside at once, or one several times, the first makes it and the last undoes it. Two
    changes of one object under different names must not touch the same thing.
    """
    shared = _shared(owner)
    with _GUARD:
        count, undo = shared.changes[name] if name in shared.changes else (0, make())
        shared.changes[name] = (count + 1, undo)
    try:
        yield
    finally:
        with _GUARD:
            count, undo = shared.changes.pop(name)
            if count > 1:
                shared.changes[name] = (count - 1, undo)
            else:
                undo()


def _shared(owner: object) -> _Shared:
    with _GUARD:
        if id(owner) not in _KNOWN:
            _KNOWN[id(owner)] = _Shared()
            weakref.finalize(owner, _KNOWN.pop, id(owner), None).atexit = False
        return _KNOWN[id(owner)]
