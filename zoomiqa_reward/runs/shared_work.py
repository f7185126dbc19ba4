"""Work that several processes share through a folder: blocks of a list, each done once, whatever process dies.

A block is done when its part file is there; parts are written in one step. A process holds the block that it works on
by a lock of the system, which lets go when the process ends, however it ends. So the others take over what a killed
process left, processes may join at any time, and no coordinator is needed. On one machine any local file system
serves; several machines need a shared one that has locks (NFS 4 does).
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from zoomiqa_reward.runs.folder import bind
from zoomiqa_reward.runs.json_lines import read_lines
from zoomiqa_reward.runs.locks import alone, held
from zoomiqa_reward.runs.outputs import write_text

LEAST_BLOCK = 64
MOST_BLOCKS = 10_000
"""Files in one folder."""
WAIT_S = 0.5


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
        self.folder, self.count, self.size = folder, count, block_size(count)
        self._settings = settings | {"count": count, "block": self.size}
        with self._alone("settings"):
            shutil.rmtree(self._dead, ignore_errors=True)
            bind(folder, self._settings, results=[path.name for path in sorted(folder.glob("*.jsonl"))],
                 is_holder=False)  # fmt: skip

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

    def finish(self, use: Callable[[], None]) -> bool:
        """Call `use` in one process, once all is done, and remove the folder; return whether it was this process."""
        if not self.folder.exists():
            return False
        with self._alone("finish"):
            is_mine = self.folder.exists() and all(map(self.is_done, range(self.num_blocks)))
            if is_mine:
                use()
                shutil.rmtree(self._dead, ignore_errors=True)
                self.folder.rename(self._dead)  # in one step: a kill must not leave parts without their settings
                shutil.rmtree(self._dead, ignore_errors=True)
            return is_mine

    @property
    def _dead(self) -> Path:
        """What the folder is called while it is removed."""
        return self.folder.with_name(f".{self.folder.name}.done")

    def _part(self, block: int) -> Path:
        return self.folder / f"{block:05}.jsonl"

    def _held(self, block: int) -> AbstractContextManager[bool]:
        """Hold a block if no other process does; another process may also have finished and removed the folder."""
        return held(self.folder / f"{block:05}.lock")

    def _alone(self, step: str) -> AbstractContextManager[None]:
        """Wait until no other process is in the same step. The lock lies beside the folder, which may be removed."""
        return alone(self.folder.with_name(f".{self.folder.name}.{step}.lock"))
