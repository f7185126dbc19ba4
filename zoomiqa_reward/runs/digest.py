"""Short hashes that name content."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

Part = str | bytes | memoryview


def digest(*parts: Part, size: int = 16) -> str:
    """Return the first `size` hex digits of the sha256 of the parts, one after the other; texts count as UTF-8.

    Of a file name that is no UTF-8, its bytes count.

    >>> digest("a", b"b") == digest("ab"), len(digest("ab"))
    (True, 16)
    """
    return digest_of(parts, size=size)


def digest_of(parts: Iterable[Part], *, size: int = 16) -> str:
    """Return the `digest` of parts that are made one at a time, so that they need not be held together."""
    total = hashlib.sha256()
    for piece in parts:
        total.update(piece.encode(errors="surrogateescape") if isinstance(piece, str) else piece)
    return total.hexdigest()[:size]


def listing_digest(paths: Iterable[Path]) -> str:
    """Return 16 hex digits of the names and sizes of files, in this order. Raises OSError.

    They tell whether files are the same ones, wherever they lie, without reading them.
    """
    return digest_of(f"{path.name}\t{path.stat().st_size}\n" for path in paths)


def file_digest(path: str | os.PathLike[str], *, size: int = 64) -> str:
    """Return the first `size` hex digits of the sha256 of a file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:size]


def file_stamp(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return what tells whether a file was replaced or changed, without reading it. Raises OSError.

    The time of its last writing alone does not: `cp -p` and `rsync` put back that of the file they copy.
    """
    state = os.stat(path)
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
