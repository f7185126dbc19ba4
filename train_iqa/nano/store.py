"""Where training draws its batches from: processes that draw degraded images, and the store that labels and holds them.

The processes draw images all the time while the device trains. They are forked before torch computes anything, so that
they import nothing again and share the decoded photographs. So make `Workers` before a model is built.

The store holds the images on the device and labels them there as they come in. When it is full, the newest replace the
oldest. Labels are ranks within a fixed population, the first images.
"""

import multiprocessing
import os
import queue
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from train_iqa.nano.degradations import DEGRADATIONS, DamageRecord
from train_iqa.nano.drawing import SMALL_PX, DegradedImage, draw_image
from train_iqa.nano.labels import LABEL_METRICS, NUM_BANDS, TOKEN_PX, LabelScale
from train_iqa.nano.synthetic import WORST_SCORE, as_batch, label_drawn, whole_scores
from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images.listing import is_shown
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.runs.digest import listing_digest
from zoomiqa_reward.runs.workers import end_with_parent

BATCH = 16
LARGE_SHARE = 0.28


class DrawnBatch(NamedTuple):
    """A batch from one worker."""

    large: bool
    images: list[DegradedImage]


class BatchSource(Protocol):
    """What a store is filled from: `Workers`, or a folder that others fill (`drawn.py`)."""

    def take(self, timeout_s: float) -> DrawnBatch | None:
        """Return the next batch, None where none comes in time."""


class WorkerError(ZoomIQAError, RuntimeError):
    """A drawing process failed or died; the message holds its traceback."""


def _work(
    index: int,
    photographs: list[Image.Image],
    seed: tuple[int, int],
    shares: tuple[float, float | None],
    out: Any,
    stop: Any,
) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    os.nice(5)
    rng, (large_share, local_share) = np.random.default_rng([seed[0], index, seed[1]]), shares
    while not stop.is_set():
        large = bool(rng.random() < large_share)
        try:
            chosen = [photographs[k] for k in rng.integers(0, len(photographs), BATCH)]
            message: DrawnBatch | str = DrawnBatch(
                large, [draw_image(photograph, rng, large=large, local_share=local_share) for photograph in chosen]
            )
        except Exception as error:  # noqa: BLE001  it is raised again where the batch is taken
            message = f"drawing process {index}: {error!r}"
        while not stop.is_set():
            try:
                out.put(message, timeout=1)
                break
            except queue.Full:
                continue


class Workers:
    """Drawing processes and the queue that they fill. Use as a context: leaving it ends them.

    Raises WorkerError from `take` when a process failed, ValueError where the platform cannot fork.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        count: int,
        seed: int,
        stream: int = 0,
        large_share: float = LARGE_SHARE,
        local_share: float | None = None,
    ) -> None:
        """Start `count` processes, each with images of its own; another `stream` of a seed has others.

        large_share: of the batches, those of whole images; local_share: see `draw_image`.
        """
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError("drawing processes need os.fork, which this platform lacks: train on Linux or macOS")
        photographs = [to_pil(load_image(path)) for path in paths]
        context = multiprocessing.get_context("fork")
        self._queue, self._stop = context.Queue(maxsize=8 * count), context.Event()
        self._processes = [
            context.Process(
                target=_work,
                args=(k, photographs, (seed, stream), (large_share, local_share), self._queue, self._stop),
                daemon=True,
            )
            for k in range(count)
        ]
        for process in self._processes:
            process.start()

    def take(self, timeout_s: float) -> DrawnBatch | None:
        """Return the next batch, None where none comes in time."""
        try:
            message = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            dead = [process for process in self._processes if not process.is_alive()]
            if dead:
                raise WorkerError(f"a drawing process ended with code {dead[0].exitcode}") from None
            return None
        if isinstance(message, str):
            raise WorkerError(message)
        return message

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for process in self._processes:
            process.terminate()
            process.join()
        self._queue.close()


KINDS = tuple(DEGRADATIONS)
GRID = SMALL_PX // TOKEN_PX


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredImage:
    """A whole degraded image."""

    image: Tensor
    """uint8 CHW on the device."""
    label: float
    record: DamageRecord


def kind_map(record: DamageRecord, rows: int, columns: int) -> np.ndarray:
    """Return which degradations each token shows, float32 (rows, columns, kinds); a token's middle decides."""
    kinds = np.zeros(len(KINDS), dtype=np.float32)
    for step in record.steps:
        kinds[KINDS.index(step.kind)] = 1
    return cover_map(record, rows, columns)[..., None] * kinds


