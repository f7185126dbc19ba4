"""Which files of a folder are images to be measured: the one place that lists folders."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif",
     ".tiff", ".webp")
)  # fmt: skip
"""Files that a folder stands for; a file named by itself may be called anything."""
OTHER_IMAGES = frozenset(
    (".arw", ".cr2", ".cr3", ".dib", ".dng", ".exr", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jpe", ".jxl", ".nef",
     ".orf", ".pnm", ".psd", ".raf", ".raw", ".rw2", ".svg")
)  # fmt: skip
"""Files of images that a folder does not stand for."""


def list_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Return the image files of a folder in the order of their names; those of its subfolders only if `recursive`.

    Hidden files and subfolders (`._a.png`, which macOS leaves beside `a.png`), links to folders, pipes and the like are
    skipped. A link that leads nowhere is listed, so that the failure to read it is reported; so is a subfolder that
    may not be opened. Raises OSError for the folder itself.
    """
    results: list[Path] = []
    for path in folder.iterdir():
        if _is_image(path):
            results.append(path)
        elif recursive and _is_subfolder(path):
            try:
                results += list_images(path, recursive=True)
            except OSError:
                results.append(path)
    return sorted(results)


def left_out(folder: Path, *, recursive: bool = False) -> str | None:
    """Return how many images of other kinds `list_images` passes over, for people; None for none. Raises OSError.

    A text beside the images is no image, and not counted.
    """
    kinds = Counter(_other_kinds(folder, recursive))
    if not kinds:
        return None
    counts = ", ".join(f"{suffix} {count}" for suffix, count in sorted(kinds.items()))
    return (
        f"{printable(str(folder))}: {kinds.total()} files of other kinds were left out ({counts}); convert them to PNG"
    )


def _other_kinds(folder: Path, recursive: bool) -> Iterator[str]:
    for path in folder.iterdir():
        if path.suffix.lower() in OTHER_IMAGES and is_shown(path):
            yield path.suffix.lower()
        elif recursive and _is_subfolder(path):
            with contextlib.suppress(OSError):
                yield from _other_kinds(path, recursive)


def short_names(files: Sequence[str]) -> list[str]:
    """Return what people read under each image: the file's name, or the path as given where others have that name.

    >>> short_names(["a/x.png", "b/x.png", "b/y.png"])
    ['a/x.png', 'b/x.png', 'y.png']
    """
    names = [Path(file).name for file in files]
    counts = Counter(names)
    return [name if counts[name] == 1 else file for name, file in zip(names, files, strict=True)]


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


def _is_subfolder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not path.name.startswith(".")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and is_shown(path)


def printable(name: str) -> str:
    """Return a file name for people: one line, with escapes for what cannot be shown.

    >>> printable("two\\nlines.png"), printable("caf\\u00e9 1.png")
    ('two\\\\nlines.png', 'café 1.png')
    """
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in name)
