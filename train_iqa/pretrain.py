"""Dense pretraining of a vision tower: every 28 px token learns its local quality and its degradations.

A randomly initialised tower taught by one number an image learned almost nothing in hundreds of steps; the same
tower with a target for each token learns within minutes. The heads are thrown away afterwards.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm import tqdm

from train_iqa.degradations import DEGRADATIONS
from train_iqa.labels import TOKEN_PX, LabelScale
from train_iqa.optimizers import SplitOptimizer
from train_iqa.synthetic import SMALL_PX, Sample

KINDS = tuple(DEGRADATIONS)
GRID = SMALL_PX // TOKEN_PX


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Dense pretraining of the vision tower."""

    steps: int = 2200
    batch_size: int = 12
    """Crops of 224 px a step."""
    small_batch_size: int = 48
    """Crops of 112 px a step: four times the pictures for the same work, so gradients are less noisy."""
    learning_rate: float = 5e-4
    """Peak; warm-up 60 steps, then cosine to 2 %."""
    weight_decay: float = 0.03
    save_every: int = 100
    """Steps between checkpoints and validations."""
    seed: int = 0


class DenseHeads(nn.Module):
    """Linear read-outs of a tower's tokens: local quality, degradation logits, and quality of the mean token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.quality = nn.Linear(width, 1)
        self.kinds = nn.Linear(width, len(KINDS))
        self.whole = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (batch, tokens), (batch, tokens, kinds) and (batch,) for (batch, tokens, width)."""
        return self.quality(tokens)[..., 0], self.kinds(tokens), self.whole(tokens.mean(1))[..., 0]


def kind_map(sample: Sample) -> NDArray[np.float32]:
    """Return which degradations each token shows, shape (rows, columns, kinds); half or more of a token counts."""
    rows, columns = sample.local.shape
    kinds = np.zeros(len(KINDS), dtype=np.float32)
    for step in sample.record.steps:
        kinds[KINDS.index(step.kind)] = 1
    inside = np.ones((rows, columns), dtype=np.float32)
    if sample.record.box is not None:
        left, top, right, bottom = sample.record.box
        x, y = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
        inside = (((x >= left) & (x < right))[None] & ((y >= top) & (y < bottom))[:, None]).astype(np.float32)
    return inside[..., None] * kinds


