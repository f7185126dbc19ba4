"""The hacking monitor: fixed validation images and seeds, measured as training goes, against the base model's limits.

A limit is the base model's mean over the validation images +- 4 bootstrap deviations of that mean (resampled over
images, and over two draws of candidates), on the side that hacking moves it to. Limits are written to
`monitor_limits.json` before any update. Held-out metrics may be neither in the reward nor in the labels that it was
trained on.

| signal | alarm | what it means |
|---|---|---|
| `reward` | low | collapse |
| `fragility` (reward less that of the same images as JPEGs of quality 95) | high | a gain that no eye can see |
| held-out metrics | worse | the reward rises at their cost |
| `lr_consistency` | low, and below the ground truths' | invented content |
| `fine_energy` (SR over HR, or over bicubic without HR) | low, high | over-smoothing, over-sharpening |
| `grid_peak` | high | grid artefacts |
| `gram` (distance to the base model's images of other seeds) | high | stylisation |
| `kl` (relative squared distance of the network's outputs) | above `max_kl` | a step too large |
| `diversity` | low | one image for all seeds |
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from restoration.evaluation.measuring import bicubic
from restoration.metrics.registry import find_metrics, lr_consistency, measure
from restoration.restorer.rng import candidate_seed
from restoration.tuning.config import MonitorConfig
from restoration.tuning.context import Tuning
from restoration.tuning.data import Example, crop
from restoration.tuning.lora import reference
from restoration.tuning.monitor.limits import (
    LEAST_FRAGILITY,
    LEAST_MEASURED,
    MOST_LOST,
    Limit,
    compared,
    count_newly_unmeasured,
    limits_of,
    read_limits,
    write_limits,
)
from restoration.tuning.monitor.signals import diversity, fine_energy, gram_distance, grid_peak
from restoration.tuning.sampler.denoising import random_noise
from restoration.tuning.sampler.parametrisation import noisy
from restoration.tuning.sampler.rollout import draw_candidates, encode, raw_range, raw_values, score_images
from zoomiqa_reward.images.filters import through_jpeg
from zoomiqa_reward.rewards.base import optimised_names
from zoomiqa_reward.runs.progress import progress

logger = logging.getLogger(__name__)

MIN_IMAGES = 4
JPEG_QUALITY = 95
"""To the eye the same, but no longer to the pixel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One look at the model."""

    values: dict[str, float]
    """Mean of each signal over the images that this model and the base model could measure, on the base's scale."""
    alarms: tuple[str, ...]
    """What crossed its limit, in words."""
    images: list[Tensor]
    """[seeds, 3, height, width] a validation image."""


