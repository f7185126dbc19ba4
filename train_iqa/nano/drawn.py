"""Draw images once for several trainings: `python -m train_iqa.nano.drawn --photos DIR --out DRAWN --workers 8`.

A training draws its images by itself unless it has `--drawn DRAWN`. Folds of a cross-validation, or one recipe with
several seeds, can so share the work. They read the batches of this folder, also while it is being filled, each of them
once.
"""

import argparse
import contextlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from train_iqa.nano.drawing import LOCAL_SHARE_LARGE, LOCAL_SHARE_SMALL, DegradedImage
from train_iqa.nano.store import BATCH, LARGE_SHARE, DrawnBatch, WorkerError, Workers
from train_iqa.nano.synthetic import hold_out, list_photographs, read_record
from zoomiqa_reward.runs.folder import locked
from zoomiqa_reward.runs.outputs import replacing
from zoomiqa_reward.runs.program import Parser, run_program
from zoomiqa_reward.runs.progress import progress, say

QUIET_S = 60.0
"""Seconds without a new batch, before a training has enough, after which the folder is taken to be too small."""


def write_batch(batch: DrawnBatch, path: Path) -> None:
    """Write a batch as one `.npz`: images, references, what was done to each as JSON, and which of them failed."""
    arrays: dict[str, Any] = {"is_failed": np.array([drawn.is_failed for drawn in batch.images])}
    for number, drawn in enumerate(batch.images):
        arrays[f"image{number}"], arrays[f"reference{number}"] = drawn.image, drawn.reference
        arrays[f"record{number}"] = np.frombuffer(json.dumps(asdict(drawn.record)).encode(), dtype=np.uint8)
    with replacing(path) as half, open(half, "wb") as file:
        np.savez(file, **arrays)


def read_batch(path: Path) -> DrawnBatch:
    """Return the batch that `write_batch` wrote; its name says whether the images are large."""
    images = []
    with np.load(path, allow_pickle=False) as arrays:
        for number, is_failed in enumerate(arrays["is_failed"].tolist()):
            images.append(
                DegradedImage(
                    image=arrays[f"image{number}"],
                    reference=arrays[f"reference{number}"],
                    record=read_record(arrays[f"record{number}"].tobytes()),
                    is_failed=is_failed,
                )
            )
    return DrawnBatch(path.stem.endswith("_large"), images)


class DrawnFolder:
    """The batches of a folder, taken as from `Workers`. Use as a context.

    Raises ValueError for a folder without batches.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: set[str] = set()
        self._waiting = self._new()
        self._quiet_since: float | None = None
        if not self._waiting:
            raise ValueError(f"{folder}: no batch *.npz; fill it with `python -m train_iqa.nano.drawn`")

    def _new(self) -> list[Path]:
        paths = [path for path in sorted(self.folder.glob("*.npz")) if path.name not in self._seen]
        self._seen |= {path.name for path in paths}
        return paths[::-1]

    def take(self, timeout_s: float) -> DrawnBatch | None:
        """Return the next batch, None where there is no other."""
        if not self._waiting:
            self._waiting = self._new()
        if not self._waiting:
            self._quiet_since = self._quiet_since or time.monotonic()
            time.sleep(timeout_s)
            return None
        self._quiet_since = None
        return read_batch(self._waiting.pop())

    def require_more(self) -> None:
        """Raise WorkerError where no new batch has come for `QUIET_S` seconds and a training cannot begin."""
        if self._quiet_since is not None and time.monotonic() - self._quiet_since > QUIET_S:
            raise WorkerError(f"{self.folder}: its {len(self._seen)} batches are too few to begin; draw more")

    def __enter__(self) -> "DrawnFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting = []


def draw_folder(
    photos: tuple[Path, ...],
    out: Path,
    *,
    seconds: float,
    workers: int,
    seed: int,
    large_share: float = LARGE_SHARE,
    local_share: float | None = None,
) -> int:
    """Fill the folder for `seconds` from all but the held-out photographs, and return how many images were added.

    large_share: of the batches, those of whole images; local_share: see `drawing.draw_image`. Raises ValueError where
    another process draws into the folder.
    """
    training = [path for folder in photos for path in hold_out(list_photographs(folder))[0]]
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(out))
        first = 1 + max((int(path.stem.split("_")[0]) for path in out.glob("*.npz")), default=-1)
        drawing = stack.enter_context(
            Workers(training, count=workers, seed=seed + first, large_share=large_share, local_share=local_share)
        )
        began, count = time.monotonic(), 0
        for second in progress(range(round(seconds)), round(seconds), f"drawing into {out}, seconds"):
            until = began + second + 1
            while (left := until - time.monotonic()) > 0:
                if (batch := drawing.take(left)) is not None:
                    size = "large" if batch.large else "small"
                    write_batch(batch, out / f"{first + count:06d}_{size}.npz")
                    count += 1
    return BATCH * count


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = Parser(prog="python -m train_iqa.nano.drawn", description=__doc__)
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of clean photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of batches; more are added to it")
    parser.add_argument("--seconds", type=float, default=60.0, help="time of drawing")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw images")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--large-share", type=float, default=LARGE_SHARE, help="share of batches with whole images, 0..1"
    )
    parser.add_argument(
        "--local-share",
        type=float,
        help=f"share of damaged images with the damage in one region (default: {LOCAL_SHARE_LARGE:g} of whole images, "
        f"{LOCAL_SHARE_SMALL:g} of crops)",
    )
    args = parser.parse_args(argv)
    return run_program("train_iqa.nano.drawn", lambda: _work(args))


def _work(args: argparse.Namespace) -> int:
    if not args.seconds >= 1 or args.workers < 1:
        raise ValueError(f"--seconds {args.seconds:g}, --workers {args.workers}: must be at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: must be 0 or more")
    for name, share in (("--large-share", args.large_share), ("--local-share", args.local_share)):
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"{name} {share:g}: must be in 0..1")
    count = draw_folder(
        tuple(args.photos), args.out, seconds=args.seconds, workers=args.workers, seed=args.seed,
        large_share=args.large_share, local_share=args.local_share,
    )  # fmt: skip
    say(f"{count} images drawn into {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
