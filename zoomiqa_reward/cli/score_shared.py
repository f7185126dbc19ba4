"""`zoomiqa score --out TABLE` by several processes: `--shared`, `accelerate launch`, or the workers of `--ray`.

Each process rates blocks of the files (`runs.shared_work`) into `TABLE.parts`; the last one makes the table of them.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoomiqa_reward.cli.inputs import load_model
from zoomiqa_reward.cli.score_table import (
    ScoreTable,
    digest_if_readable,
    fingerprint_of,
    measure_rows,
    names_in,
    record_of,
    typed_row,
    watch,
)
from zoomiqa_reward.model.measuring import BATCH, RatedImage
from zoomiqa_reward.runs.digest import digest_of
from zoomiqa_reward.runs.progress import progress
from zoomiqa_reward.runs.settings import AnotherRun
from zoomiqa_reward.runs.shared_work import SharedWork, parts_of
from zoomiqa_reward.runs.tables import read_table

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA


_CHANGED_NS = "changed_ns"
"""Column of a part, not of the table."""


def score_shared(
    out: Path, overwrite: bool, iqa: "ZoomIQA | RemoteZoomIQA", files: Sequence[str], *, rank: int = 0,
    then: Callable[[RatedImage], None] = lambda record: None, **asked: Any,
) -> tuple[list[RatedImage], bool]:  # fmt: skip
    """Rate this process's part of the files. Return (records, whether this process wrote the table).

    The records are those of all files where it wrote the table, else its own. rank: the process's number, by which they
    begin apart. then: gets each record of this process as it comes. asked: mode, strict, question.
    """
    table = ScoreTable(out, fingerprint_of(iqa, **asked), overwrite)
    table.open()
    work = shared_work(table, files, {"model": iqa.name, **asked})
    results = measure_shared(table, iqa, files, work, start=rank, **asked)
    records = watch(progress(results, None, "rating, this process's part"), then)
    finished = finish_shared(table, files, work, partial(measure_rows, table, iqa, chunk=1, **asked))
    print(f"{out}: {len(files)} images, {len(records)} of them by this process", file=sys.stderr)
    table.tell_replaced()
    return (table.records() if finished else records), finished


@dataclass(frozen=True, kw_only=True)
class Job:
    """What each worker of a cluster does: loads the model, then rates with the others."""

    files: tuple[str, ...]
    folder: str
    """The working folder that relative paths start from."""
    out: Path
    overwrite: bool
    device: str | None
    loaded: dict[str, Any]
    """`model`, `dtype`, `adapter`, `protocol`."""
    asked: dict[str, Any]
    """`mode`, `strict`, `question`."""

    def __call__(self) -> Callable[[int], int]:
        """Return what rates, given the worker's number; it returns how many records it has. Raises CheckpointError."""
        os.chdir(self.folder)
        options = {name: value for name, value in self.loaded.items() if name != "model"}
        iqa = load_model(self.loaded["model"], device=self.device, **options)

        def rate(worker: int) -> int:
            return len(score_shared(self.out, self.overwrite, iqa, self.files, rank=worker, **self.asked)[0])

        return rate


def score_on_cluster(job: Job, *, workers: int) -> list[RatedImage]:
    """Rate the files of a job by the workers of a Ray cluster and return all records."""
    from zoomiqa_reward.integrations.ray_data import score_on_ray

    score_on_ray(job, workers=workers, out=job.out, num_files=len(job.files))
    rows = {row["image"]: row for row in map(typed_row, read_table(job.out))}
    print(f"{job.out}: {len(job.files)} images by {workers} workers", file=sys.stderr)
    names = names_in(job.out, job.files)
    return [replace(record_of(rows[name]), image=file) for name, file in zip(names, job.files, strict=True)]


def shared_work(table: ScoreTable, files: Sequence[str], asked: Mapping[str, object]) -> SharedWork:
    """Return the folder `TABLE.parts` beside the table. Raises AnotherRun, OutputError, SharingError."""
    settings = {
        **asked,
        "fingerprint": table.fingerprint,
        "files": digest_of(f"{name}\0" for name in names_in(table.path, files)),
    }
    folder = parts_of(table.path)
    try:
        return SharedWork(folder, settings, len(files))
    except AnotherRun as error:
        raise AnotherRun(f"{error}; or delete {folder}, what a stopped run left, and start again") from error


def measure_shared(
    table: ScoreTable,
    iqa: "ZoomIQA | RemoteZoomIQA",
    files: Sequence[str],
    work: SharedWork,
    *,
    start: int,
    **asked: Any,
) -> Iterator[RatedImage]:
    """Yield the records of this process's blocks of the files; the rows lie in the parts of `work` afterwards."""
    chunk = 1 if asked["strict"] else BATCH
    for block, items in work.blocks(start):
        table.rows.clear()
        block_files = [files[item] for item in items]
        changed_at = [_changed_ns(file) for file in block_files]  # before the first byte is read
        yield from measure_rows(table, iqa, block_files, chunk=chunk, **asked)
        rows = ({**row, _CHANGED_NS: at} for row, at in zip(table.rows, changed_at, strict=True))
        work.put(block, "".join(f"{json.dumps(row)}\n" for row in rows))
    table.rows.clear()


def finish_shared(
    table: ScoreTable,
    files: Sequence[str],
    work: SharedWork,
    measure_again: Callable[[list[str]], Iterator[RatedImage]],
) -> bool:
    """Write the table of all parts in one of the processes, and return whether it was this one.

    A file that was changed since its block was begun is measured again: measure_again adds its row to the table.
    """

    def write() -> None:
        table.open()  # anew: another command may have written it in the meantime
        rows = [row | {"image": file} for row, file in zip(work.rows(), files, strict=True)]
        stale = [item for item, row in enumerate(rows) if _is_changed(files[item], row, row.pop(_CHANGED_NS, None))]
        for _ in measure_again([files[item] for item in stale]):
            pass
        for item, row in zip(stale, table.rows, strict=True):
            rows[item] = row
        table.rows = rows
        table.write()

    return work.finish(write)


def _is_changed(file: str, row: dict[str, Any], changed_ns: int | None) -> bool:
    """Whether a file has other bytes than a row; the bytes of files that were not touched are not read."""
    if (now := _changed_ns(file)) is None or now == changed_ns:
        return False
    return (sha256 := digest_if_readable(file)) is not None and sha256 != row["sha256"]


def _changed_ns(file: str) -> int | None:
    """Return the time of the last change of a file, of its bytes or its name, as its own file system counts it."""
    try:
        return os.stat(file).st_ctime_ns
    except (OSError, ValueError):
        return None
