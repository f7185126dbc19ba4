"""Measure the candidates of a restorer on a dataset, and the value of a reward's choice among them.

Every image is measured as the 8-bit file that it would be saved as. Beside the candidates stand two rows: bicubic,
which any restorer should beat, and the ground truth, which no-reference metrics need not like best. The work is
appended image by image to a folder, so that a run that was killed goes on where it was; what is made of the
records stands in `restoration.evaluation.report`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from restoration.evaluation.datasets import Dataset
from restoration.evaluation.measuring import BicubicRestorer, ImageMeasurer, Restoring, bicubic, restore_seeds
from restoration.evaluation.records import NOT_LOADED, ImageRecord, RecordFolder, read_records, read_settings
from restoration.evaluation.report import not_headline, pick_headline, report
from restoration.metrics.fidelity import MetricUnavailable
from restoration.metrics.perceptual import backbone_hash
from restoration.metrics.registry import BOTH, METRICS, MetricOptions, conventions, find_metrics
from restoration.restorer.rng import candidate_seed
from zoomiqa_reward.images.loading import conversions
from zoomiqa_reward.rewards.base import Reward, require_pointwise
from zoomiqa_reward.runs.folder import locked
from zoomiqa_reward.runs.json_lines import write_json
from zoomiqa_reward.runs.provenance import versions
from zoomiqa_reward.runs.settings import identity_of
from zoomiqa_reward.whole_numbers import whole_numbers

__all__ = ["BicubicRestorer", "Evaluation", "Restoring", "bicubic", "evaluate"]

REPORT = "results.json"
LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "zoomiqa-reward")
MAX_FAILED_SHARE = 0.2
"""Above this share of failed candidates the run stops, because the rest would be another dataset."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Settings and records of a run."""

    settings: dict[str, Any]
    """Provenance: restorer, dataset, metrics, reward, seeds, versions."""
    records: tuple[ImageRecord, ...]

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Read the folder of a run, finished or not. Raises ValueError if it is no such folder."""
        settings = read_settings(Path(folder))
        return cls(settings=settings, records=_of_seeds(read_records(Path(folder)), settings["seeds"]))

    def report(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON; see `evaluation.report.report`."""
        return report(self.settings, self.records)


def evaluate(
    restorer: Restoring, dataset: Dataset, metrics: Sequence[str], *, n: int = 8, seed: int = 0,
    reward: Reward | None = None, out: str | Path | None = None, headline: str | None = None,
    options: MetricOptions | None = None, keep_images: bool = False,
    watch: Callable[[Iterable[ImageRecord], int], Iterable[ImageRecord]] | None = None,
) -> Evaluation:  # fmt: skip
    """Restore every image `n` times, measure everything, and return the evaluation.

    Candidate k has the seed `candidate_seed(seed, k)`, for every image and every restorer.

    `metrics`: names in `restoration.metrics.METRICS`. `options`: as for `measure`; by default LR-consistency uses no
    blur if the dataset is clean. `headline`: the metric that judges; by default the first allowed one. `out`: folder
    for records, settings and report; the same call continues it. `keep_images` writes the candidates there too.
    `watch(records, total)` wraps the records, as tqdm does.

    An image that cannot be loaded does not stop the others; its records hold the reason.

    Raises ValueError for wrong arguments, for a headline that was the reward or made its labels, and for a folder of
    another run; RuntimeError if more than a fifth of the candidates fail.
    """
    n, seed = whole_numbers(n=n, seed=seed)  # as run.json has them
    _check(restorer, dataset, n, reward, keep_images, out)
    names = [metric.name for metric in find_metrics(metrics)]
    options = with_conventions(dataset, names, options)
    excluded = not_headline(reward)
    has_hr = any(item.hr is not None for item in dataset.items)
    headline = pick_headline(names, excluded, headline, has_hr=has_hr)
    settings = _settings(restorer, dataset, names, n, seed, reward, options)
    settings |= {"headline": headline, "not_headline": excluded}
    with locked(None if out is None else Path(out)):
        folder = RecordFolder(out, settings)
        seeds = settings["seeds"]
        judge = ImageMeasurer(names, options, reward, Path(out) / "images" if out is not None and keep_images else None)
        records: Iterable[ImageRecord] = _run(restorer, dataset, seeds, judge, folder)
        failed = 0
        for record in watch(records, len(dataset.items) * (n + 1 + has_hr)) if watch else records:
            failed += record.error is not None and record.lq_sha256 != NOT_LOADED
            if failed > MAX_FAILED_SHARE * n * len(dataset.items):
                raise RuntimeError(f"{failed} of {n * len(dataset.items)} candidates failed, the last: {record.error}")
        evaluation = Evaluation(settings=settings, records=_of_seeds(folder.records.values(), seeds))
        if out is not None:
            write_json(Path(out) / REPORT, evaluation.report())
    return evaluation


