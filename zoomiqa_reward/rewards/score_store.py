"""The file behind `CachedReward`: an SQLite table of values, written by several processes at once, bounded in size.

Write-ahead logging lets readers go on while one process writes; writers wait for each other. Nothing is kept open
across a fork. The bound is on the pages in use: the file reuses what was freed, so beside the bound it grows by at most
one transaction, and its log by about 4 MiB.
"""

import contextlib
import math
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoomiqa_reward.errors import ZoomIQAError

FORMAT = 1
"""`user_version` of the file."""
MIN_BYTES = 64 << 10
"""Smallest bound: below it hardly anything but SQLite's own pages would fit."""
_WAY_OUT = "make room on its disk, or give another path"
EVICTED_SHARE = 0.1
"""Of the entries, dropped at a time when the file is full; one at a time would write for every new value."""


class CacheError(ZoomIQAError, RuntimeError):
    """A file that cannot serve as a score cache; the message says what to do about it."""


class ScoreStore:
    """The file: key -> (value, std), least recently used first to go."""

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int, busy_timeout_s: float) -> None:
        """Open or make the file. Raises CacheError for a file of another kind or format, ValueError for the bound."""
        if max_bytes < MIN_BYTES:
            raise ValueError(f"max_bytes={max_bytes}: must be at least {MIN_BYTES}")
        self.path, self.max_bytes, self.busy_timeout_s = Path(path), max_bytes, busy_timeout_s
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inherited: list[sqlite3.Connection] = []
        self._pid = 0
        with self._open():
            pass

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "max_bytes": self.max_bytes, "busy_timeout_s": self.busy_timeout_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ScoreStore.__init__(self, state["path"], max_bytes=state["max_bytes"], busy_timeout_s=state["busy_timeout_s"])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Yield this process' connection, for one thread at a time. A forked child opens its own.

        Raises CacheError for what SQLite raises inside.
        """
        with self._lock:
            if self._connection is not None and self._pid != os.getpid():
                self._inherited.append(self._connection)  # never closed here: that would touch the parent's files
                self._connection = None
            if self._connection is None:
                self._connection, self._pid = self._connect(), os.getpid()
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise CacheError(f"{self.path}: cannot be used any more ({error}); {_WAY_OUT}") from error

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path, timeout=self.busy_timeout_s, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise CacheError(
                f"{self.path}: cannot be opened ({error}); its folder must exist and be writable"
            ) from error
        try:
            self._prepare(connection)
        except sqlite3.Error as error:
            connection.close()
            raise CacheError(f"{self.path}: is no usable score cache ({error}); give another path") from error
        except CacheError:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + self.busy_timeout_s
        while True:  # SQLite does not wait by itself when two processes switch a new file to WAL at once
            try:
                mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise CacheError(f"{self.path}: cannot keep a write-ahead log (mode {mode}); give a file on a local disk")
        connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the newest values, never the file
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version != FORMAT and (version or tables):
            raise CacheError(f"{self.path}: holds something else, or another version's scores; give another path")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS scores "
            "(key BLOB PRIMARY KEY, value REAL NOT NULL, std REAL, used INTEGER NOT NULL) WITHOUT ROWID"
        )
        connection.execute("CREATE INDEX IF NOT EXISTS scores_by_use ON scores (used)")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")

    def read(self, keys: Iterable[bytes]) -> dict[bytes, tuple[float, float]]:
        """Return what is there of these keys: (value, std)."""
        stored = {}
        with self._open() as connection:
            for key in keys:
                row = connection.execute("SELECT value, std FROM scores WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    stored[key] = (row[0], math.nan if row[1] is None else row[1])
        return stored

    def write(self, new: dict[bytes, tuple[float, float]], used: Iterable[bytes] = ()) -> None:
        """Store what is new, note what was used, and drop the least recently used while the file is too large.

        One transaction. A key that another process stored meanwhile keeps its value, which is the same. What cannot
        be stored now, as on a full disk, is told in a warning and left out, for the values themselves are right.
        Raises CacheError for a damaged file.
        """
        now = time.time_ns()
        rows = [(key, value, None if math.isnan(std) else std, now) for key, (value, std) in new.items()]
        with self._open() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("UPDATE scores SET used = ? WHERE key = ?", [(now, key) for key in used])
                connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?)", rows)
                while rows and _size(connection) > self.max_bytes:
                    dropped = connection.execute(
                        "DELETE FROM scores WHERE key IN (SELECT key FROM scores ORDER BY used LIMIT "
                        "max(1, CAST((SELECT count(*) FROM scores) * ? AS INTEGER)))", (EVICTED_SHARE,)
                    ).rowcount  # fmt: skip
                    if dropped < 1:
                        break
                connection.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):  # a full disk has ended the transaction already
                    connection.execute("ROLLBACK")
                if not isinstance(error, sqlite3.OperationalError):
                    raise
                warnings.warn(f"{self.path}: new scores are not stored ({error}); {_WAY_OUT}", stacklevel=2)

    def size(self) -> tuple[int, int]:
        """Return (entries, bytes of the pages in use)."""
        with self._open() as connection:
            return connection.execute("SELECT count(*) FROM scores").fetchone()[0], _size(connection)

    def close(self) -> None:
        """Close this process' connection; the next use opens another."""
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None


def _size(connection: sqlite3.Connection) -> int:
    pages, free, page_bytes = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * page_bytes)
