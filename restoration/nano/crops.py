"""Pairs to learn from: clean crops of photographs and their low-quality copies, written in shards by worker processes.

A shard depends on the seed and its number alone, so that a run which was killed goes on with the pairs that it had.
Workers fork from a clean server process, never from one that computes: imports cost ten seconds each, and a fork of a
process whose threads compute can hang.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restoration.degradation.pipeline import degrade
from zoomiqa_reward.images.listing import is_shown
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.runs.outputs import part_folder, replacing
from zoomiqa_reward.runs.workers import end_with_parent

SCALE = 4
PRESET_SHARES = {"bicubic": 0.16, "mild": 0.28, "moderate": 0.34, "realesrgan": 0.22}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
HELD_OUT = 7
"""Photographs whose place in their folder, in order of name, ends with this digit are never learned from."""
REDUCED = (1.05, 2.0)
"""Every crop is reduced by a factor in this range: photographs at their own size hold grain and JPEG traces."""
SOFT_SHARE, ENLARGED = 0.22, (1.3, 3.0)
"""Share of crops that are enlarged again, and by how much: large photographs are that soft per pixel."""
GRAIN_LEVELS = 10.0
"""Range of the bilateral filter that takes grain out of a photograph before it is reduced, in 8-bit levels."""
GAMMA_SHARE, GREY_SHARE = 0.35, 0.04
FILTERS = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.HAMMING)
FILTER_SHARES = (0.6, 0.25, 0.15)


def split(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return (photographs to learn from, those held out).

    Raises ValueError for a folder with fewer than 10, and where a folder within another one would mix the two.
    """
    training: list[Path] = []
    held_out: list[Path] = []
    for folder in folders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and is_shown(path))
        if len(paths) < 10:
            raise ValueError(f"{folder}: {len(paths)} photographs; at least 10 are needed, one of them is held out")
        for index, path in enumerate(paths):
            (held_out if index % 10 == HELD_OUT else training).append(path)
    if mixed := {path.resolve() for path in training} & {path.resolve() for path in held_out}:
        raise ValueError(
            f"{min(mixed)}: lies in two of the folders, and is held out in one of them alone; name only the outer one"
        )
    return training, held_out


class Photographs:
    """Photographs in memory once they were asked for, as PIL images without grain."""

    def __init__(self, paths: Sequence[Path], *, filtered: bool) -> None:
        self.paths, self.filtered = list(paths), filtered
        self._held: dict[int, Image.Image] = {}
        areas = []
        for path in paths:
            with Image.open(path) as photograph:
                areas.append(float(photograph.size[0] * photograph.size[1]))
        self.chances = np.sqrt(areas) / np.sqrt(areas).sum()

    def __getitem__(self, index: int) -> Image.Image:
        if index not in self._held:
            rgb = to_pil(load_image(self.paths[index]))
            self._held[index] = without_grain(rgb) if self.filtered else rgb
        return self._held[index]


def without_grain(photograph: Image.Image) -> Image.Image:
    """Return the photograph after a small bilateral filter, which keeps edges. OpenCV comes with BasicSR."""
    import cv2

    return Image.fromarray(cv2.bilateralFilter(np.asarray(photograph), 5, GRAIN_LEVELS, 1.5))


