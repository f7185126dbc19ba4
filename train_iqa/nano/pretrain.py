"""Dense pretraining of a vision tower: every 28 px token learns its local quality and its degradations.

A randomly initialised tower taught by one number an image learned almost nothing in hundreds of steps; the same
tower with a target for each token learns within minutes. The heads are thrown away afterwards.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm import tqdm

from train_iqa.nano.degradations import DEGRADATIONS
from train_iqa.nano.equal_windows import equal_windows
from train_iqa.nano.frequency_bands import NUM_BANDS
from train_iqa.nano.labels import TOKEN_PX, LabelScale
from train_iqa.nano.optimizers import SplitOptimizer
from train_iqa.nano.synthetic import SMALL_PX, Sample
from zoomiqa_reward.runs.training_folder import RunFolder, RunningMeans

KINDS = tuple(DEGRADATIONS)
GRID = SMALL_PX // TOKEN_PX


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Dense pretraining of the vision tower."""

    steps: int = 2500
    batch_size: int = 12
    """Crops of 224 px a step."""
    small_batch_size: int = 48
    """Crops of 112 px a step: four times the pictures for the same work, so gradients are less noisy."""
    learning_rate: float = 7e-4
    """Peak; warm-up 60 steps, then cosine to 2 %."""
    weight_decay: float = 0.03
    bands_weight: float = 0.6
    """Weight of the band energies (Huber loss of standardised values)."""
    save_every: int = 100
    """Steps between checkpoints and validations."""
    seed: int = 0