def cover_map(record: DamageRecord, rows: int, columns: int) -> np.ndarray:
    """Return float32 (rows, columns): 1 where damage covers the token's middle."""
    if not record.steps:
        return np.zeros((rows, columns), dtype=np.float32)
    if record.box is None:
        return np.ones((rows, columns), dtype=np.float32)
    left, top, right, bottom = record.box
    x, y = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    return (((x >= left) & (x < right))[None] & ((y >= top) & (y < bottom))[:, None]).astype(np.float32)


class Store:
    """Small crops with dense targets, and whole images."""

    def __init__(self, device: torch.device, *, small: int, large: int, population: int) -> None:
        """Make room for `small` crops and `large` images; the label scale is fitted to the first `population`."""
        self.device, self.population, self.capacity = device, min(population, small), {"small": small, "large": large}
        grid = (small, GRID, GRID)
        self.images = torch.zeros(small, 3, SMALL_PX, SMALL_PX, dtype=torch.uint8, device=device)
        self.scores = torch.zeros(small, len(LABEL_METRICS), device=device)
        self.local, self.kinds = torch.zeros(grid, device=device), torch.zeros(*grid, len(KINDS), device=device)
        self.bands = torch.zeros(*grid, 3 * NUM_BANDS, dtype=torch.float16, device=device)
        self.labels = np.full(small, np.nan)
        self.known_kinds = torch.ones(small, dtype=torch.bool, device=device)
        self.added = {"small": 0, "large": 0}
        self.whole_images: list[StoredImage] = []
        self._waiting: list[tuple[DegradedImage, np.ndarray]] = []
        self.scale: LabelScale | None = None
        self.band_mean = self.band_std = torch.zeros(0)

    @property
    def count(self) -> int:
        """Small crops held."""
        return min(self.added["small"], self.capacity["small"])

    @property
    def ready(self) -> bool:
        """Whether there are whole images with local and with even damage."""
        return bool(self.whole(local=True)) and bool(self.whole(local=False))

    def whole(self, *, local: bool) -> list[StoredImage]:
        """Return whole images with damage inside a region, or those with none or with damage everywhere."""
        return [image for image in self.whole_images if (image.record.box is not None) is local]

    def add(self, drawing: DrawnBatch) -> None:
        """Label a batch and keep it."""
        if not drawing.large:
            self.add_small(drawing.images)
            return
        for drawn in drawing.images:  # sizes differ
            scores = whole_scores(*self._pair([drawn]), self._failed([drawn]))
            self._waiting.append((drawn, scores[0].double().cpu().numpy()))
        self._settle()

    def add_small(self, drawn: list[DegradedImage], *, known_kinds: bool = True) -> None:
        """Label 224 px crops; `known_kinds` False where the record does not say what was done (restorations)."""
        first = self.added["small"] % self.capacity["small"]
        drawn = drawn[: self.capacity["small"] - first]  # a batch that would wrap around loses its end
        at = slice(first, first + len(drawn))
        images, references = self._pair(drawn)
        self.scores[at], self.local[at], bands = label_drawn(images, references, self._failed(drawn))
        self.bands[at], self.images[at] = bands.half(), (images * 255 + 0.5).to(torch.uint8)
        self.kinds[at] = torch.from_numpy(np.stack([kind_map(image.record, GRID, GRID) for image in drawn])).to(
            self.device
        )
        self.known_kinds[at] = known_kinds
        self.added["small"] += len(drawn)
        if self.scale is not None:
            self.labels[at] = self.scale.pseudo_mos(self.scores[at].double().cpu().numpy())
        elif self.added["small"] >= self.population:
            self._fit()

    def fill(self, workers: BatchSource, *, seconds: float) -> None:
        """Take at most `seconds` of what the workers have drawn."""
        if (drawing := workers.take(seconds)) is not None:
            self.add(drawing)

    def use_scale(self, scale: LabelScale) -> None:
        """Label by a scale that was fitted before (a run that goes on, or one that starts from a checkpoint)."""
        self.scale = scale

    def _fit(self) -> None:
        count = self.count
        scores = self.scores[:count].double().cpu().numpy()
        self.scale = LabelScale.fit(scores[scores[:, 0] > WORST_SCORE])
        self.labels[:count] = self.scale.pseudo_mos(scores)
        self._settle()

    def standardised_bands(self, index: Tensor) -> Tensor:
        """Return band targets of crops in standard deviations of the first ones held."""
        if not len(self.band_mean):
            first = self.bands[: self.count].float().flatten(0, 2)
            self.band_mean, self.band_std = first.mean(0), first.std(0).clamp_min(1e-3)
        return (self.bands[index].float() - self.band_mean) / self.band_std

    def _settle(self) -> None:
        """Give waiting whole images their labels, once there is a scale."""
        if self.scale is None:
            return
        for drawn, scores in self._waiting:
            image = torch.from_numpy(drawn.image.copy()).to(self.device).permute(2, 0, 1).contiguous()
            label = float(self.scale.pseudo_mos(scores[None])[0])
            stored = StoredImage(image=image, label=label, record=drawn.record)
            if len(self.whole_images) < self.capacity["large"]:
                self.whole_images.append(stored)
            else:
                self.whole_images[self.added["large"] % self.capacity["large"]] = stored
            self.added["large"] += 1
        self._waiting.clear()

    def _pair(self, drawn: list[DegradedImage]) -> tuple[Tensor, Tensor]:
        return tuple(as_batch([getattr(d, name) for d in drawn], self.device) for name in ("image", "reference"))  # type: ignore[return-value]

    def _failed(self, drawn: list[DegradedImage]) -> Tensor:
        return torch.tensor([image.is_failed for image in drawn], device=self.device)


