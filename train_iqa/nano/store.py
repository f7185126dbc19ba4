"""What training draws its batches from: degraded images on the device, labelled there as they come in.

The newest replace the oldest once the store is full. Labels are ranks within a fixed population, the first images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from train_iqa.nano.degradations import DEGRADATIONS, DamageRecord
from train_iqa.nano.drawing import SMALL_PX, DegradedImage
from train_iqa.nano.frequency_bands import NUM_BANDS
from train_iqa.nano.labels import LABEL_METRICS, TOKEN_PX, LabelScale
from train_iqa.nano.synthetic import WORST_SCORE, as_batch, label_drawn
from train_iqa.nano.workers import DrawnBatch, Workers

KINDS = tuple(DEGRADATIONS)
GRID = SMALL_PX // TOKEN_PX


@dataclass(frozen=True, kw_only=True)
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
        self.pictures: list[StoredImage] = []
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
        return [one for one in self.pictures if (one.record.box is not None) is local]

    def add(self, drawing: DrawnBatch) -> None:
        """Label a batch and keep it."""
        if not drawing.large:
            self.add_small(drawing.images)
            return
        for drawn in drawing.images:  # sizes differ
            scores, _, _ = label_drawn(*self._pair([drawn]), self._failed([drawn]))
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
        self.kinds[at] = torch.from_numpy(np.stack([kind_map(one.record, GRID, GRID) for one in drawn])).to(self.device)
        self.known_kinds[at] = known_kinds
        self.added["small"] += len(drawn)
        if self.scale is not None:
            self.labels[at] = self.scale.pseudo_mos(self.scores[at].double().cpu().numpy())
        elif self.added["small"] >= self.population:
            self._fit()

    def fill(self, workers: Workers, *, seconds: float) -> None:
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
            image = torch.from_numpy(drawn.image).to(self.device).permute(2, 0, 1).contiguous()
            label = float(self.scale.pseudo_mos(scores[None])[0])
            picture = StoredImage(image=image, label=label, record=drawn.record)
            if len(self.pictures) < self.capacity["large"]:
                self.pictures.append(picture)
            else:
                self.pictures[self.added["large"] % self.capacity["large"]] = picture
            self.added["large"] += 1
        self._waiting.clear()

    def _pair(self, drawn: list[DegradedImage]) -> tuple[Tensor, Tensor]:
        return tuple(as_batch([getattr(d, name) for d in drawn], self.device) for name in ("image", "reference"))  # type: ignore[return-value]

    def _failed(self, drawn: list[DegradedImage]) -> Tensor:
        return torch.tensor([one.is_failed for one in drawn], device=self.device)


def read_pairs(folder: Path) -> list[DegradedImage]:
    """Return restorations and their references from `folder/images` and `folder/references`, named alike, 224 px.

    Raises ValueError for a restoration without a reference or of another size.
    """
    found = []
    for path in sorted((folder / "images").iterdir()):
        reference = folder / "references" / path.name
        if not reference.exists():
            raise ValueError(f"{path}: no reference {reference}")
        pair = [np.asarray(Image.open(file).convert("RGB")) for file in (path, reference)]
        if any(x.shape != (SMALL_PX, SMALL_PX, 3) for x in pair):
            raise ValueError(f"{path}: restoration and reference must be {SMALL_PX} x {SMALL_PX} px")
        found.append(DegradedImage(image=pair[0], reference=pair[1], record=DamageRecord(steps=())))
    if not found:
        raise ValueError(f"{folder}/images holds no image")
    return found