def clean_crop(photographs: Photographs, px: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random crop, uint8 (3, px, px): reduced, some then enlarged, some with another tone, few grey."""
    photograph = photographs[int(rng.choice(len(photographs.paths), p=photographs.chances))]
    kernel = FILTERS[int(rng.choice(len(FILTERS), p=FILTER_SHARES))]
    small = round(px / rng.uniform(*ENLARGED)) if rng.random() < SOFT_SHARE else px
    crop = random_reduced_window(photograph, small, rng, kernel)
    if small != px:
        crop = crop.resize((px, px), FILTERS[int(rng.integers(0, 2))])
    pixels = np.asarray(crop)
    if rng.random() < GAMMA_SHARE:
        curve = (np.arange(256) / 255) ** float(np.exp(rng.uniform(-0.3, 0.3)))
        pixels = (curve * 255).round().astype(np.uint8)[pixels]
    if rng.random() < GREY_SHARE:
        pixels = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def random_reduced_window(
    photograph: Image.Image, px: int, rng: np.random.Generator, kernel: Image.Resampling
) -> Image.Image:
    """Return a random window of px x px after reduction; mirrored where the photograph is smaller than that."""
    low, high = REDUCED
    most = max(low, min(high, 1.35 * min(photograph.size) / px))
    factor = float(np.exp(rng.uniform(np.log(low), np.log(most))))
    sides = [min(length, px * factor) for length in photograph.size]
    left, top = (rng.uniform(0, length - side) for length, side in zip(photograph.size, sides, strict=True))
    width, height = (max(8, min(px, round(side / factor))) for side in sides)
    window = photograph.resize((width, height), kernel, box=(left, top, left + sides[0], top + sides[1]))
    lacking = [px - length for length in (window.size[1], window.size[0])]
    if not any(lacking):
        return window
    before = [int(rng.integers(0, lack + 1)) for lack in lacking]
    frame = [(first, lack - first) for first, lack in zip(before, lacking, strict=True)]
    return Image.fromarray(np.pad(np.asarray(window), [*frame, (0, 0)], mode="reflect"))


def low_quality(hr: np.ndarray, preset: str, seed: int) -> np.ndarray:
    """Return the copy that `degrade` makes of a uint8 CHW crop, uint8."""
    copy, _ = degrade(torch.from_numpy(hr.astype(np.float32) / 255), preset, seed=seed, scale=SCALE)
    return (copy.numpy() * 255).round().astype(np.uint8)


_PHOTOGRAPHS: dict[tuple[Path, ...], Photographs] = {}
"""Of this worker: opened once, however many shards it writes."""


def write_shard(folder: Path, number: int, paths: tuple[Path, ...], count: int, px: int, seed: int) -> None:
    """Write shard `number` of `count` pairs; renamed into place, so that what exists is whole."""
    torch.set_num_threads(1)
    if paths not in _PHOTOGRAPHS:
        _PHOTOGRAPHS[paths] = Photographs(paths, filtered=True)
    rng = np.random.default_rng([seed, number])
    hr, lq = [], []
    for _ in range(count):
        hr.append(clean_crop(_PHOTOGRAPHS[paths], px, rng))
        preset = str(rng.choice(list(PRESET_SHARES), p=list(PRESET_SHARES.values())))
        lq.append(low_quality(hr[-1], preset, int(rng.integers(0, 2**31))))
    with replacing(folder / f"{number:05d}.npz") as half, open(half, "wb") as file:
        np.savez(file, hr=np.stack(hr), lq=np.stack(lq))


def held_out_pairs(paths: Sequence[Path], count: int, px: int) -> tuple[Tensor, Tensor]:
    """Return uint8 HR and LR crops of held-out photographs, reduced and not filtered, all presets in turn."""
    photographs, rng = Photographs(paths, filtered=False), np.random.default_rng(77)
    hr = [
        np.asarray(random_reduced_window(photographs[k % len(paths)], px, rng, Image.Resampling.LANCZOS)).transpose(
            2, 0, 1
        )
        for k in range(count)
    ]
    presets = list(PRESET_SHARES)
    lq = [low_quality(np.ascontiguousarray(crop), presets[k % len(presets)], 1000 + k) for k, crop in enumerate(hr)]
    return torch.from_numpy(np.stack(hr)), torch.from_numpy(np.stack(lq))


class Pairs:
    """The pairs that are there so far, on the device; workers write more while they are learned from."""

    def __init__(
        self, folder: Path, paths: Sequence[Path], *, shards: int, shard_size: int, px: int, seed: int, workers: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        """Start the workers on the shards that are missing."""
        part_folder(folder)
        self.folder, self.device, self.shard_size, self.shards, self.px = folder, device, shard_size, shards, px
        self.count = 0
        sides = px, px // SCALE
        self.hr, self.lq = (
            torch.empty((shards * shard_size, 3, side, side), dtype=torch.uint8, device=device) for side in sides
        )
        self._taken = 0
        missing = [k for k in range(shards) if not (folder / f"{k:05d}.npz").exists()]
        self._pool: ProcessPoolExecutor | None = None
        self._jobs: list[Future[None]] = []
        if missing:
            methods = multiprocessing.get_all_start_methods()
            context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
            if context.get_start_method() == "forkserver":
                context.set_forkserver_preload([__name__])
            self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
            common = (tuple(paths), shard_size, px, seed)
            self._jobs = [self._pool.submit(write_shard, folder, k, *common) for k in missing]

    def take(self) -> None:
        """Take the shards that have come, up to the first that has not. Raises what a worker raised.

        In their order, not that of arrival: a batch draws pairs by place, and must be the same when a run goes on.
        """
        for job in self._jobs:
            if job.done():
                job.result()
        while not self.complete and (file := self.folder / f"{self._taken:05d}.npz").exists():
            slots = slice(self.count, self.count + self.shard_size)
            with np.load(file, allow_pickle=False) as shard:
                self.hr[slots] = torch.from_numpy(shard["hr"])
                self.lq[slots] = torch.from_numpy(shard["lq"])
            self._taken += 1
            self.count += self.shard_size

    @property
    def complete(self) -> bool:
        """Whether every shard was taken."""
        return self._taken == self.shards

    def batch(self, size: int, side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return HR and LR in [0, 1]: random windows of LR side `side`, an eighth in each of the eight poses."""
        room = self.px // SCALE - side
        pick = torch.from_numpy(rng.integers(0, self.count, size)).to(self.device).view(-1, 1, 1, 1)
        top, left = torch.from_numpy(rng.integers(0, room + 1, (2, size))).to(self.device).view(2, -1, 1, 1, 1)
        planes = torch.arange(3, device=self.device).view(1, 3, 1, 1)

        def cut(pool: Tensor, scale: int) -> Tensor:
            span = torch.arange(side * scale, device=self.device)
            crops = pool[pick, planes, top * scale + span.view(1, 1, -1, 1), left * scale + span.view(1, 1, 1, -1)]
            parts = [group.rot90(k % 4, (2, 3)) for k, group in enumerate(crops.tensor_split(8))]
            return torch.cat([group.flip(3) if k >= 4 else group for k, group in enumerate(parts)]).float() / 255

        return cut(self.hr, SCALE), cut(self.lq, 1)

    def close(self) -> None:
        """Let go of the workers; shards in work are lost and written again by the next run."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