LEAST_CANDIDATES = 3
"""Restorations of one low-quality image that make a pool."""


def group_files(folder: Path) -> list[list[Path]]:
    """Return the restorations in `folder/images`, sorted; the text before the first underscore names a group.

    Raises ValueError where there is none.
    """
    groups: dict[str, list[Path]] = {}
    for path in sorted(path for path in (folder / "images").iterdir() if is_shown(path)):
        groups.setdefault(path.stem.split("_")[0], []).append(path)
    if not groups:
        raise ValueError(f"{folder}/images holds no image; make it with benchmarks/restored_pairs.py")
    return list(groups.values())


def pairs_digest(folder: Path) -> str:
    """Return what tells other restorations or references: their names and sizes. Raises ValueError as `group_files`."""
    images = [path for group in group_files(folder) for path in group]
    return listing_digest([*images, *(folder / "references" / path.name for path in images)])


def read_pair(path: Path) -> DegradedImage:
    """Return the restoration `FOLDER/images/NAME` and its reference `FOLDER/references/NAME`.

    Raises ValueError where there is no reference, and for sizes other than 224 px.
    """
    reference = path.parent.parent / "references" / path.name
    if not reference.exists():
        raise ValueError(f"{path}: no reference {reference}")
    pair = [np.asarray(to_pil(load_image(file))) for file in (path, reference)]
    if any(x.shape != (SMALL_PX, SMALL_PX, 3) for x in pair):
        raise ValueError(f"{path}: restoration and reference must be {SMALL_PX} x {SMALL_PX} px")
    return DegradedImage(image=pair[0], reference=pair[1], record=DamageRecord(steps=()))


def read_groups(folder: Path) -> list[list[DegradedImage]]:
    """Return the restorations in a folder and their references, by `group_files`.

    Raises ValueError as `read_pair` does, and where candidates of one image have different references.
    """
    groups = []
    for paths in group_files(folder):
        group = [read_pair(path) for path in paths]
        others = [path for path, pair in zip(paths, group, strict=True) if (pair.reference != group[0].reference).any()]
        if len(group) >= LEAST_CANDIDATES and others:
            raise ValueError(
                f"{folder}/images: {paths[0].name} and {others[0].name} are candidates of one image, since their names "
                "agree up to the first underscore, but their references differ; name different images differently "
                "there"
            )
        groups.append(group)
    return groups


def read_pairs(folder: Path) -> list[DegradedImage]:
    """Return the restorations of a folder that are in no pool, and their references. Raises as `read_groups` does."""
    return [pair for group in read_groups(folder) if len(group) < LEAST_CANDIDATES for pair in group]
