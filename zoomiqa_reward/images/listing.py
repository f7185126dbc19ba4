"""Which files of a folder are images to be measured: the one place that lists folders."""

from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif",
     ".tiff", ".webp")
)  # fmt: skip
"""Files that a folder stands for; a file named by itself may be called anything."""


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder in sorted order, not those of its subfolders.

    Hidden files (`._a.png`, which macOS leaves beside `a.png`), folders, pipes and the like are passed over. A link
    that leads nowhere is listed, so that the failure to read it is reported. Raises OSError.
    """
    return sorted(path for path in folder.iterdir() if _is_image(path))


def _is_image(path: Path) -> bool:
    if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
        return False
    return path.is_file() or (path.is_symlink() and not path.exists())


def printable(name: str) -> str:
    """Return a file name for people: one line, with escapes for what cannot be shown.

    >>> printable("two\\nlines.png"), printable("caf\\u00e9 1.png")
    ('two\\\\nlines.png', 'café 1.png')
    """
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in name)
