"""Training samples from clean photographs: a reference at a random intrinsic scale, a degraded copy, its labels.

A 4K photograph is smoother per pixel than a small one, and a model that has only seen small ones takes content for
blur. So every reference is resized by 0.5 to 3 first, soft ones included. Samples are written in shards; each shard
is seeded by its number alone, so an interrupted run continues with the missing ones.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from train_iqa.nano.degradations import Array, Record, Step, degrade, resize, sample_box, sample_steps
from train_iqa.nano.frequency_bands import band_targets
from train_iqa.nano.labels import local_haarpsi, reference_scores

SMALL_PX = 224
LARGE_PX = ((448, 308), (308, 448), (364, 364), (476, 308), (420, 336))
VALIDATION_SHARE = 0.2
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
    record: Record


def list_photographs(folder: Path) -> list[Path]:
    """Return the images below `folder`, sorted. Raises ValueError if there are fewer than 10."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) < 10:
        raise ValueError(f"{folder}: {len(paths)} images; at least 10 clean photographs are needed")
    return paths


def split_photographs(paths: Sequence[Path], seed: int) -> tuple[list[Path], list[Path]]:
    """Return (training, validation) photographs: a seeded fifth is held out."""
    order = np.random.default_rng(seed).permutation(len(paths))
    cut = round(len(paths) * VALIDATION_SHARE)
    return [paths[k] for k in sorted(order[cut:])], [paths[k] for k in sorted(order[:cut])]


def _reference(path: Path, width: int, height: int, scale: float, rng: np.random.Generator) -> Array:
    """Return a random window of the photograph resized by at least `scale` (more where it would not fit)."""
    with Image.open(path) as photograph:
        photograph = photograph.convert("RGB")
        if rng.random() < 0.5:
            photograph = photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scale = max(scale, width / photograph.width, height / photograph.height)
        size = max(width, round(photograph.width * scale)), max(height, round(photograph.height * scale))
        # Cut first, resize after: enlarging the whole photograph by 6 would cost more than all the rest.
        left, top = rng.integers(0, size[0] - width + 1), rng.integers(0, size[1] - height + 1)
        kx, ky = photograph.width / size[0], photograph.height / size[1]
        box = (left * kx, top * ky, (left + width) * kx, (top + height) * ky)
        kernel = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)[rng.integers(0, 3)]
        window = photograph.resize((width, height), kernel, box=box)
    return np.asarray(window, dtype=np.float32) / 255


def intrinsic_scale(rng: np.random.Generator) -> float:
    """Return a factor 0.5..3 for a photograph: 45 % reduced, 40 % as stored, 15 % enlarged (soft references)."""
    draw = rng.random()
    if draw < 0.4:
        return 1.0
    return float(np.exp(rng.uniform(np.log(0.5), 0.0) if draw < 0.85 else rng.uniform(0.0, np.log(3.0))))


def make_sample(path: Path, rng: np.random.Generator, *, large: bool, local_share: float) -> Sample:
    """Return one sample of a photograph; `large` is a whole picture for the reasoning rounds, else a 224 px crop."""
    torch.set_num_threads(1)
    width, height = LARGE_PX[rng.integers(0, len(LARGE_PX))] if large else (SMALL_PX, SMALL_PX)
    # A fifth of the crops are half-scale views: degraded on a canvas twice as large, then reduced.
    zoom_out = 2 if not large and rng.random() < 0.2 else 1
    scale = intrinsic_scale(rng) * (1.0 if zoom_out == 1 else 1.4)
    reference = _reference(path, width * zoom_out, height * zoom_out, scale, rng)
    draw = rng.random()
    if draw < 0.04:
        steps, box = (), None
    else:
        steps, box = sample_steps(rng), sample_box(rng) if draw < 0.04 + local_share else None
    image, record = degrade(reference, steps, rng, box)
    if zoom_out > 1:
        image, reference = (resize(x, width, height, "bicubic") for x in (image, reference))
    image8 = (image * 255 + 0.5).astype(np.uint8)
    tensors = [torch.from_numpy(x).permute(2, 0, 1).contiguous() for x in (image8.astype(np.float32) / 255, reference)]
    return Sample(
        image=image8,
        scores=reference_scores(tensors[0][None], tensors[1][None])[0].numpy(),
        local=local_haarpsi(*tensors).numpy().astype(np.float32),
        bands=band_targets(image8.astype(np.float32) / 255, reference).astype(np.float16),
        record=record,
    )


def _write_shard(
    folder: Path, index: int, paths: list[Path], size: int, seed: int, large: bool, local_share: float
) -> None:
    rng = np.random.default_rng([seed, index, int(large)])
    arrays: dict[str, NDArray[np.generic]] = {}
    for k in range(size):
        sample = make_sample(paths[rng.integers(0, len(paths))], rng, large=large, local_share=local_share)
        arrays[f"image{k}"], arrays[f"scores{k}"], arrays[f"local{k}"] = sample.image, sample.scores, sample.local
        arrays[f"bands{k}"] = sample.bands
        arrays[f"record{k}"] = np.frombuffer(json.dumps(asdict(sample.record)).encode(), dtype=np.uint8)
    target = folder / f"{index:05d}.npz"
    temporary = folder / f"{index:05d}.tmp"
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, target)


def write_samples(
    folder: Path,
    paths: list[Path],
    count: int,
    *,
    seed: int,
    large: bool,
    local_share: float,
    workers: int = 2,
    shard_size: int = 64,
) -> None:
    """Write `count` samples (rounded up to whole shards) into `folder`; existing shards are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [k for k in range(-(-count // shard_size)) if not (folder / f"{k:05d}.npz").exists()]
    if not missing:
        return
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(_write_shard, folder, k, paths, shard_size, seed, large, local_share) for k in missing]
        for job in tqdm(jobs, desc=f"samples {folder.name}", unit="shard"):
            job.result()


def _record(text: bytes) -> Record:
    data = json.loads(text)
    box = tuple(data["box"]) if data["box"] else None
    return Record(steps=tuple(Step(**step) for step in data["steps"]), box=box)


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
                    record=_record(arrays[f"record{k}"].tobytes()),
                )
                done += 1
