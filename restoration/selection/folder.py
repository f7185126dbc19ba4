"""Best of N over a folder: one run per image in a folder of its own, and a table of all that a second call continues.

    run.json            what all runs share, fixed at the start
    runs/NAME/          the run of one image, as `selection.result` writes it; NAME is its path within the folder
    best/NAME           the chosen images alone, for `zoomiqa compare`
    summary.csv, .jsonl one row per image, and the error of one that failed

The row of an image is kept, and nothing is made again, while its bytes and what was asked for are the same.
What a kill leaves half done is continued by the run of that image. An image that failed is tried again. An image that
has no choice any more, as one that was edited, has none in `best` either; its run stays.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from restoration.restorer.loading import RestorerSource
from restoration.restorer.restorer import Restorer
from restoration.selection.best_of_n import Cascade, best_of_n, known_identity, pool, settings_of
from restoration.selection.candidate_loop import require_draws, require_texts
from restoration.selection.early_stop import EarlyStop
from restoration.selection.pool import BICUBIC
from restoration.selection.result import BestOfN
from zoomiqa_reward.images.listing import list_images, natural_order
from zoomiqa_reward.images.loading import save_png
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.runs.digest import digest, file_digest
from zoomiqa_reward.runs.failures import Failures
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import as_float, plain
from zoomiqa_reward.runs.outputs import part_folder
from zoomiqa_reward.runs.settings import AnotherRun
from zoomiqa_reward.runs.tables import read_table, write_table
from zoomiqa_reward.whole_numbers import whole_numbers

SUMMARIES = ("summary.jsonl", "summary.csv")
BEST, RUNS = "best", "runs"
"""Folders of the chosen images, and of the runs."""


@dataclass(frozen=True, kw_only=True)
class FolderRow:
    """What came out for one image; numbers are NaN, and texts empty, where there is no choice."""

    image: str
    """Path within the folder."""
    chosen: str = ""
    """The chosen image, within OUT."""
    candidate: int | None = None
    seed: int | None = None
    restorer: str = ""
    score: float = math.nan
    std: float = math.nan
    cascade_score: float = math.nan
    bicubic: float = math.nan
    """Score of bicubic enlargement, where it took part."""
    first: float = math.nan
    """Score of candidate 0: of a varied pool the restorer as it is."""
    candidates: int = 0
    measured: int = 0
    notes: tuple[str, ...] = ()
    error: str | None = None
    """Why nothing was chosen."""
    seconds: float = 0.0
    sha256: str | None = None
    """Of the image file."""
    asked: str = ""
    """Digest of all that the row depends on beside the image."""


def images_of(folder: Path, out: Path, *, recursive: bool = False) -> list[Path]:
    """Return the images of a folder in natural order, without those under `out`.

    Raises ValueError for what is no folder, and without any image.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; name a folder of images")
    inside = out.resolve()
    files = [file for file in list_images(folder, recursive=recursive) if inside not in file.resolve().parents]
    if not files:
        more = "" if recursive else "; --recursive (recursive=True) takes those of its subfolders"
        raise ValueError(f"{folder}: no images in it{more}")
    return sorted(files, key=natural_order)


def best_of_folder(
    restorer: RestorerSource | Restorer | Sequence[RestorerSource | Restorer], folder: str | Path,
    reward: Reward, out: str | Path, n: int = 8, seed: int = 0, *,
    recursive: bool = False, batch_size: int = 1, strict: bool = True, prompts: str | Sequence[str] | None = None,
    early_stop: EarlyStop | None = None, cascade: Cascade | None = None,
) -> Iterator[FolderRow]:  # fmt: skip
    """Yield one row per image of `folder`, as each is done; arguments as in `best_of_n`.

    An image that cannot be read or restored, or whose run in `out` is of another image, gives a row with an error;
    others go on. Before the first row, raises ValueError for numbers out of range, a folder without images, an `out` of
    another run, a reward that needs hr, and one that needs a text where none is given; later the error by which the
    first images all fail (`runs.failures`).
    """
    n, seed, batch_size = whole_numbers(n=n, seed=seed, batch_size=batch_size)  # as run.json has them
    folder, out = Path(folder), Path(out)
    files = images_of(folder, out, recursive=recursive)
    restorers = [source.restorer for source in pool(restorer, None)]
    batch = None if strict else batch_size
    stages = [reward] if cascade is None else [reward, cascade.reward]
    require_draws(stages, n=n, seed=seed, batch_size=batch_size)
    require_texts(stages, pool(restorers, prompts))
    settings = settings_of(pool(restorers, prompts), {"lq": None, "hr": None}, reward, seed, batch)
    settings = {key: value for key, value in settings.items() if key not in ("image", "hr")}
    again = None if cascade is None else (known_identity(cascade.reward, is_kept=True), cascade.top)
    asked = digest(repr([plain(settings), n, early_stop, again]))
    with locked(out):
        bind(out, settings, key="folder", results=SUMMARIES)
        names = {file.relative_to(folder).as_posix(): file for file in files}
        before = {row["image"]: row for row in read_table(out / SUMMARIES[0])}
        best = _names_of_best([*names, *(name for name in before if name not in names)])  # no row loses its image
        cells: list[dict[str, Any]] = []
        failures = Failures()
        for name, file in names.items():
            empty = FolderRow(image=name, sha256=_digest_of(file), asked=asked)
            row = _kept(before.get(name), empty, out)
            if row is None:
                began = time.monotonic()
                try:
                    result = best_of_n(
                        restorers, file, reward, n=n, seed=seed, out=part_folder(out / RUNS) / name,
                        batch_size=batch_size, strict=strict, prompts=prompts, early_stop=early_stop, cascade=cascade,
                        progress=False,
                    )  # fmt: skip
                    row = _row(empty, result, out, best[name])
                except AnotherRun as error:
                    way_out = f"; or delete {out / RUNS / name} to restore the image anew"
                    row = replace(empty, error=failures.reason(error) + way_out)
                except Exception as error:  # noqa: BLE001 - whatever a restorer or a reward raises for this image
                    row = replace(empty, error=failures.reason(error))
                row = replace(row, seconds=round(time.monotonic() - began, 3))
            if row.error is None:
                failures.succeeded()
            cells.append(_cells(row))
            earlier = before.pop(name, None)  # the others stay in the table until their turn, if it comes
            if earlier is not None:
                _forget_choice(earlier["chosen"], out, {other["chosen"] for other in [*cells, *before.values()]})
            for table in SUMMARIES:
                write_table(out / table, [*cells, *before.values()])
            yield row


