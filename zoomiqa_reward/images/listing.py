"""Which files of a folder are images to be measured: the one place that lists folders."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif",
     ".tiff", ".webp")
)  # fmt: skip
"""Files that a folder stands for; a file named by itself may be called anything."""


def list_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Return the image files of a folder in the order of their names; those of its subfolders only if `recursive`.

    Hidden files and subfolders (`._a.png`, which macOS leaves beside `a.png`), links to folders, pipes and the like are
    passed over. A link that leads nowhere is listed, so that the failure to read it is reported. Raises OSError.
    """
    if recursive:
        return sorted(path for inner in _folders(folder) for path in inner.iterdir() if _is_image(path))
    return sorted(path for path in folder.iterdir() if _is_image(path))


def natural_order(path: str | Path) -> list[Any]:
    """Return a key that sorts numbers in names by their value; for lists that people read.

    Data sets keep the plain order, for the seeds of their degradations follow it.

    >>> sorted(["f10.png", "f2.png", "F1.png", "f.png"], key=natural_order)
    ['F1.png', 'f2.png', 'f10.png', 'f.png']
    """
    parts = re.split(r"([0-9]+)", str(path))
    return [[int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)], str(path)]


def is_shown(path: Path) -> bool:
    """Return whether a listing holds this entry: nothing hidden, no folder, no pipe; a link that leads nowhere."""
    return not path.name.startswith(".") and (path.is_file() or (path.is_symlink() and not path.exists()))


def _folders(folder: Path) -> Iterator[Path]:
    """Yield the folder and all folders in it that are not hidden. Raises OSError."""
    yield folder
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _folders(path)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and is_shown(path)


def printable(name: str) -> str:
    """Return a file name for people: one line, with escapes for what cannot be shown.

    >>> printable("two\\nlines.png"), printable("caf\\u00e9 1.png")
    ('two\\\\nlines.png', 'café 1.png')
    """
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in name)
