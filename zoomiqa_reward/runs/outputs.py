"""The one place that every output passes: it refuses to replace an input, or a file that this program did not make.

What the program makes carries a mark: an image names it in its `Software` field, a table in its column `made_by`, and a
folder of a run holds a file `.zoomiqa`. Without that mark, what stands in the way is the user's, and stays. An image
that a run keeps, such as a restoration, has a mark of its own, so that no figure replaces it.
`overwrite=True` is the user's own word that a file may go; an input is never replaced.

A file that the user names goes through `claim_file` before the work; a folder that the user names through
`claim_folder`. What a run writes in its own folder goes through `part_folder` and `replacing` (or `write_text`).
"""

import contextlib
import csv
import json
import math
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from PIL import Image, PngImagePlugin

from zoomiqa_reward.errors import ZoomIQAError

SOFTWARE = "zoomiqa-reward"
KEPT = f"{SOFTWARE} image"
"""In the `Software` field of images that are results, and no figures."""
MADE_BY = "made_by"
"""Column of a table."""
MARK = ".zoomiqa"
"""File in a run's folder."""
_MARK_TEXT = "Made by zoomiqa-reward, which may replace its own files here.\n"
_SOFTWARE_TAG = 0x0131
"""`Software`, of EXIF and TIFF."""
FIGURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
"""Suffixes of sheets and figures, and Pillow's names of their formats: those that hold any image in full colour."""
_LONGEST_PX = {"JPEG": 65_500, "WEBP": 16_383}
_FROM_BEFORE = ("run.json", "settings.json")
"""What a run's folder held before folders were marked; one of this program names its version in it."""
_UNFINISHED = (".lock",)


class OutputError(ZoomIQAError, ValueError):
    """An output that would replace what it must not; the message names the file and the way out."""


def claim_file(
    path: str | os.PathLike[str], *, inputs: Iterable[object] = (), overwrite: bool = False, suffixes: bool = False
) -> Path:
    """Return the path of an output file that may be written; call it before the work, not after.

    inputs: paths that are read; anything else in it is skipped. suffixes: the suffix must be one of `FIGURES`.
    Raises OutputError: one of the inputs, a folder, no folder to write into, another suffix; unless `overwrite`, also
    for a file that this program did not make, and with `suffixes` for an image that a run keeps.
    """
    target = Path(path)
    if suffixes and target.suffix.lower() not in FIGURES:
        raise OutputError(
            f"{target}: {target.suffix or 'no suffix'} is no image format to write; end it in {', '.join(FIGURES)}"
        )
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; name a file in it")
    folder = behind_link(target).parent
    if not folder.is_dir():
        raise OutputError(f"{target}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: the folder {folder} may not be written to; name another place")
    for source in inputs:
        if isinstance(source, str | os.PathLike) and _same(target, Path(source)):
            raise OutputError(f"{target}: is one of the inputs, and would be replaced; name another output")
    if not overwrite and os.path.lexists(behind_link(target)) and not made_here(target):
        raise OutputError(
            f"{target}: is there already, and this program did not make it; name another output, or allow it with "
            "--overwrite (overwrite=True)"
        )
    if suffixes and not overwrite and _software(target) == KEPT:
        raise OutputError(
            f"{target}: is an image that a run keeps, and a figure would replace it; name another output, or allow it "
            "with --overwrite (overwrite=True)"
        )
    return target


def claim_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a run's folder, made if it is missing, and marked as one of this program.

    Raises OutputError as `require_folder` does.
    """
    target = require_folder(folder)
    target.mkdir(parents=True, exist_ok=True)
    if not (target / MARK).exists():
        (target / MARK).write_text(_MARK_TEXT, encoding="utf-8")
    return target


def require_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder that `claim_folder` would take; makes nothing, for the checks before long work.

    Raises OutputError for a file, and for a folder that holds files but no run of this program.
    """
    target = Path(folder)
    above = next((path for path in (target, *target.parents) if os.path.lexists(path)), target)
    if os.path.lexists(above) and not above.is_dir():
        raise OutputError(f"{above}: is a file; name a folder for the output")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: the folder {above} may not be written to; name another place")
    if above != target or (target / MARK).exists() or any(_names_us(target / name) for name in _FROM_BEFORE):
        return target
    if (stranger := _first_file(target)) is not None:
        raise OutputError(
            f"{target}: holds {stranger}, which this program did not make; name a new or an empty folder for the output"
        )
    return target


