"""Making and measuring one image of an evaluation: a candidate with its cost, bicubic, or the ground truth."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from restoration.evaluation.datasets import ImagePair, pixel_hash
from restoration.evaluation.records import NO_REFERENCE, ImageRecord
from restoration.metrics.registry import MetricOptions, measure
from restoration.restorer.image_io import RestorationError
from zoomiqa_reward.images.filters import resize_bicubic
from zoomiqa_reward.images.loading import ImageSource, load_image, save_png, to_pil
from zoomiqa_reward.rewards.base import Reward, ask
from zoomiqa_reward.rewards.restorations import ask_restorations
from zoomiqa_reward.runs.outputs import part_folder

try:
    import resource
except ModuleNotFoundError:  # Windows: a process's peak memory is then not known
    resource = None  # type: ignore[assignment]


class Drawn(Protocol):
    """A candidate."""

    @property
    def image(self) -> Tensor:
        """CHW in [0, 1]."""

    @property
    def seed(self) -> int:
        """What it was drawn with."""


class Restoring(Protocol):
    """What is evaluated: `restoration.Restorer`, or anything like it."""

    name: str
    fingerprint: str
    scale: int | None
    """None: not known yet; the dataset's is then presumed, and checked on each image."""

    def restore(self, image: Tensor, seeds: Sequence[int]) -> Iterable[Drawn]:
        """Yield one candidate per seed, in order, with `.image` (CHW in [0, 1]) and `.seed`."""
        ...


def bicubic(image_lq: Tensor, scale: int) -> Tensor:
    """Return a CHW image `scale` times as large, by the bicubic kernel (a = -0.5) of Pillow and MATLAB, clamped."""
    return resize_bicubic(image_lq.float(), image_lq.shape[1] * scale, image_lq.shape[2] * scale)


@dataclass(frozen=True, kw_only=True)
class BicubicRestorer:
    """Bicubic as a restorer: deterministic, so all its candidates are one image."""

    scale: int = 4
    name: str = "bicubic"
    fingerprint: str = "bicubic"

    @dataclass(frozen=True)
    class Candidate:
        """An image and its seed."""

        image: Tensor
        seed: int

    def restore(self, image: ImageSource, seeds: Sequence[int]) -> Iterator[Candidate]:
        """Yield the enlarged image once per seed."""
        enlarged = bicubic(load_image(image), self.scale)
        yield from (self.Candidate(enlarged, seed) for seed in seeds)


def restore_seeds(
    restorer: Restoring, image_lq: Tensor, scale: int, seeds: list[int]
) -> Iterator[tuple[int, Tensor | str, dict[str, Any]]]:
    """Yield (seed, image or why there is none, its cost)."""
    size = (3, image_lq.shape[1] * scale, image_lq.shape[2] * scale)
    waiting, candidates = list(seeds), None
    while waiting:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            candidates = iter(restorer.restore(image_lq, list(waiting))) if candidates is None else candidates
            candidate = next(candidates)
        except (ValueError, RestorationError, StopIteration, torch.OutOfMemoryError) as failure:
            # The failure of this seed alone; a generator that raised is over, so the other seeds need a new one.
            ended = "the restorer returned no candidate for this seed" if isinstance(failure, StopIteration) else ""
            yield waiting.pop(0), ended or " ".join(str(failure).split()) or type(failure).__name__, {}
            candidates = None
            continue
        cost = {"seconds": time.perf_counter() - start, "peak_bytes": _peak_bytes()}
        if candidate.seed != waiting[0]:
            raise RuntimeError(
                f"restorer {restorer.name!r} returned seed {candidate.seed} where {waiting[0]} was expected: restore() "
                "must yield one restoration per seed, in order"
            )
        image = load_image(candidate.image).detach().cpu()
        if image.shape != size:
            raise RuntimeError(
                f"restorer {restorer.name!r} returned {tuple(image.shape)} where {tuple(size)} was expected: its "
                "scale must be that of the dataset"
            )
        yield waiting.pop(0), image, cost


@dataclass(frozen=True)
class ImageMeasurer:
    """Measures an image by the metrics and the reward."""

    names: list[str]
    options: MetricOptions
    reward: Reward | None
    images: Path | None

    def __call__(
        self, image: Tensor | str, pair: ImagePair, name: str, row: str, seed: int | None = None, cost: Any = None
    ) -> ImageRecord:
        common: dict[str, Any] = {
            "image": name,
            "row": row,
            "seed": seed,
            "lq_sha256": pair.lq_sha256,
            "hr_sha256": pair.hr_sha256,
        }
        if isinstance(image, str):
            return ImageRecord(**common, error=image, metrics=dict.fromkeys(self.names, float("nan")),
                          reasons=dict.fromkeys(self.names, "there is no image"))  # fmt: skip
        image = load_image(to_pil(image))
        reference = None if row == "hr" else pair.hr
        measured = measure(self.names, image, hr=reference, lq=pair.lq, options=self.options)
        if self.images is not None and row == "candidate":
            part_folder(self.images / name)
            save_png(image, self._file(name, seed))
        value, error = self._rewarded(image, pair.lq, reference, row)
        return ImageRecord(
            **common,
            **(cost or {}),
            metrics={key: measurement.value for key, measurement in measured.items()},
            reasons={
                key: measurement.reason for key, measurement in measured.items() if measurement.reason is not None
            },
            reward=value,
            reward_error=error,
            sha256=pixel_hash(image),
        )

    def has_kept(self, name: str, row: str, seed: int | None) -> bool:
        """Return whether an image lies where it is to be kept; an earlier call may have kept none."""
        return self.images is None or row != "candidate" or self._file(name, seed).is_file()

    def _file(self, name: str, seed: int | None) -> Path:
        assert self.images is not None
        return self.images / name / f"{seed}.png"

    def _rewarded(self, image: Tensor, lq: Tensor, hr: Tensor | None, row: str) -> tuple[float, str | None]:
        """Return the reward and why there is none. A candidate that lost its content has none, whatever the reward."""
        if self.reward is None:
            return float("nan"), None
        if "hr" in self.reward.needs and hr is None:
            return float("nan"), NO_REFERENCE
        reward_of = ask_restorations if row == "candidate" else ask
        scores = reward_of(self.reward, [image], lq=[lq], hr=None if hr is None else [hr])
        valid = bool(scores.valid[0])
        return float(scores.value[0]), None if valid else scores.reason(0, self.reward.name)


def _peak_bytes() -> int | None:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
