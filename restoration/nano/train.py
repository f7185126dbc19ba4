"""Make the embedded x4 super-resolution pipeline from scratch: `python -m restoration.train_nano --images DIR`.

Crops of clean photographs and their seeded low-quality copies are written once, in shards; then the denoiser of
`NanoSRPipeline` learns v of the residual to bicubic. Resumable at any moment, logged, seeded; the weights exported are
the moving average.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from restoration.degradation.pipeline import degrade
from restoration.metrics.registry import fsim, psnr_y
from restoration.nano.pipeline import (
    PREDICTIONS,
    SCALE,
    NanoSRPipeline,
    build_scheduler,
    build_unet,
    enlarge,
    to_residual,
)
from zoomiqa_reward.runs.training_folder import RunFolder, RunningMeans

PRESET_SHARES = {"bicubic": 0.15, "mild": 0.3, "moderate": 0.35, "realesrgan": 0.2}
SIGMA_FLOOR = 0.2
"""About that of the last of 8 steps."""
MOST_ENLARGED = 3.0
"""Of soft crops."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, kw_only=True)
class NanoSRConfig:
    """The whole run."""

    images: Path
    """Clean photographs; a seeded tenth is held out for validation."""
    out: Path
    seed: int = 0
    crops: int = 8192
    crop_px: int = 128
    """Of the HR crop."""
    validation_crops: int = 64
    channels: tuple[int, ...] = (64, 112, 176)
    steps: int = 4000
    batch_size: int = 32
    soft_share: float = 0.0
    """Of the crops: enlarged again after they were reduced. Large photographs are that soft per pixel."""
    predicts: str = "v"
    """See `NanoSRPipeline`. With "x0" and this little training, samples stay close to bicubic (docs/log.md)."""
    train_px: int = 96
    """HR side of what is cut from a crop for a step."""
    learning_rate: float = 5e-4
    """Peak; 100 steps of warm-up, cosine to 2 %."""
    ema_decay: float = 0.998
    save_every: int = 200
    shard_size: int = 256
    workers: int = 2


def _crop(path: Path, px: int, rng: np.random.Generator, soft_share: float = 0.0) -> Tensor:
    """Return a random window of the photograph, reduced by up to 2, a share of them then enlarged; CHW in [0, 1]."""
    is_soft = soft_share > 0 and rng.random() < soft_share
    enlarged = rng.uniform(1.0, MOST_ENLARGED) if is_soft else 1.0
    small = round(px / enlarged)
    with Image.open(path) as photograph:
        photograph = photograph.convert("RGB")
        largest = min(2.0, min(photograph.size) / small)
        side = int(small * rng.uniform(1.0, max(1.0, largest)))
        left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
        window = photograph.resize((small, small), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        window = window.resize((px, px), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(window, dtype=np.float32) / 255).permute(2, 0, 1).contiguous()


def _write_shard(
    folder: Path, index: int, paths: list[Path], size: int, px: int, seed: int, soft_share: float
) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, index])
    hr, lq = [], []
    while len(hr) < size:
        clean = _crop(paths[rng.integers(0, len(paths))], px, rng, soft_share)
        preset = str(rng.choice(list(PRESET_SHARES), p=list(PRESET_SHARES.values())))
        copy, _ = degrade(clean, preset, seed=int(rng.integers(0, 2**31)), scale=SCALE)
        hr.append((clean.numpy() * 255).round().astype(np.uint8))
        lq.append((copy.numpy() * 255).round().astype(np.uint8))
    temporary = folder / f"{index:05d}.tmp"
    with open(temporary, "wb") as file:
        np.savez(file, hr=np.stack(hr), lq=np.stack(lq))
    os.replace(temporary, folder / f"{index:05d}.npz")


def write_crops(folder: Path, paths: list[Path], count: int, config: NanoSRConfig, seed: int) -> None:
    """Write `count` pairs in whole shards; those that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [k for k in range(-(-count // config.shard_size)) if not (folder / f"{k:05d}.npz").exists()]
    size = min(count, config.shard_size)
    with ProcessPoolExecutor(config.workers) as pool:
        common = (paths, size, config.crop_px, seed, config.soft_share)
        jobs = [pool.submit(_write_shard, folder, k, *common) for k in missing]
        for job in tqdm(jobs, desc=f"crops {folder.name}", unit="shard"):
            job.result()


def read_crops(folder: Path) -> tuple[Tensor, Tensor]:
    """Return uint8 (N, 3, px, px) and (N, 3, px / 4, px / 4)."""
    shards = [np.load(path, allow_pickle=False) for path in sorted(folder.glob("*.npz"))]
    return tuple(torch.from_numpy(np.concatenate([s[name] for s in shards])) for name in ("hr", "lq"))  # type: ignore[return-value]


def batches(hr: Tensor, lq: Tensor, config: NanoSRConfig, start: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (step, HR, LR) in [0, 1] from step `start`; a step's batch is the same whenever it is drawn."""
    lq_px = config.train_px // SCALE
    room = lq.shape[-1] - lq_px
    for step in range(start, config.steps):
        rng = np.random.default_rng([config.seed, 9, step])
        pairs = []
        for k in rng.integers(0, len(hr), config.batch_size):
            top, left = rng.integers(0, room + 1, 2)
            small = lq[k, :, top : top + lq_px, left : left + lq_px]
            top, left = SCALE * top, SCALE * left
            large = hr[k, :, top : top + config.train_px, left : left + config.train_px]
            turns, flip = int(rng.integers(0, 4)), bool(rng.integers(0, 2))
            pair = [x.rot90(turns, (1, 2)) for x in (large, small)]
            pairs.append([x.flip(2) if flip else x for x in pair])
        large, small = (torch.stack(x).float() / 255 for x in zip(*pairs, strict=True))
        yield step, large, small


