"""Train the embedded x4 super-resolution pipeline: `python -m restoration.train_nano --photos DIR --seconds 400`.

The same on a CPU or a GPU: worker processes write pairs (`crops.py`) while the denoiser learns (`learning.py`); the
budget is seconds of training, or steps. Resumable at any moment, logged, seeded; the weights exported are the moving
average. With steps instead of seconds all pairs are written first, so that a run that was killed ends as one that was
not, bit for bit on a CPU.
"""

import argparse
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from restoration.metrics.registry import fsim, lr_consistency, psnr_y
from restoration.nano.crops import Pairs, held_out_pairs, split
from restoration.nano.learning import Optimizers, averaging, rate_share, start_straight, x0_loss
from restoration.nano.pipeline import SCALE, NanoSRPipeline, build_scheduler, build_unet, enlarge
from restoration.restorer.agreement import AGREEMENT_PX
from zoomiqa_reward.model.devices import find_device, half_autocast
from zoomiqa_reward.runs.digest import listing_digest
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import plain, trim_lines
from zoomiqa_reward.runs.outputs import part_folder, write_text
from zoomiqa_reward.runs.program import Parser, run_program
from zoomiqa_reward.runs.progress import counting
from zoomiqa_reward.runs.training_folder import RunFolder, RunningMeans, TimeBudget

LARGE_FROM = 0.55
"""Share of the run after which windows are whole crops; small ones vary more and need no wide context at first."""
TEMPERED_FROM = 0.3
"""Share of the run after which the mean that tempered rows need is known."""
CPU_BATCH_PX, CUDA_BATCH_PX = 9216, 147456
"""LR pixels of a step."""
STD_PAIRS = 512


@dataclass(frozen=True, kw_only=True)
class NanoSRConfig:
    """The whole run."""

    photos: tuple[Path, ...]
    """Folders of clean photographs; a tenth of each is held out (`crops.HELD_OUT`)."""
    out: Path
    seconds: float = 400.0
    """Of training, over all the runs that it takes."""
    steps: int | None = None
    """Instead of seconds."""
    device: str = "cpu"
    seed: int = 0
    channels: tuple[int, ...] = (96, 128, 144)
    layers: int = 2
    crop_px: int = 192
    """Side of an HR crop."""
    small_px: int = 96
    """HR side of what is cut from a crop for a step, before `LARGE_FROM`."""
    batch_px: int | None = None
    """LR pixels per step; None: by the device."""
    rate: float = 2e-3
    """Muon's peak."""
    ema_decay: float = 0.999
    shards: int = 128
    """Of pairs, most: workers stop there."""
    shard_size: int = 64
    workers: int = 2
    save_seconds: float = 60.0
    validation_crops: int = 16

    def __post_init__(self) -> None:
        if not self.seconds > 0 or (self.steps is not None and self.steps < 1) or self.seed < 0:
            raise ValueError(
                f"seconds={self.seconds}, steps={self.steps}: must be above 0; seed={self.seed}: must be 0 or more"
            )
        if self.crop_px % (4 * SCALE) or self.small_px % SCALE or self.small_px > self.crop_px or self.crop_px < 80:
            raise ValueError(
                f"crop_px={self.crop_px} must be at least 80 and a multiple of 16, small_px={self.small_px} a "
                f"multiple of {SCALE} and no larger"
            )
        for name in ("shards", "shard_size", "workers", "validation_crops"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    @property
    def batch_pixels(self) -> int:
        """LR pixels of a step on this device."""
        return self.batch_px or (CUDA_BATCH_PX if self.device.startswith("cuda") else CPU_BATCH_PX)


class RestorerLearner:
    """The denoiser, its average, and what moves them."""

    def __init__(self, config: NanoSRConfig, std: float) -> None:
        """std: of HR less bicubic."""
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(config.device)
        unet = build_unet(config.channels, config.layers)
        start_straight(unet)
        options: dict[str, Any] = {"residual_std": std, "predicts": "x0", "agreement_px": AGREEMENT_PX}
        self.pipe = NanoSRPipeline(unet.to(self.device), build_scheduler(), **options)
        self.average = AveragedModel(self.pipe.unet, multi_avg_fn=averaging(config.ema_decay))
        self.smooth = NanoSRPipeline(self.average.module.eval(), build_scheduler(), **options)
        self.smooth.set_progress_bar_config(disable=True)
        self.optimizers = Optimizers(self.pipe.unet, config.rate)
        self.running, self.clock = RunningMeans(0.98), TimeBudget(config.seconds)
        self.parts = {"unet": self.pipe.unet, "average": self.average, "optimizers": self.optimizers,
                      "running": self.running, "clock": self.clock}  # fmt: skip

    def done(self, step: int) -> float:
        """Return the share of the run that is behind: by steps where they are given, by time otherwise."""
        config = self.config
        return step / config.steps if config.steps is not None else self.clock.progress

    def step(self, number: int, pairs: Pairs) -> None:
        """Learn from one batch; its random numbers depend on the seed and its number."""
        config, done = self.config, self.done(number)
        side = (config.small_px if done < LARGE_FROM else config.crop_px) // SCALE
        rng = np.random.default_rng([config.seed, 9, number])
        hr, lq = pairs.batch(max(8, config.batch_pixels // side**2 // 8 * 8), side, rng)
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**31)))
        with half_autocast(self.device):
            losses = x0_loss(self.pipe, self.smooth if done > TEMPERED_FROM else None, hr, lq, generator)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.pipe.unet.parameters(), 1.0)
        self.optimizers.step(rate_share(number, done))
        self.average.update_parameters(self.pipe.unet)
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not np.isfinite(values["loss"]):
            raise FloatingPointError(
                f"step {number}: the loss is {values['loss']}; start again in another folder with a lower "
                "NanoSRConfig.rate"
            )
        self.running.update(values)


