"""Work that several processes share through a folder: blocks of a list, each done once, whatever process dies.

A block is done when its part file is there; parts are written in one step. A process holds the block that it works on
by a lock of the system, which lets go when the process ends, however it ends. So the others take over what a killed
process left, processes may join at any time, and no coordinator is needed. On one machine any local file system
serves; several machines need a shared one that has locks (NFS 4 does).
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.runs.folder import bind
from zoomiqa_reward.runs.json_lines import read_lines
from zoomiqa_reward.runs.outputs import write_text

LEAST_BLOCK = 64
MOST_BLOCKS = 10_000
"""Files in one folder."""
WAIT_S = 0.5


class SharingError(ZoomIQAError, RuntimeError):
    """This system has no file locks."""


def block_size(count: int) -> int:
    """Return how many items a block has: a kill costs at most one block per process.

    >>> block_size(20_000), block_size(100_000_000)
    (64, 10000)
    """
    return max(LEAST_BLOCK, -(-count // MOST_BLOCKS))


def parts_of(file: Path) -> Path:
    """Return the folder beside a file that is made of parts."""
    return file.with_name(f"{file.name}.parts")


class SharedWork:
    """The blocks of `count` items in a folder."""

    def __init__(self, folder: Path, settings: dict[str, Any], count: int) -> None:
        """Claim the folder. settings: what all processes agree on. Raises AnotherRun, OutputError, SharingError."""
        _locks()
        self.folder, self.count, self.size = folder, count, block_size(count)
        self._settings = settings | {"count": count, "block": self.size}
        with self._alone("settings"):
            bind(folder, self._settings)

    @property
    def num_blocks(self) -> int:
        """Blocks, done or not."""
        return -(-self.count // self.size)

    def is_done(self, block: int) -> bool:
        """Whether the part of a block is there."""
        return self._part(block).exists()

    def blocks(self, start: int = 0) -> Iterator[tuple[int, range]]:
        """Yield (block, its items) for each block that this process is to do, held while the caller works on it.

        start: block to begin with, so that processes begin apart. It ends when all blocks are done, also those that
        other processes held, or when another process has finished. Call `put` before the next one is asked for.
        """
        order = [(start + k) % self.num_blocks for k in range(self.num_blocks)]
        while self.folder.exists() and (left := [block for block in order if not self.is_done(block)]):
            worked = False
            for block in left:
                with self._held(block) as is_mine:
                    if is_mine and not self.is_done(block):
                        worked = True
                        yield block, range(block * self.size, min(self.count, (block + 1) * self.size))
            if not worked:  # others hold what is left; one of them may die
                time.sleep(WAIT_S)

    def put(self, block: int, lines: str) -> None:
        """Write the part of a block, JSON lines, in one step."""
        write_text(self._part(block), lines)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of all parts in the order of the items. Raises ValueError for a damaged part."""
        for block in range(self.num_blocks):
            yield from read_lines(self._part(block))

    def written_at(self, item: int) -> float:
        """Return when the part with an item was written, in seconds as `os.stat` gives them."""
        return self._part(item // self.size).stat().st_mtime

    def finish(self, use: Callable[[], None]) -> bool:
        """Call `use` in one process, once all is done, and remove the folder; return whether it was this process."""
        if not self.folder.exists():
            return False
        with self._alone("finish"):
            is_mine = self.folder.exists() and all(map(self.is_done, range(self.num_blocks)))
            if is_mine:
                use()
                shutil.rmtree(self.folder)
            if not self.folder.exists():  # nobody needs these any more
                for step in ("settings", "finish"):
                    self._lock_file(step).unlink(missing_ok=True)
            return is_mine

    def _part(self, block: int) -> Path:
        return self.folder / f"{block:05}.jsonl"

    def _lock_file(self, step: str) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{step}.lock")

    @contextmanager
    def _held(self, block: int) -> Iterator[bool]:
        """Hold a block if no other process does; give whether it is held."""
        fcntl = _locks()
        try:
            handle = os.open(self.folder / f"{block:05}.lock", os.O_WRONLY | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process has finished and removed the folder
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

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """Wait until no other process is in the same step. The lock lies beside the folder, which may be removed."""
        fcntl = _locks()
        handle = os.open(self._lock_file(what), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _locks() -> Any:
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise SharingError("this system has no file locks, so processes cannot share work; run one process") from error
    return fcntl