def velocity_loss(pipe: NanoSRPipeline, hr: Tensor, lq: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean squared error of v at random times for equally large HR (B, 3, 4 h, 4 w) and LR pictures.

    A network that says x0 has its error divided by sigma; below `SIGMA_FLOOR` it is weighed as if sigma were that
    large, or times that no sampler visits would own the loss.
    """
    clean = to_residual(hr, lq, pipe.config.residual_std)
    noise = torch.randn(clean.shape, generator=generator)
    # Times spread evenly over the batch: the loss of a batch varies less.
    count = pipe.scheduler.config.num_train_timesteps
    times = (torch.arange(len(hr)) + torch.rand(len(hr), generator=generator)) / len(hr) * count
    times = times.long().clamp(max=count - 1)
    noisy = pipe.scheduler.add_noise(clean, noise, times)
    target = pipe.scheduler.get_velocity(clean, noise, times)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = pipe.velocity(lq, noisy, times)
    errors = (predicted - target).square().mean(dim=(1, 2, 3))
    if pipe.config.predicts == "v":
        return errors.mean()
    sigma = (1 - pipe.scheduler.alphas_cumprod[times]).sqrt()
    return ((sigma / SIGMA_FLOOR).clamp(max=1).square() * errors).mean()


def validate(pipe: NanoSRPipeline, hr: Tensor, lq: Tensor, seed: int) -> dict[str, float]:
    """Return mean PSNR-Y and FSIM of samples and of bicubic on held-out crops, and the spread over two samples."""
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    large, small = hr.float() / 255, lq.float() / 255
    draws = [pipe(small, generator=torch.Generator().manual_seed(seed + k), output_type="pt").images for k in range(2)]
    pipe.unet.train()
    rows: dict[str, list[float]] = {"psnr_y": [], "psnr_y_bicubic": [], "fsim": [], "fsim_bicubic": []}
    for sample, plain, truth in zip(draws[0], enlarge(small).clamp(0, 1), large, strict=True):
        rows["psnr_y"].append(psnr_y(sample, truth))
        rows["psnr_y_bicubic"].append(psnr_y(plain, truth))
        rows["fsim"].append(fsim(sample, truth))
        rows["fsim_bicubic"].append(fsim(plain, truth))
    spread = float((draws[0] - draws[1]).square().mean().sqrt())
    return {name: float(np.mean(values)) for name, values in rows.items()} | {"rms_between_samples": spread}


def _rate(step: int, config: NanoSRConfig) -> float:
    warm = min(1.0, (step + 1) / 100)
    return config.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def train(config: NanoSRConfig) -> Path:
    """Run what is missing of all stages and return the folder of the finished pipeline."""
    paths = sorted(p for p in config.images.rglob("*") if p.suffix.lower() in SUFFIXES)
    if len(paths) < 10:
        raise ValueError(f"{config.images}: {len(paths)} images; at least 10 clean photographs are needed")
    order, cut = np.random.default_rng(config.seed).permutation(len(paths)), max(1, len(paths) // 10)
    held_out, training = ([paths[k] for k in sorted(part)] for part in (order[:cut], order[cut:]))
    write_crops(config.out / "validation", held_out, config.validation_crops, config, config.seed * 2 + 1)
    write_crops(config.out / "crops", training, config.crops, config, config.seed * 2)
    hr, lq = read_crops(config.out / "crops")
    checked = [x[: config.validation_crops] for x in read_crops(config.out / "validation")]

    torch.manual_seed(config.seed)
    some = slice(0, 512)
    std = float((hr[some].float() / 255 - enlarge(lq[some].float() / 255)).std())
    pipe = NanoSRPipeline(build_unet(config.channels), build_scheduler(), residual_std=std, predicts=config.predicts)
    averaged = AveragedModel(pipe.unet, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    smooth = NanoSRPipeline(averaged.module, build_scheduler(), residual_std=std, predicts=config.predicts)
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    run, running = RunFolder(config.out / "train"), RunningMeans(0.98)
    parts = {"unet": pipe.unet, "average": averaged, "optimizer": optimizer, "running": running}
    start = run.load(parts)
    pipe.unet.train()
    bar = tqdm(batches(hr, lq, config, start), initial=start, total=config.steps, desc="denoiser", mininterval=5)
    for step, large, small in bar:
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, config)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        loss = velocity_loss(pipe, large, small, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(pipe.unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(pipe.unet)
        running.update({"loss": float(loss.detach())})
        bar.set_postfix({k: f"{v:.4f}" for k, v in running.means.items()}, refresh=False)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            run.log({"step": step + 1, **running.means, **validate(smooth, *checked, seed=config.seed)})
            run.save(step + 1, parts)
    smooth.unet.eval()
    smooth.to(torch.float16).save_pretrained(config.out / "pipeline", safe_serialization=True)
    return config.out / "pipeline"


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m restoration.train_nano", description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of clean photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/nano_sr"), help="run folder (resumed if it exists)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=NanoSRConfig.steps)
    parser.add_argument("--predicts", choices=PREDICTIONS, default=NanoSRConfig.predicts)
    parser.add_argument("--soft-share", type=float, default=NanoSRConfig.soft_share)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    config = NanoSRConfig(
        images=args.images, out=args.out, seed=args.seed, steps=args.steps, predicts=args.predicts,
        soft_share=args.soft_share,
    )  # fmt: skip
    folder = train(config)
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