def part_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a folder within a run, made if it is missing; one that lies in no run is claimed as one.

    Raises OutputError as `claim_folder` does.
    """
    target = Path(folder)
    if not _is_in_run(target):
        return claim_folder(target)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target}: is a file where the run needs a folder; move it away")
    target.mkdir(parents=True, exist_ok=True)
    return target


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give the path to write to; what is written is renamed to `path` at the end, so no reader sees half a file.

    A link stays, and what it leads to is replaced. Within a run's folder the file may be there already; elsewhere
    `claim_file` decides. Raises OutputError, OSError.
    """
    target = behind_link(Path(path))
    if not _is_in_run(target.parent):
        claim_file(path, overwrite=overwrite)
    name = os.fsdecode(os.fsencode(target.name)[:180])  # a name has at most 255 bytes
    half = target.with_name(f".{name}.{os.getpid()}-{threading.get_ident():x}.tmp")
    try:
        with naming(path):
            yield half
            os.replace(half, target)
    finally:
        half.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give an OSError that names no file, such as that of a full disk, the path that was written."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def behind_link(path: Path) -> Path:
    """Return what a symbolic link leads to, whether or not it is there; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = False) -> Path:
    """Write a UTF-8 file in one step and return where it is. Raises as `replacing` does."""
    with replacing(path, overwrite=overwrite) as half:
        half.write_text(text, encoding="utf-8")
    return Path(path)


def copy_file(source: Path, path: Path, *, overwrite: bool = False) -> Path:
    """Copy a file byte for byte, in one step, and return where it is. Raises as `replacing` does."""
    with replacing(path, overwrite=overwrite) as half:
        shutil.copyfile(source, half)
    return path


def made_here(path: Path) -> bool:
    """Whether this program made the file: an image by its `Software` field, a table by `made_by`, a protocol file."""
    if path.suffix.lower() in (".jsonl", ".csv", ".parquet"):
        with contextlib.suppress(Exception):  # whatever a reader raises: it is not ours
            return first_row(path)[MADE_BY] == SOFTWARE
        return False
    if path.suffix.lower() == ".json":
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            return isinstance(content, dict) and {"format_version", "round1", "direct_prefix"} <= set(content)
        return False
    if path.suffix.lower() in (".html", ".htm"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as page:
            return f'name="generator" content="{SOFTWARE}"' in page.read(1000)
        return False
    return _software(path) in (SOFTWARE, KEPT)


def _software(path: Path) -> str | None:
    """Return what the `Software` field of an image names; None without one, and for any other file."""
    with contextlib.suppress(Exception), Image.open(path) as image:  # whatever a decoder raises: it is not ours
        return image.info.get("Software") or image.getexif().get(_SOFTWARE_TAG)
    return None


def first_row(path: Path) -> dict[str, object]:
    """Return the first row of a table; raises what its reader does."""
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        row: dict[str, object] = next(parquet.ParquetFile(path).iter_batches(1)).to_pylist()[0]
        return row
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        row = next(csv.DictReader(file)) if path.suffix.lower() == ".csv" else json.loads(next(file))
        return row


def save_image(
    image: Image.Image, file: str | os.PathLike[str] | IO[bytes], format_name: str, *, mark: str = SOFTWARE
) -> None:
    """Write an image with the program's mark, where its format has a place for it."""
    if format_name == "PNG":
        fields = PngImagePlugin.PngInfo()
        fields.add_text("Software", mark)
        image.save(file, format="PNG", pnginfo=fields)
        return
    exif = Image.Exif()
    exif[_SOFTWARE_TAG] = mark
    has_exif = format_name in ("JPEG", "WEBP", "TIFF", "AVIF", "MPO")
    image.save(file, format=format_name, **({"exif": exif} if has_exif else {}))


def write_figure(image: Image.Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a sheet or a figure by its suffix, in one step, and return where it is. Raises OutputError, OSError."""
    target = claim_file(path, overwrite=overwrite, suffixes=True)
    format_name = FIGURES[target.suffix.lower()]
    if max(image.size) > (longest := _LONGEST_PX.get(format_name, math.inf)):
        raise OutputError(
            f"{target}: {image.width} x {image.height} px; {format_name} holds {longest} px a side; end the "
            "name in .png"
        )
    with replacing(target, overwrite=True) as half:
        save_image(image, half, format_name)
    return target


def _is_in_run(folder: Path) -> bool:
    here = folder.absolute()
    return any((folder / MARK).is_file() for folder in (here, *here.parents))


def _same(first: Path, second: Path) -> bool:
    with contextlib.suppress(OSError):
        return first.samefile(second)
    return first.absolute() == second.absolute()


def _names_us(record: Path) -> bool:
    """Whether the record of a run names this program; a user's own `settings.json` does not."""
    with contextlib.suppress(OSError, ValueError):
        return f'"{SOFTWARE}"' in record.read_text(encoding="utf-8")
    return False


def _first_file(folder: Path) -> str | None:
    for root, folders, files in os.walk(folder):
        if MARK in files:  # a run of its own, inside
            folders.clear()
            continue
        for name in sorted(files):
            if name not in _UNFINISHED:
                return os.path.relpath(os.path.join(root, name), folder)
    return None