class Dense(NamedTuple):
    """Dense predictions or targets of a batch of crops."""

    quality: Tensor
    """Local quality 0..1, (batch, tokens)."""
    kinds: Tensor
    """Degradations, (batch, tokens, kinds): logits or 0/1."""
    bands: Tensor
    """Band energies in standard deviations, (batch, tokens, 3 * NUM_BANDS)."""
    whole: Tensor
    """Quality of the whole picture 0..1, (batch,); NaN where the crop is only a part of it."""

    def loss(self, target: "Dense", bands_weight: float) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum and its parts."""
        parts = {
            "quality": nn.functional.mse_loss(self.quality.float(), target.quality),
            "kinds": 0.3 * nn.functional.binary_cross_entropy_with_logits(self.kinds.float(), target.kinds),
            "bands": bands_weight * nn.functional.smooth_l1_loss(self.bands.float(), target.bands),
        }
        if (known := ~target.whole.isnan()).any():
            parts["whole"] = 0.5 * nn.functional.mse_loss(self.whole.float()[known], target.whole[known])
        return torch.stack(list(parts.values())).sum(), {k: float(v.detach()) for k, v in parts.items()}


class DenseHeads(nn.Module):
    """Linear read-outs of a tower's tokens: local quality, degradations, band energies; and of their mean, quality."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.quality = nn.Linear(width, 1)
        self.kinds = nn.Linear(width, len(KINDS))
        self.bands = nn.Linear(width, 3 * NUM_BANDS)
        self.whole = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, tokens: Tensor) -> Dense:
        """Read (batch, tokens, width)."""
        whole = self.whole(tokens.mean(1))[..., 0]
        return Dense(self.quality(tokens)[..., 0], self.kinds(tokens), self.bands(tokens), whole)


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
        bands = np.concatenate([s.bands.reshape(-1, s.bands.shape[-1]) for s in samples[:1024]]).astype(np.float32)
        self.band_mean, self.band_std = bands.mean(axis=0), bands.std(axis=0)

    def crop(self, sample: Sample, rng: np.random.Generator, grid: int = GRID) -> tuple[Tensor, Dense]:
        """Return an image (3, px, px) and its targets, without the batch's axis."""
        rows, columns = sample.local.shape
        top, left = rng.integers(0, rows - grid + 1), rng.integers(0, columns - grid + 1)
        y, x = slice(top * TOKEN_PX, (top + grid) * TOKEN_PX), slice(left * TOKEN_PX, (left + grid) * TOKEN_PX)
        image = torch.from_numpy(sample.image[y, x].astype(np.float32) / 255).permute(2, 0, 1)
        tokens = slice(top, top + grid), slice(left, left + grid)
        local = self.scale.rank("haarpsi", sample.local[tokens].astype(np.float64))
        bands = (sample.bands[tokens].astype(np.float32) - self.band_mean) / self.band_std
        # (rows, columns, targets): one array, so that flips keep them together.
        dense = torch.from_numpy(
            np.concatenate([local.astype(np.float32)[..., None], kind_map(sample)[tokens], bands], 2)
        )
        whole = (self.scale.pseudo_mos(sample.scores[None].astype(np.float64))[0] - 1) / 4
        label = float(whole) if rows == columns == grid else math.nan
        if rng.random() < 0.5:
            image, dense = image.flip(2), dense.flip(1)
        if rng.random() < 0.5:
            image, dense = image.flip(1), dense.flip(0)
        if rng.random() < 0.5:
            image, dense = image.transpose(1, 2), dense.transpose(0, 1)
        quality, kinds, bands = dense.flatten(0, 1).split((1, len(KINDS), 3 * NUM_BANDS), dim=1)
        return image.contiguous(), Dense(quality[:, 0], kinds, bands, torch.tensor(label))

    def __call__(self, step: int) -> list[tuple[Tensor, Dense]]:
        """Return the step's groups of equally large images (B, 3, px, px) with their targets."""
        rng, groups = np.random.default_rng([self.config.seed, step]), []
        for count, grid in ((self.config.batch_size, GRID), (self.config.small_batch_size, GRID // 2)):
            if not count:
                continue
            chosen = rng.choice(len(self.samples), size=count, p=self.shares)
            images, targets = zip(*(self.crop(self.samples[k], rng, grid) for k in chosen), strict=True)
            groups.append((torch.stack(images), Dense(*map(torch.stack, zip(*targets, strict=True)))))
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
            dense = heads(tower_tokens(tower, image_processor, torch.stack([image for image, _ in crops])))
        local += dense.quality.float().mean(1).tolist()
        whole += dense.whole.float().tolist()
        labels += [float(target.whole) for _, target in crops]
    tower.train()
    return {
        "srcc_local": float(spearmanr(local, labels).statistic),
        "srcc_whole": float(spearmanr(whole, labels).statistic),
    }


def pretrain(
    tower: nn.Module, image_processor: object, train: CropBatches, validation: CropBatches, folder: Path
) -> DenseHeads:
    """Train `tower` in place and return its heads; continues from `folder/state.pt`, logs to `folder/log.jsonl`."""
    config, run = train.config, RunFolder(folder)
    torch.manual_seed(config.seed)
    heads = DenseHeads(tower.config.out_hidden_size)
    named = [*tower.named_parameters(), *heads.named_parameters(prefix="heads")]
    optimizer = SplitOptimizer(named, weight_decay=config.weight_decay)
    running = RunningMeans()
    parts = {"tower": tower, "heads": heads, "optimizer": optimizer, "running": running}
    start = run.load(parts)
    tower.train()
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="dense pretraining", mininterval=5)
    for step in bar:
        for images, targets in train(step):
            with torch.autocast("cpu", torch.bfloat16), equal_windows(tower):
                dense = heads(tower_tokens(tower, image_processor, images))
            loss, values = dense.loss(targets, config.bands_weight)
            loss.backward()
            running.update(values)
        optimizer.step(cosine_lr(step, config.steps, config.learning_rate))
        bar.set_postfix({k: f"{v:.3f}" for k, v in running.means.items()}, refresh=False)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            run.log({"step": step + 1, **running.means, **validate(tower, heads, image_processor, validation)})
            run.save(step + 1, parts)
    tower.eval()
    return heads
