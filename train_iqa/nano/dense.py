"""Dense pretraining of a vision tower: every 28 px token learns its local quality and its degradations.

A randomly initialised tower taught by one number per image learned almost nothing in hundreds of steps; the same
tower with a target for each token learns within minutes. The heads are thrown away afterwards.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, smooth_l1_loss

from train_iqa.nano.labels import NUM_BANDS, TOKEN_PX
from train_iqa.nano.store import GRID, KINDS, Store
from train_iqa.nano.tower import read_tokens
from zoomiqa_reward.model.devices import half_autocast
from zoomiqa_reward.model.parts import WindowTower

KINDS_WEIGHT, BANDS_WEIGHT, WHOLE_WEIGHT = 0.3, 0.6, 0.5
ORIENTATIONS = 8


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Dense pretraining of the vision tower."""

    crops: int = 128
    """Of 224 px, per step; a multiple of 8."""
    quarter_crops: int = 512
    """Of 112 px, per step: four times the images for the same work, so gradients are less noisy."""
    learning_rate: float = 9e-4
    """Peak, after 80 steps; cosine, ending at about a fifth: teaching goes on from there."""
    weight_decay: float = 0.03


class Targets(NamedTuple):
    """Dense targets of a batch, (B, rows, columns, ...)."""

    quality: Tensor
    """Rank of the local quality, 0..1."""
    kinds: Tensor
    bands: Tensor
    known_kinds: Tensor
    """bool (B,): the record says what was done."""
    whole: Tensor | None
    """Quality of the whole image 0..1, (B,); None where crops are only a part of it."""
    labels: Tensor
    """Pseudo-MOS of the whole image, (B,)."""


class DenseHeads(nn.Module):
    """Linear read-outs of a tower's tokens: local quality, degradations, band energies; and of their mean, quality."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.quality, self.kinds = nn.Linear(width, 1), nn.Linear(width, len(KINDS))
        self.bands = nn.Linear(width, 3 * NUM_BANDS)
        self.whole = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def loss(self, tokens: Tensor, target: Targets) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum of the losses of tokens (B, rows, columns, width), and its parts."""
        tokens = tokens.float()
        labelled = target.known_kinds.float()
        kinds = binary_cross_entropy_with_logits(self.kinds(tokens), target.kinds, reduction="none").mean((1, 2, 3))
        parts = {
            "quality": mse_loss(self.quality(tokens)[..., 0], target.quality),
            "kinds": KINDS_WEIGHT * (kinds * labelled).sum() / labelled.sum().clamp_min(1),
            "bands": BANDS_WEIGHT * smooth_l1_loss(self.bands(tokens), target.bands),
        }
        if target.whole is not None:
            parts["whole"] = WHOLE_WEIGHT * mse_loss(self.whole(tokens.mean((1, 2)))[:, 0], target.whole)
        return torch.stack(list(parts.values())).sum(), {name: float(part.detach()) for name, part in parts.items()}


def local_rank(store: Store, index: Tensor) -> Tensor:
    """Return the rank 0..1 of crops' local HaarPSI within the store's population, on the device."""
    assert store.scale is not None
    knots = torch.tensor(store.scale.knots["haarpsi"], device=store.device)
    values = store.local[index].contiguous()
    above = torch.searchsorted(knots, values).clamp(1, len(knots) - 1)
    low, high = knots[above - 1], knots[above]
    return (above - 1 + ((values - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)) / (len(knots) - 1)


def reorient(x: Tensor, orientation: int, axes: tuple[int, int]) -> Tensor:
    """Return x in one of the eight orientations of its two `axes` (rows, columns)."""
    if orientation & 1:
        x = x.flip(axes[1])
    if orientation & 2:
        x = x.flip(axes[0])
    return x.transpose(*axes) if orientation & 4 else x


def dense_batch(store: Store, count: int, grid: int, rng: np.random.Generator) -> tuple[Tensor, Targets]:
    """Return images (B, 3, px, px) of `grid` x `grid` tokens, an eighth in each orientation, and their targets."""
    count = max(ORIENTATIONS, count // ORIENTATIONS * ORIENTATIONS)
    chosen = rng.integers(0, store.count, count)
    index = torch.from_numpy(chosen).to(store.device)
    images = store.images[index].float() / 255
    targets = torch.cat([local_rank(store, index)[..., None], store.kinds[index], store.standardised_bands(index)], -1)
    turned_images, turned_targets = [], []
    for orientation, chunk in enumerate(torch.arange(count, device=store.device).chunk(ORIENTATIONS)):
        top, left = (int(k) for k in rng.integers(0, GRID - grid + 1, 2))
        y, x = (slice(start * TOKEN_PX, (start + grid) * TOKEN_PX) for start in (top, left))
        turned_images.append(reorient(images[chunk][:, :, y, x], orientation, (2, 3)))
        tokens = targets[chunk][:, top : top + grid, left : left + grid]
        turned_targets.append(reorient(tokens, orientation, (1, 2)))
    quality, kinds, bands = torch.cat(turned_targets).split((1, len(KINDS), 3 * NUM_BANDS), dim=-1)
    labels = torch.from_numpy(store.labels[chosen]).float().to(store.device)
    whole = (labels - 1) / 4 if grid == GRID else None
    labelled = store.known_kinds[index]
    return torch.cat(turned_images).contiguous(), Targets(quality[..., 0], kinds, bands, labelled, whole, labels)


def dense_step(
    tower: WindowTower, heads: DenseHeads, store: Store, config: DenseConfig, rng: np.random.Generator
) -> dict[str, float]:
    """Accumulate the gradients of one step and return its losses."""
    losses: dict[str, float] = {}
    for count, grid in ((config.crops, GRID), (config.quarter_crops, GRID // 2)):
        if not count:
            continue
        images, targets = dense_batch(store, count, grid, rng)
        with half_autocast(images.device):
            tokens = read_tokens(tower, images)
        loss, parts = heads.loss(tokens, targets)
        loss.backward()
        losses |= {f"{name}_{grid}": value for name, value in parts.items()}
    return losses