def validate(pipe: NanoSRPipeline, hr: Tensor, lq: Tensor, seed: int) -> dict[str, float]:
    """Return means over held-out crops (uint8): samples and bicubic by three judges, and the spread of two samples."""
    large, small = hr.float() / 255, lq.float() / 255
    draws = [
        pipe(small, generator=torch.Generator().manual_seed(seed + k), output_type="pt")[0].cpu() for k in range(2)
    ]
    rows: dict[str, list[float]] = {}
    for sample, bicubic, truth, source in zip(draws[0], enlarge(small).clamp(0, 1), large, small, strict=True):
        for end, image in (("", sample), ("_bicubic", bicubic)):
            rows.setdefault(f"psnr_y{end}", []).append(psnr_y(image, truth))
            rows.setdefault(f"fsim{end}", []).append(fsim(image, truth))
            rows.setdefault(f"lr_consistency{end}", []).append(lr_consistency(image, source))
    spread = float((draws[0] - draws[1]).square().mean().sqrt())
    return {name: float(np.mean(values)) for name, values in rows.items()} | {"rms_between_samples": spread}


def train(config: NanoSRConfig) -> Path:
    """Train until the budget is spent and return the folder of the finished pipeline; a run that exists goes on.

    Raises AnotherRun (a ValueError) for a folder whose run had other photographs or settings, ValueError for one in
    which another process trains.
    """
    training, held_out = split(config.photos)
    with locked(config.out):
        bind(config.out, _settings(config, [*training, *held_out]), key="settings", results=("pairs", "train"))
        return _train(config, training, held_out)


def _train(config: NanoSRConfig, training: list[Path], held_out: list[Path]) -> Path:
    pairs = Pairs(
        config.out / "pairs", training, shards=config.shards, shard_size=config.shard_size, px=config.crop_px,
        seed=config.seed, workers=config.workers, device=torch.device(config.device),
    )  # fmt: skip
    try:
        checked = held_out_pairs(held_out, config.validation_crops, config.crop_px)
        wait_for(pairs, everything=config.steps is not None)
        std = residual_std(config.out / "residual_std.txt", pairs)
        learner, run = RestorerLearner(config, std), RunFolder(config.out / "train")
        step = run.load(learner.parts)
        trim_lines(run.folder / "log.jsonl", "step", step)  # a kill may come between a row and its state
        learner.pipe.unet.train()
        saved = time.monotonic()
        with counting("denoiser, per cent", 100) as count:
            shown, over = 0, learner.done(step) >= 1
            while not over:
                if not pairs.complete and step % 8 == 0:
                    pairs.take()
                learner.step(step, pairs)
                step += 1
                done = learner.done(step)  # asked once per step: time goes on between two questions
                reached, over = min(100, int(100 * done)), done >= 1
                count(reached - shown)
                shown = reached
                if over or time.monotonic() - saved > config.save_seconds:
                    report = validate(learner.smooth, *checked, seed=config.seed)
                    run.log({"step": step, "pairs": pairs.count, **learner.running.means, **report})
                    run.save(step, learner.parts)
                    saved = time.monotonic()
    finally:
        pairs.close()
    pipeline = part_folder(config.out / "pipeline")
    learner.smooth.to("cpu", torch.float16).save_pretrained(pipeline, safe_serialization=True)
    return pipeline


FREE = {"photos", "out", "seconds", "steps", "device", "workers", "shards", "save_seconds", "validation_crops"}
"""Settings that may change when a run goes on; the photographs must be the same ones, wherever they lie."""


def _settings(config: NanoSRConfig, photographs: list[Path]) -> dict[str, Any]:
    """Return what a run's folder is bound to."""
    fixed = {key: value for key, value in asdict(config).items() if key not in FREE}
    return plain(fixed | {"photographs": listing_digest(photographs)})


def wait_for(pairs: Pairs, *, everything: bool) -> None:
    """Wait for the first shard, or for all of them."""
    pairs.take()
    while not (pairs.complete if everything else pairs.count):
        time.sleep(0.2)
        pairs.take()


def residual_std(file: Path, pairs: Pairs) -> float:
    """Return the standard deviation of what bicubic misses, as the first start of the run measured it."""
    if not file.exists():
        hr, lq = (pool[: min(STD_PAIRS, pairs.count)].float() / 255 for pool in (pairs.hr, pairs.lq))
        write_text(file, repr(float((hr - enlarge(lq)).std())))
    return float(file.read_text())


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = Parser(prog="python -m restoration.train_nano", description=__doc__)
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of clean photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/nano_sr"), help="run folder (resumed if it exists)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    parser.add_argument("--seconds", type=float, default=NanoSRConfig.seconds, help="time of training")
    parser.add_argument("--steps", type=int, help="number of steps, instead of --seconds")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--workers", type=int, default=NanoSRConfig.workers, help="processes that write pairs")
    parser.add_argument("--shards", type=int, default=NanoSRConfig.shards, help="most files of 64 pairs")
    args = parser.parse_args(argv)
    return run_program("restoration.train_nano", lambda: _work(args))


def _work(args: argparse.Namespace) -> int:
    find_device(args.device)
    config = NanoSRConfig(photos=tuple(args.photos), out=args.out)
    names = ("device", "seconds", "steps", "seed", "workers", "shards")
    folder = train(replace(config, **{name: getattr(args, name) for name in names}))
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
