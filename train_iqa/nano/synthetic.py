"""Labelled samples from clean photographs: `drawing.py` draws the degraded image, here it gets its labels.

Samples are written in shards; each shard is seeded by its number alone, so an interrupted run continues with the
missing ones.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train_iqa.nano.degradations import DamageRecord, Step
from train_iqa.nano.drawing import SMALL_PX, draw_image, window_of
from train_iqa.nano.labels import band_targets, local_haarpsi, reference_scores
from zoomiqa_reward.images.listing import is_shown
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.runs.outputs import part_folder, replacing
from zoomiqa_reward.runs.progress import progress
from zoomiqa_reward.runs.workers import end_with_parent

WORST_SCORE = -10.0
HELD_OUT_EVERY, HELD_OUT_REST = 10, 7
"""Of a folder's photographs in order of name, those whose index modulo 10 is 7 are held out."""
CLEAN_WINDOWS = 240
"""Windows of clean photographs that the patch embedding is a whitening of."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One degraded image and what is known of it."""

    image: NDArray[np.uint8]
    """HWC."""
    scores: NDArray[np.float32]
    """Oriented full-reference scores in `LABEL_METRICS`' order."""
    local: NDArray[np.float32]
    """Local HaarPSI of each 28 px token (rows, columns)."""
    bands: NDArray[np.float16]
    """`band_targets` of each token (rows, columns, 3 * NUM_BANDS)."""
    record: DamageRecord


def list_photographs(folder: Path) -> list[Path]:
    """Return the images below `folder`, sorted. Raises ValueError if there are fewer than 10."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and is_shown(p))
    if len(paths) < 10:
        raise ValueError(f"{folder}: {len(paths)} images; at least 10 clean photographs are needed")
    return paths


def hold_out(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return (training, held-out) photographs: every tenth of each folder is held out, in order of name.

    Of a folder with fewer than 8 none is, subfolders counted by themselves.
    """
    inside: dict[Path, list[Path]] = {}
    for path in sorted(paths):
        inside.setdefault(path.parent, []).append(path)
    held = [path for folder in sorted(inside) for path in inside[folder][HELD_OUT_REST::HELD_OUT_EVERY]]
    is_held = set(held)
    return [path for path in paths if path not in is_held], held


def clean_windows(paths: Sequence[Path], seed: int) -> list[Tensor]:
    """Return windows of clean photographs, CHW in [0, 1]."""
    rng, windows = np.random.default_rng([seed, 5]), []
    for path in [paths[k] for k in rng.integers(0, len(paths), min(CLEAN_WINDOWS, 4 * len(paths)))]:
        window = window_of(to_pil(load_image(path)), SMALL_PX, SMALL_PX, rng)
        windows.append(torch.from_numpy(window).permute(2, 0, 1))
    return windows


def label_drawn(images: Tensor, references: Tensor, failed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (B, 3), local HaarPSI (B, rows, columns) and band targets of BCHW images, on their device.

    failed: see `whole_scores`.
    """
    scores, local = whole_scores(images, references, failed), local_haarpsi(images, references)
    local[failed] = 0.0
    return scores, local, band_targets(images, references)


def whole_scores(images: Tensor, references: Tensor, failed: Tensor) -> Tensor:
    """Return scores (B, 3) of BCHW images.

    A failed image (`failed`, bool [B]) has the worst scores there are, whatever the metrics find in it.
    """
    scores = reference_scores(images, references)
    scores[failed] = WORST_SCORE
    return scores


def as_batch(images: Sequence[NDArray[np.uint8]], device: torch.device | str = "cpu") -> Tensor:
    """Return equally large HWC images of 8 bits as one BCHW batch in [0, 1]."""
    stacked = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
    return stacked.float().div(255).contiguous()


def make_sample(path: Path, rng: np.random.Generator, *, large: bool, local_share: float | None = None) -> Sample:
    """Return one sample of a photograph; `large` is a whole image for the reasoning rounds, else a 224 px crop."""
    torch.set_num_threads(1)
    drawn = draw_image(to_pil(load_image(path)), rng, large=large, local_share=local_share)
    failed = torch.tensor([drawn.is_failed])
    scores, local, bands = label_drawn(as_batch([drawn.image]), as_batch([drawn.reference]), failed)
    return Sample(
        image=drawn.image,
        scores=scores[0].numpy(),
        local=local[0].numpy(),
        bands=bands[0].half().numpy(),
        record=drawn.record,
    )


def _write_shard(
    folder: Path, index: int, paths: list[Path], size: int, seed: int, large: bool, local_share: float | None
) -> None:
    rng = np.random.default_rng([seed, index, int(large)])
    arrays: dict[str, Any] = {}
    for k in range(size):
        sample = make_sample(paths[rng.integers(0, len(paths))], rng, large=large, local_share=local_share)
        arrays[f"image{k}"], arrays[f"scores{k}"], arrays[f"local{k}"] = sample.image, sample.scores, sample.local
        arrays[f"bands{k}"] = sample.bands
        arrays[f"record{k}"] = np.frombuffer(json.dumps(asdict(sample.record)).encode(), dtype=np.uint8)
    with replacing(folder / f"{index:05d}.npz") as half, open(half, "wb") as file:
        np.savez(file, **arrays)


def write_samples(
    folder: Path,
    paths: list[Path],
    count: int,
    *,
    seed: int,
    large: bool,
    local_share: float | None = None,
    workers: int = 2,
    shard_size: int = 64,
) -> None:
    """Write `count` samples (rounded up to whole shards) into `folder`; existing shards are kept."""
    part_folder(folder)
    missing = [k for k in range(-(-count // shard_size)) if not (folder / f"{k:05d}.npz").exists()]
    if not missing:
        return
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        jobs = [pool.submit(_write_shard, folder, k, paths, shard_size, seed, large, local_share) for k in missing]
        for job in progress(jobs, len(jobs), f"samples {folder.name}, shards"):
            job.result()


def read_record(text: bytes) -> DamageRecord:
    """Return the record whose fields `dataclasses.asdict` gave, from JSON."""
    data = json.loads(text)
    box = tuple(data["box"]) if data["box"] else None
    return DamageRecord(steps=tuple(Step(**step) for step in data["steps"]), box=box)


def read_samples(folder: Path, limit: int | None = None) -> Iterator[Sample]:
    """Yield the samples of `folder` in the order of their shards."""
    done = 0
    for shard in sorted(folder.glob("*.npz")):
        with np.load(shard, allow_pickle=False) as arrays:
            for k in range(sum(name.startswith("image") for name in arrays.files)):
                if limit is not None and done >= limit:
                    return
                yield Sample(
                    image=arrays[f"image{k}"],
                    scores=arrays[f"scores{k}"],
                    local=arrays[f"local{k}"],
                    bands=arrays[f"bands{k}"],
                    record=read_record(arrays[f"record{k}"].tobytes()),
                )
                done += 1