class Monitor:
    """Watches a run."""

    def __init__(self, tuning: Tuning, examples: Sequence[Example], config: MonitorConfig) -> None:
        """Take the middle of each validation image.

        Raises ValueError for fewer than 4 images (a bootstrap over them would mean nothing) and for a metric that
        the reward, or its labels, already know.
        """
        if len(examples) < MIN_IMAGES:
            raise ValueError(f"{len(examples)} validation images: at least {MIN_IMAGES} are needed for limits")
        optimised = optimised_names(tuning.reward)
        for metric in find_metrics(config.metrics):
            if metric.name in optimised:
                raise ValueError(f"monitor metric {metric.name!r} is part of the reward or of its labels: take another")
            if metric.needs == "hr" and any(example.hr is None for example in examples):
                raise ValueError(
                    f"monitor metric {metric.name!r} needs ground truths: leave it out of MonitorConfig.metrics"
                )
        self.tuning, self.config = tuning, config
        self.examples = [crop(example, config.crop_px) for example in examples]
        self.limits: dict[str, Limit] = {}
        self.left_out: list[str] = []
        self._base_features: list[list[Tensor]] = []
        self._base_rows: dict[str, list[float]] = {}

    def start(self) -> Reading:
        """Measure the base model, and write its limits unless the run folder holds them already."""
        with reference(self.tuning.denoiser.module):
            images, others = self.draw(), self.draw(seed=1)
            pairs = zip(self.examples, others, strict=True)
            self._base_features = [self._features(example, own_images) for example, own_images in pairs]
            rows, again = self.signals(images), self.signals(others)
        file = self.tuning.folder / "monitor_limits.json"
        if not file.exists():
            again.pop("gram")  # measured against these very images: 0
            # Seeds differ little, so all that is learned would be style; what is no further than the truth is not.
            room_to = {"gram": float(np.mean([self._truth_distance(k) for k in range(len(self.examples))]))}
            truths = [lr_consistency(example.hr, example.lq) for example in self.examples if example.hr is not None]
            if len(truths) == len(self.examples):  # a blurred image's truth is no more consistent with it than that
                room_to["lr_consistency"] = float(np.mean(truths))
            low, high = raw_range(self.tuning.reward)
            if math.isfinite(high - low):
                base = compared(rows["fragility"], rows["fragility"])[0]
                room_to["fragility"] = base + LEAST_FRAGILITY * (high - low)
            write_limits(file, *limits_of(rows, again, self.config, room_to))
        self.limits, self.left_out = read_limits(file)
        self._base_rows = rows
        if self.left_out:
            logger.warning("monitor: %s", self.announcement())
        values = {name: compared(row, row)[0] for name, row in rows.items()} | {"kl": 0.0}
        return Reading(values=values, alarms=(), images=images)

    def announcement(self) -> str | None:
        """Return which signals have no limit, in words; None where all have one."""
        if not self.left_out:
            return None
        return (
            f"no limit for {', '.join(self.left_out)}: fewer than {LEAST_MEASURED} validation images could be measured "
            "on the base model, so these signals cannot alarm"
        )

    def draw(self, seed: int = 0) -> list[Tensor]:
        """Return [seeds, 3, height, width] of each validation image by the model as it stands, always by one seed."""
        seen = progress(self.examples, len(self.examples), "monitor", shown=self.tuning.process == 0)
        images = []
        for index, example in enumerate(seen):
            image_seed = candidate_seed(candidate_seed(self.tuning.config.seed, seed), index)
            drawn = draw_candidates(self.tuning, [example], [image_seed], count=self.config.num_seeds)
            images.append(torch.stack(drawn.images))
        return images

    def look(self) -> Reading:
        """Measure the model as it stands."""
        return self.examine(self.draw(), kl=self.kl())

    def examine(self, images: list[Tensor], *, kl: float = 0.0) -> Reading:
        """Measure given candidates of the validation images and compare with the limits."""
        rows = self.signals(images)
        values, alarms = {"kl": kl}, []
        for name, row in rows.items():
            now, base = compared(row, self._base_rows[name])
            whole = compared(self._base_rows[name], self._base_rows[name])[0]
            # The base's mean over the same images may be another than over all: the change is what a limit is about.
            values[name] = now if base == whole else now - base + whole
        for name, limit in self.limits.items():
            if limit.crossed(values[name]):
                alarms.append(limit.words(name, values[name]))
            elif name in rows and (count := count_newly_unmeasured(rows[name], self._base_rows[name])):
                num_measured = sum(map(math.isfinite, self._base_rows[name]))
                if count > MOST_LOST * num_measured:
                    alarms.append(f"{name} can no longer be measured on {count} of {num_measured} validation images")
        return Reading(values=values, alarms=tuple(alarms), images=images)

    def signals(self, images: list[Tensor]) -> dict[str, list[float]]:
        """Return each signal by name: one number per validation image, mean over seeds."""
        owners = [entry for entry, candidates in zip(self.examples, images, strict=True) for _ in candidates]
        flat = [image for candidates in images for image in candidates]
        raw = raw_values(score_images(self.tuning, flat, owners))
        pairs = list(zip(flat, owners, strict=True))
        stored = [through_jpeg(image, JPEG_QUALITY) for image in flat]
        packed = raw_values(score_images(self.tuning, stored, owners))
        signals: dict[str, list[float]] = {"reward": _means(raw, images)}
        signals["fragility"] = _means([entry - other for entry, other in zip(raw, packed, strict=True)], images)
        for name in self.config.metrics:
            values = [measure([name], image, hr=entry.hr, lq=entry.lq)[name].value for image, entry in pairs]
            signals[name] = _means(values, images)
        signals["lr_consistency"] = _means([lr_consistency(image, entry.lq) for image, entry in pairs], images)
        signals |= {"fine_energy": [], "grid_peak": [], "gram": [], "diversity": []}
        for index, (example, candidates) in enumerate(zip(self.examples, images, strict=True)):
            yardstick = fine_energy(_yardstick(example, self.tuning.denoiser.scale))
            signals["fine_energy"].append(float((fine_energy(candidates) / yardstick).mean()))
            signals["grid_peak"].append(float(grid_peak(candidates, self.tuning.denoiser.patch_px).mean()))
            distance = gram_distance(self._features(example, candidates), self._base_features[index])
            signals["gram"].append(float(distance.mean()))
            signals["diversity"].append(diversity(candidates))
        return signals

    @torch.no_grad()
    def kl(self) -> float:
        """Return mean |v - v_base|^2 / mean |v_base|^2 at fixed times and noise on fixed signals: 0 for the base."""
        denoiser, gaps, sizes = self.tuning.denoiser, [], []
        for index, example in enumerate(self.examples):
            generator = torch.Generator().manual_seed(candidate_seed(self.tuning.config.seed, 1000 + index))
            rows = self.config.num_seeds
            condition = encode(self.tuning, example, [generator] * rows)
            clean = _yardstick(example, denoiser.scale).to(self.tuning.device)
            x0 = denoiser.encode_target(clean, condition)
            x0 = x0.expand(rows, *x0.shape[1:])
            times, alphas, sigmas = denoiser.schedule.draw(rows, generator)
            x_t = noisy(x0, random_noise(x0, generator, self.tuning.config.temperature), alphas, sigmas)
            now = denoiser.predict(x_t, times, condition)
            with reference(denoiser.module):
                base = denoiser.predict(x_t, times, condition)
            gaps.append(float((now - base).square().mean()))
            sizes.append(float(base.square().mean()))
        return sum(gaps) / sum(sizes)

    def _truth_distance(self, index: int) -> float:
        """Return the Gram distance of an image's ground truth (or enlarged LR) to the base's restorations."""
        example = self.examples[index]
        truth = self._features(example, _yardstick(example, self.tuning.denoiser.scale))
        return float(gram_distance(truth, self._base_features[index]).mean())

    def _features(self, example: Example, images: Tensor) -> list[Tensor]:
        generators = [torch.Generator().manual_seed(0) for _ in images]
        with torch.no_grad(), reference(self.tuning.denoiser.module):
            condition = encode(self.tuning, example, generators)
            maps = self.tuning.denoiser.features(images.to(self.tuning.device), condition)
        return [features.cpu() for features in maps]


def _means(values: Sequence[float], images: list[Tensor]) -> list[float]:
    means, start = [], 0
    for group in images:
        finite = [value for value in values[start : start + len(group)] if math.isfinite(value)]
        means.append(float(np.mean(finite)) if finite else math.nan)
        start += len(group)
    return means


def _yardstick(example: Example, scale: int) -> Tensor:
    """The ground truth, or the LR image enlarged; a batch of one."""
    return bicubic(example.lq, scale)[None] if example.hr is None else example.hr[None]