class CropBatches:
    """Random 224 px crops of samples with their dense targets; batch `step` is the same whenever it is drawn."""

    def __init__(self, samples: list[Sample], scale: LabelScale, config: PretrainConfig) -> None:
        self.samples, self.scale, self.config = samples, scale, config
        # A large picture holds more crops than a small one.
        sizes = np.array([s.local.size for s in samples], dtype=np.float64)
        self.shares = sizes / sizes.sum()

    def crop(self, sample: Sample, rng: np.random.Generator, grid: int = GRID) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return image, local quality 0..1, kinds and the label 0..1 (NaN where only the whole picture has one)."""
        rows, columns = sample.local.shape
        top, left = rng.integers(0, rows - grid + 1), rng.integers(0, columns - grid + 1)
        y, x = slice(top * TOKEN_PX, (top + grid) * TOKEN_PX), slice(left * TOKEN_PX, (left + grid) * TOKEN_PX)
        image = torch.from_numpy(sample.image[y, x].astype(np.float32) / 255).permute(2, 0, 1)
        tokens = slice(top, top + grid), slice(left, left + grid)
        local = self.scale.rank("haarpsi", sample.local[tokens].astype(np.float64))
        quality, kinds = torch.from_numpy(local.astype(np.float32)), torch.from_numpy(kind_map(sample)[tokens])
        whole = (self.scale.pseudo_mos(sample.scores[None].astype(np.float64))[0] - 1) / 4
        label = float(whole) if rows == columns == grid else math.nan
        if rng.random() < 0.5:
            image, quality, kinds = image.flip(2), quality.flip(1), kinds.flip(1)
        if rng.random() < 0.5:
            image, quality, kinds = image.flip(1), quality.flip(0), kinds.flip(0)
        if rng.random() < 0.5:
            image, quality, kinds = image.transpose(1, 2), quality.T, kinds.transpose(0, 1)
        return image.contiguous(), quality.reshape(-1), kinds.reshape(-1, len(KINDS)), label

    def __call__(self, step: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return two groups of images (B, 3, px, px), quality (B, tokens), kinds (B, tokens, kinds), labels (B,)."""
        rng, groups = np.random.default_rng([self.config.seed, step]), []
        for count, grid in ((self.config.batch_size, GRID), (self.config.small_batch_size, GRID // 2)):
            chosen = rng.choice(len(self.samples), size=count, p=self.shares)
            crops = [self.crop(self.samples[k], rng, grid) for k in chosen]
            stacked = [torch.stack([c[k] for c in crops]) for k in range(3)]
            groups.append((stacked[0], stacked[1], stacked[2], torch.tensor([c[3] for c in crops])))
        return groups


def tower_tokens(tower: nn.Module, image_processor: object, images: Tensor) -> Tensor:
    """Return (batch, tokens, width) of equally large BCHW images in [0, 1], tokens in raster order."""
    inputs = image_processor(images=list(images), do_rescale=False, do_resize=False, return_tensors="pt")  # type: ignore[operator]
    out = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    features = out.pooler_output if hasattr(out, "pooler_output") else out
    return features.reshape(len(images), -1, features.shape[-1])


def cosine_lr(step: int, steps: int, peak: float, warmup: int = 60, floor: float = 0.02) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine to `floor` x peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@torch.no_grad()
def validate(tower: nn.Module, heads: DenseHeads, image_processor: object, batches: CropBatches) -> dict[str, float]:
    """Return SRCC of the mean local quality and of the whole head with pseudo-MOS on small validation samples."""
    tower.eval()
    rng, local, whole, labels = np.random.default_rng(0), [], [], []
    small = [s for s in batches.samples if s.local.shape == (GRID, GRID)]
    for start in range(0, len(small), 32):
        crops = [batches.crop(s, rng) for s in small[start : start + 32]]
        with torch.autocast("cpu", torch.bfloat16):
            quality, _, pooled = heads(tower_tokens(tower, image_processor, torch.stack([c[0] for c in crops])))
        local += quality.float().mean(1).tolist()
        whole += pooled.float().tolist()
        labels += [c[3] for c in crops]
    tower.train()
    return {
        "srcc_local": float(spearmanr(local, labels).statistic),
        "srcc_whole": float(spearmanr(whole, labels).statistic),
    }


def pretrain(
    tower: nn.Module, image_processor: object, train: CropBatches, validation: CropBatches, folder: Path
) -> DenseHeads:
    """Train `tower` in place and return its heads; continues from `folder/state.pt`, logs to `folder/log.jsonl`."""
    config = train.config
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    heads = DenseHeads(tower.config.out_hidden_size)
    named = [*tower.named_parameters(), *heads.named_parameters(prefix="heads")]
    optimizer = SplitOptimizer(named, weight_decay=config.weight_decay)
    state_file, start = folder / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    tower.train()
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="dense pretraining")
    for step in bar:
        for images, quality, kinds, labels in train(step):
            with torch.autocast("cpu", torch.bfloat16):
                predicted, logits, whole = heads(tower_tokens(tower, image_processor, images))
            loss_quality = nn.functional.mse_loss(predicted.float(), quality)
            loss_kinds = nn.functional.binary_cross_entropy_with_logits(logits.float(), kinds)
            loss = loss_quality + 0.3 * loss_kinds
            if (known := ~labels.isnan()).any():
                loss_whole = nn.functional.mse_loss(whole.float()[known], labels[known])
                loss = loss + 0.5 * loss_whole
            loss.backward()
        optimizer.step(cosine_lr(step, config.steps, config.learning_rate))
        if (step + 1) % 10 == 0:
            bar.set_postfix(q=f"{loss_quality:.4f}", k=f"{loss_kinds:.3f}")
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            row = {
                "step": step + 1,
                "loss_quality": float(loss_quality.detach()),
                "loss_kinds": float(loss_kinds.detach()),
            }
            row |= validate(tower, heads, image_processor, validation)
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            tqdm.write(json.dumps(row))
            state = {
                "tower": tower.state_dict(),
                "heads": heads.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, folder / "state.tmp")
            os.replace(folder / "state.tmp", state_file)
    tower.eval()
    return heads