def _row(empty: FolderRow, result: BestOfN, out: Path, best: str) -> FolderRow:
    """Copy the chosen image into the folder of the best ones and return the row."""
    measured = sum(candidate.valid for candidate in result.candidates)
    counted = replace(empty, candidates=len(result.candidates), measured=measured, notes=result.notes)
    if not measured:
        return replace(counted, error=f"none of {len(result.candidates)} candidates could be measured; the first: "
                       f"{result.candidates[0].error}")  # fmt: skip
    chosen = result.best
    part_folder((out / BEST / best).parent)
    save_png(chosen.image, out / BEST / best)
    return replace(
        counted, chosen=f"{BEST}/{best}", candidate=chosen.index, seed=chosen.seed, restorer=chosen.restorer,
        score=chosen.score, std=chosen.std, cascade_score=chosen.cascade_score, first=result.candidates[0].score,
        bicubic=next((item.score for item in result.candidates if item.restorer == BICUBIC), math.nan),
    )  # fmt: skip


def _forget_choice(chosen: str, out: Path, still_chosen: Collection[str]) -> None:
    """Remove what an earlier row chose from the folder of the best, unless a row still has it; its run holds it too."""
    if chosen and chosen not in still_chosen:
        (out / chosen).unlink(missing_ok=True)


def _kept(before: dict[str, Any] | None, empty: FolderRow, out: Path) -> FolderRow | None:
    """Return the row of an earlier call where it still holds."""
    if (
        before is None
        or before["error"] is not None
        or (before["sha256"], before["asked"]) != (empty.sha256, empty.asked)
    ):
        return None
    if not os.path.exists(out / before["chosen"]) or not os.path.exists(out / RUNS / empty.image / "run.json"):
        return None  # os.path: a name may be too long for the folder of its run
    values = {key: before[key] for key in (field.name for field in fields(FolderRow))}
    for key in ("score", "std", "cascade_score", "bicubic", "first", "seconds"):
        values[key] = as_float(values[key])
    return FolderRow(**(values | {"notes": tuple(values["notes"])}))


def _cells(row: FolderRow) -> dict[str, Any]:
    return asdict(row) | {"notes": list(row.notes)}


def _names_of_best(names: Sequence[str]) -> dict[str, str]:
    """Return a PNG name for each image: its own, and with the first suffix where two would have the same.

    >>> _names_of_best(["a.jpg", "b.jpg", "b.png"])
    {'a.jpg': 'a.png', 'b.jpg': 'b.jpg.png', 'b.png': 'b.png.png'}
    >>> _names_of_best(["c.jpg", "c.png", "c.png.jpg"])
    {'c.jpg': 'c.jpg.png', 'c.png': 'c.png.png', 'c.png.jpg': 'c.png.jpg.png'}
    """
    shown = {name: PurePosixPath(name).with_suffix(".png").as_posix() for name in names}
    while repeated := {best for best, count in Counter(shown.values()).items() if count > 1}:
        shown = {name: f"{name}.png" if best in repeated else best for name, best in shown.items()}
    return shown


def _digest_of(file: Path) -> str | None:
    try:
        return file_digest(file)
    except OSError:  # restoring it says why
        return None
