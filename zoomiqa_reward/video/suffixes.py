"""Which files are clips, by their suffix; told without importing what reads them."""

from pathlib import Path

VIDEO_SUFFIXES = frozenset((".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".y4m"))


def is_clip(file: str) -> bool:
    """Return whether a file is read as a clip.

    >>> is_clip("a/b.MP4"), is_clip("a.gif")
    (True, False)
    """
    return Path(file).suffix.lower() in VIDEO_SUFFIXES
