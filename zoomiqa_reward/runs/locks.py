"""Locks of the system on empty files; it lets go of them when the process ends, however it ends."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoomiqa_reward.errors import ZoomIQAError


class SharingError(ZoomIQAError, RuntimeError):
    """This system has no file locks."""


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait until no other process holds the lock file, hold it, and remove it at the end.

    Raises SharingError, OSError where the file system has no locks.
    """
    handle = _wait_for(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who waits for this file then takes a new one
        os.close(handle)


@contextmanager
def alone_if_possible(file: Path) -> Iterator[None]:
    """Hold the lock file as `alone` does; without locks nothing keeps another process out."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(SharingError, OSError):
            stack.enter_context(alone(file))
        yield


@contextmanager
def held(file: Path) -> Iterator[bool]:
    """Hold the lock file if no other process does; give whether it is held. False where its folder is gone."""
    fcntl = _locks()
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _locks() -> Any:
    """Return the module `fcntl`. Raises SharingError where the system has none."""
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise SharingError("this system has no file locks, so processes cannot share work; run one process") from error
    return fcntl


def _wait_for(file: Path) -> int:
    """Return the handle of the lock file, held; not of one that another process removed in the meantime."""
    fcntl = _locks()
    while True:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(file)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