def _of_seeds(records: Iterable[ImageRecord], seeds: Sequence[int]) -> tuple[ImageRecord, ...]:
    """Return the records of a run: its folder may hold candidates of an earlier, larger one."""
    return tuple(record for record in records if record.seed in {None, *seeds})


def _run(
    restorer: Restoring, dataset: Dataset, seeds: Sequence[int], judge: ImageMeasurer, folder: RecordFolder
) -> Iterator[ImageRecord]:
    """Yield each record, old or new, in the order of the dataset: bicubic, ground truth, candidates."""
    for index, item in enumerate(dataset.items):
        keys = [(item.name, "bicubic", None), *([(item.name, "hr", None)] if item.hr is not None else []),
                *((item.name, "candidate", seed) for seed in seeds)]  # fmt: skip
        done = [key for key in keys if folder.done(key) and judge.has_kept(*key)]
        yield from (folder.records[key] for key in done)
        missing = [key for key in keys if key not in done]
        if not missing:
            continue
        try:
            pair = dataset.load(index)
        except (ValueError, OSError) as error:  # ImageError is a ValueError: one bad file does not end the run
            reason = " ".join(str(error).split())
            for image, row, seed in missing:
                record = ImageRecord(
                    image=image, row=row, seed=seed, lq_sha256=NOT_LOADED, hr_sha256=None, error=reason
                )
                folder.add(record)
                yield record
            continue
        rows = {row: key for key in missing if (row := key[1]) != "candidate"}
        if "bicubic" in rows:
            folder.add(judge(bicubic(pair.lq, dataset.scale), pair, item.name, "bicubic"))
        if "hr" in rows and pair.hr is not None:
            folder.add(judge(pair.hr, pair, item.name, "hr"))
        yield from (folder.records[key] for key in rows.values())
        due = [seed for _, _, seed in missing if seed is not None]
        for seed, restored, cost in restore_seeds(restorer, pair.lq, dataset.scale, due):
            record = judge(restored, pair, item.name, "candidate", seed, cost)
            folder.add(record)
            yield record


def _settings(
    restorer: Restoring,
    dataset: Dataset,
    names: list[str],
    n: int,
    seed: int,
    reward: Reward | None,
    options: MetricOptions,
) -> dict[str, Any]:
    return {
        "format": 1,
        "restorer": identity_of(restorer) | {"scale": restorer.scale},
        "dataset": {
            "name": dataset.name, "fingerprint": dataset.fingerprint, "images": len(dataset.items),
            "scale": dataset.scale, "seed": dataset.seed,
            "degradation": None if dataset.degradation is None else asdict(dataset.degradation),
        },
        "metrics": {metric.name: metric.version() for metric in find_metrics(names)},
        "notes": _notes(dataset),
        "conventions": conventions(names, options),
        "options": {name: _hashed(name, values) for name, values in options.items()},
        "n": n,
        "seed": seed,
        "seeds": [candidate_seed(seed, k) for k in range(n)],
        "reward": None if reward is None else identity_of(reward),
        "versions": versions(*LIBRARIES),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
    }  # fmt: skip


def with_conventions(
    dataset: Dataset, names: Sequence[str], options: MetricOptions | None = None
) -> dict[str, dict[str, Any]]:
    """Return the options with what they leave open: PSNR's and SSIM's border and channel, LR-consistency's blur.

    The border is the dataset's, by default its scale; the channel is luma.
    """
    border = dataset.scale if dataset.border_px is None else dataset.border_px
    usual: dict[str, dict[str, Any]] = {
        name: {"border_px": border, "channel": "y"} for name in names if METRICS[name].options == BOTH
    }
    if dataset.is_clean:
        usual["lr_consistency"] = {"blur_px": 0.0}
    given = options or {}
    return {name: {**usual.get(name, {}), **given.get(name, {})} for name in {**usual, **given}}


def _notes(dataset: Dataset) -> list[str]:
    files = [path for item in dataset.items for path in (item.lq, item.hr) if path is not None]
    return [f"{path.name}: {note}" for path in files for note in conversions(path)]


def _hashed(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if name != "lpips" or "weights" not in options:
        return dict(options)
    try:
        return {**options, "weights": backbone_hash(options["weights"])}
    except MetricUnavailable:
        return {**options, "weights": None}


def _check(
    restorer: Restoring, dataset: Dataset, n: int, reward: Reward | None, keep_images: bool, out: str | Path | None
) -> None:
    if n < 1:
        raise ValueError(f"n={n}: must be at least 1")
    if restorer.scale not in (None, dataset.scale):
        raise ValueError(f"restorer {restorer.name!r} is x{restorer.scale}, dataset {dataset.name!r} x{dataset.scale}")
    if reward is not None and "prompts" in reward.needs:
        raise ValueError(f"reward {reward.name!r} needs prompts, and a dataset has none")
    if reward is not None:
        require_pointwise(reward, "evaluation averages values over images")
    if keep_images and out is None:
        raise ValueError("keep_images needs out=, a folder to keep them in")
