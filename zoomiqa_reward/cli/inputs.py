"""Options, file arguments and model loading of the measuring commands."""

import contextlib
import glob
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zoomiqa_reward.images.listing import IMAGE_SUFFIXES, left_out, list_images, natural_order, printable

if TYPE_CHECKING:
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

__all__ = ["IMAGE_SUFFIXES", "expand", "load_model", "named"]

Images = Annotated[list[str], typer.Argument(help="Files, folders or glob patterns.", show_default=False)]
Model = Annotated[str, typer.Option(help="'nano' (embedded), a hub id, or a folder.")]
Mode = Literal["direct", "reason"]
ModeOption = Annotated[Mode, typer.Option(help="direct: the rating's distribution; reason: the full answer in words.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line per image on stdout.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the best available.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(
        help="Of the weights; default: float32 on a CPU, bfloat16 on CUDA. A CPU that has bfloat16 is faster in it."
    ),
]
Strict = Annotated[bool, typer.Option("--strict/--batched", help="One image per forward pass (bit-equal), or several.")]


def _require_text(question: str | None) -> str | None:
    if question is not None and not question.strip():
        raise typer.BadParameter("must be a text; leave it out to ask the checkpoint's own question")
    return question


Question = Annotated[str | None, typer.Option(help="Replaces the checkpoint's own question.", callback=_require_text)]
ProtocolFile = Annotated[str | None, typer.Option("--protocol", help="Protocol file, for a model without one.")]
Adapter = Annotated[str | None, typer.Option(help="LoRA adapter: a hub id or a folder.")]
SheetFile = Annotated[
    str | None, typer.Option("--sheet", help="File for a contact sheet with ratings, reasons and regions.")
]

InputImage = Annotated[
    str | None,
    typer.Option("--lq", help="The low-quality input of all images: rank by the rating conditioned on it."),
]
ReferenceImage = Annotated[
    str | None,
    typer.Option(
        "--reference", "--hr", help="The clean reference of all images: rank by the rating and the likeness to it."
    ),
]

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output file that this program did not make; never an input.")
]

TableFile = Annotated[
    Path | None,
    typer.Option("--out", help="Table: .jsonl, .csv or .parquet; the same command goes on and measures what is new."),
]
Recursive = Annotated[bool, typer.Option("--recursive", help="Take the images of subfolders too.")]

Shared = Annotated[
    bool,
    typer.Option(
        "--shared", help="Share the work with other processes that run this command (accelerate launch does)."
    ),
]

RayWorkers = Annotated[
    int,
    typer.Option(
        "--ray",
        min=0,
        help="Workers on the Ray cluster of RAY_ADDRESS, or of this machine; 0: no Ray.",
    ),
]


def launched_processes() -> tuple[int, int]:
    """Return this process's rank and how many `accelerate launch` or torchrun started; (0, 1) without them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_device(asked: str | None, rank: int) -> str | None:
    """Return the device of one of several processes: its own GPU, unless one was asked for."""
    import torch

    if asked is not None or not torch.cuda.is_available():
        return asked
    return f"cuda:{int(os.environ.get('LOCAL_RANK', rank)) % torch.cuda.device_count()}"


def expand(arguments: Sequence[str], *, recursive: bool = False) -> list[str]:
    """Return the image files that the arguments name, each argument's own in order: `f2.png` before `f10.png`.

    A folder gives its images (`list_images`: nothing hidden, those of subfolders only if `recursive`), a pattern its
    matches and the images of those that are folders. A file that arguments have in common counts once, unless it is
    named by itself each time. What names nothing is returned as it stands, so that the failure to read it is reported
    like any other.

    >>> expand(["no/such/file.png"])
    ['no/such/file.png']
    """
    results: list[str] = []
    is_named: dict[Path, bool] = {}
    for argument in arguments:
        files: list[str] = []
        # os.path, for pathlib raises on names that the system refuses, which would lose the others.
        if os.path.isdir(argument):
            with contextlib.suppress(OSError):  # reading it as an image says why
                files = [str(file) for file in list_images(Path(argument), recursive=recursive)]
                tell_left_out(Path(argument), recursive=recursive)
        elif not os.path.lexists(argument):  # a file may itself be called "a[1].png"
            with contextlib.suppress(ValueError, re.error):  # a null character; no pattern
                files = _matches(argument, recursive=recursive)
        for file in sorted(files, key=natural_order) or [argument]:
            path = place_of(file)
            if path not in is_named or (is_named[path] and not files):
                results.append(file)
            is_named[path] = is_named.get(path, True) and not files
    return results


def place_of(file: str) -> Path:
    """Return the absolute path, which tells whether two names are of one file: `a.png`, `./a.png`, `/in/a.png`.

    `..` stays, for behind a link it leads elsewhere; two links to one file are two files.
    """
    return Path(file).absolute()


def once_each(files: Sequence[str]) -> list[str]:
    """Return the files in order, each once, under the first of its names.

    >>> once_each(["b.png", "a.png", "./b.png"])
    ['b.png', 'a.png']
    """
    by_place: dict[Path, str] = {}
    for file in files:
        by_place.setdefault(place_of(file), file)
    return list(by_place.values())


def _matches(pattern: str, *, recursive: bool) -> list[str]:
    """Return what a pattern matches, with the images of the folders among it."""
    files: list[str] = []
    for match in glob.glob(pattern, recursive=True):
        if not os.path.isdir(match):
            files.append(match)
        elif os.path.basename(pattern) != "**":  # which matches all that lies in the folder
            files += expand([match], recursive=recursive)
    return files


def tell_left_out(folder: Path, *, recursive: bool) -> None:
    """Say on stderr how many images of a folder are of kinds that a folder does not stand for. Raises OSError."""
    if (message := left_out(folder, recursive=recursive)) is not None:
        print(message, file=sys.stderr)


def named(image: str, error: str | None) -> str:
    """Return why an image has no rating, with its name once.

    >>> named("a.png", "too small"), named("a.png", "a.png: no such file or folder")
    ('a.png: too small', 'a.png: no such file or folder')
    """
    return printable(error if error and error.startswith(f"{image}:") else f"{image}: {error}")


def load_model(
    name: str, *, device: str | None, adapter: str | None, protocol: str | None, dtype: str | None = None
) -> "ZoomIQA":
    """Load the model of a command and print its name on stderr."""
    from zoomiqa_reward import ZoomIQA

    print(f"loading model {name} ...", file=sys.stderr)
    return ZoomIQA.from_pretrained(name, device=device, dtype=dtype, adapter=adapter, protocol=protocol)
