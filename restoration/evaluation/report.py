"""From an evaluation's records to its numbers: rows, choice, cost, problems; and who may not be the judge.

All rows of a metric are means over the same images: those whose candidates were all measured, and where bicubic, the
ground truth and the reward have a value too, as far as they have any. The others are left out **by name**.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from restoration.evaluation import statistics
from restoration.evaluation.records import NO_REFERENCE, NOT_LOADED, ImageRecord
from restoration.evaluation.statistics import Array, Interval
from restoration.metrics.conditioned import ConditionedReward
from restoration.metrics.registry import METRICS
from zoomiqa_reward.rewards.base import Reward, label_metrics, labels_of, walk
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.rewards.normalise import with_finite_best
from zoomiqa_reward.rewards.restorations import PREFIX
from zoomiqa_reward.runs.json_lines import plain

POOL_MARGIN_DB = 1.0
"""A pool whose mean PSNR-Y lies further below bicubic's makes choosing easy, by a bad model."""


def not_headline(reward: Reward | None) -> dict[str, str]:
    """Return the metrics that may not judge this reward, each with why: it was the reward, or made its labels.

    Looks at every part of the reward (`rewards.base.walk`), at its name and its labels.
    """
    reasons: dict[str, str] = {}
    for part in () if reward is None else walk(reward):
        for label in labels_of(part):
            if isinstance(part, MetricReward) and label not in {*METRICS, *label_metrics(part)}:
                continue  # a function's name that is no metric's
            reasons[label] = (
                f"it is in {part.name}"
                if isinstance(part, ConditionedReward | MetricReward)
                else f"the labels that {part.name} was trained on were made with it"
            )
        if getattr(part, "name", None) in METRICS:
            reasons[part.name] = "it was the reward, or in it"
    return reasons


def pick_headline(
    names: Sequence[str], excluded: Mapping[str, str], headline: str | None = None, *, has_hr: bool = True
) -> str:
    """Return the metric that judges: `headline` if it may, else the first that may, those with a reference first.

    Raises ValueError for one that may not, that is not measured, or where none is left.
    """
    if headline is not None:
        if headline not in names:
            raise ValueError(f"headline {headline!r}: must be among the metrics measured: {', '.join(names)}")
        if headline in excluded:
            raise ValueError(f"headline {headline!r} refused: {excluded[headline]}; take a held-out metric")
        if METRICS[headline].needs == "hr" and not has_hr:
            raise ValueError(f"headline {headline!r} needs a ground truth, and the dataset has none")
        return headline
    allowed = [name for name in names if name not in excluded and (has_hr or METRICS[name].needs != "hr")]
    if not allowed:
        reasons = "; ".join(f"{name}: {why}" for name, why in excluded.items() if name in names)
        raise ValueError(
            f"no metric of {', '.join(names) or '(none)'} may judge ({reasons or 'no ground truth'}); "
            "measure another one too"
        )
    return next((name for name in allowed if METRICS[name].needs == "hr"), allowed[0])


def report(settings: dict[str, Any], records: Sequence[ImageRecord]) -> dict[str, Any]:
    """Return the numbers as JSON: `rows` (bicubic, hr, worst, mean, best, selected), `g_std`, `choice`, `cost`,
    `problems`, `settings`.

    Each number is {"value", "low", "high", "images"}: a mean over images with its 95 % bootstrap interval, in the
    metric's own unit, null where there is none. `choice` holds captured gain, regret and within-LR SRCC of the reward
    under each metric, `may_judge` false where that metric was the reward or made its labels.
    """
    names, n = list(settings["metrics"]), settings["n"]
    pools = _Pools(records, settings["seeds"])
    rows: dict[str, dict[str, Any]] = {row: {} for row in ("hr", "bicubic", "worst", "mean", "best")}
    spread, choice, left_out = {}, {}, {}
    rewarded = settings["reward"] is not None
    if rewarded:
        rows["selected"] = {}
    for name in [*names, *(["reward"] if rewarded else [])]:
        sign = 1.0 if name == "reward" or METRICS[name].higher_is_better else -1.0
        get = _getter(name, sign)
        singles = {row: _finite_values(pools.single(row), get) for row in ("hr", "bicubic")}
        images, scores = pools.table(get)
        choosable = pools.table(get, _liking) if rewarded else ([], scores, scores)
        measured = [row_images for row_images in map(set, (images, *singles.values(), choosable[0])) if row_images]
        common = set.intersection(*measured) if measured else set()
        for row, values in singles.items():
            interval = statistics.mean_interval([value for image, value in values.items() if image in common])
            rows[row][name] = _number(interval, sign)
        scores = _rows_of(common, images, scores)
        for row, interval in statistics.best_mean_worst(scores).items():
            rows[row][name] = _number(interval, sign)
        spread[name] = _number(statistics.group_std(scores))
        if missing := [image for image in pools.names if image not in common or image not in images]:
            left_out[name] = missing
        if rewarded:
            scores, likes = (_rows_of(common, choosable[0], table) for table in choosable[1:])
            rows["selected"][name] = _number(statistics.mean_interval(statistics.selected(scores, likes)), sign)
            if name != "reward":
                choice[name] = _choice(scores, likes) | {"may_judge": name not in settings["not_headline"]}
    gap = _pool_gap(rows)
    return {
        "headline": settings["headline"], "images": len(pools.names), "n": n,
        "rows": rows, "g_std": spread, "choice": choice, "pool_above_bicubic_db": gap,
        "is_pool_fair": None if gap is None else gap >= -POOL_MARGIN_DB,
        "cost": _cost(records), "problems": _problems(records, pools, left_out), "settings": settings,
    }  # fmt: skip


def compare(
    first: tuple[dict[str, Any], Sequence[ImageRecord]],
    second: tuple[dict[str, Any], Sequence[ImageRecord]],
    metric: str,
) -> dict[str, Any]:
    """Return how two evaluations' `mean` and `selected` candidates differ, paired by image: first - second, oriented.

    Each side is (settings, records); `mean` and `selected` hold the interval, the p of the sign-flip test and
    of Wilcoxon's. Raises ValueError where the metric may not judge one of them, or was not measured alike (border,
    channel, options, version), or where an image's pixels are not the same.
    """
    for settings, _ in (first, second):
        pick_headline(list(settings["metrics"]), settings["not_headline"], metric)
    measured = [_measured_how(settings, metric) for settings, _ in (first, second)]
    if measured[0] != measured[1]:
        raise ValueError(f"{metric} was measured as {measured[0]} and as {measured[1]}; evaluate both alike")
    sides = [_Pools(records, s["seeds"]) for s, records in (first, second)]
    common = [name for name in sides[0].names if name in sides[1].names]
    if not common:
        raise ValueError("the two evaluations have no image in common")
    for name in common:
        if sides[0].inputs[name] != sides[1].inputs[name]:
            raise ValueError(f"{name}: the two evaluations saw different pixels; evaluate both on one dataset")
    get = _getter(metric, 1.0 if METRICS[metric].higher_is_better else -1.0)
    result: dict[str, Any] = {"metric": metric, "n": [first[0]["n"], second[0]["n"]]}
    result["restorers"] = [settings["restorer"]["name"] for settings, _ in (first, second)]
    results: dict[str, list[dict[str, float]]] = {"mean": [], "selected": []}
    for pools, (settings, _) in zip(sides, (first, second), strict=True):
        images, scores = pools.table(get)
        results["mean"].append(dict(zip(images, scores.mean(axis=1) if images else [], strict=True)))
        if settings["reward"] is not None:
            images, scores, likes = pools.table(get, _liking)
            results["selected"].append(dict(zip(images, statistics.selected(scores, likes), strict=True)))
    for row, values in results.items():
        if len(values) == 2:
            images = [name for name in common if name in values[0] and name in values[1]]
            test = statistics.paired_test([values[0][k] for k in images], [values[1][k] for k in images])
            result[row] = {
                "difference": _number(test.difference), "p_sign_flip": plain(test.p_sign_flip),
                "p_wilcoxon": plain(test.p_wilcoxon),
            }  # fmt: skip
    return result


def _measured_how(settings: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return what a metric's value depends on beside the images."""
    return {
        **settings["conventions"].get(metric, {}), **settings["options"].get(metric, {}),
        "version": settings["metrics"][metric],
    }  # fmt: skip


class _Pools:
    """Records by image: the candidates in the order of their seeds, and the single rows."""

    def __init__(self, records: Sequence[ImageRecord], seeds: Sequence[int]) -> None:
        self.names = list(dict.fromkeys(record.image for record in records))
        self.inputs = {record.image: (record.lq_sha256, record.hr_sha256) for record in records}
        self._records = {record.key: record for record in records}
        self._seeds = seeds

    def single(self, row: str) -> dict[str, ImageRecord]:
        return {name: self._records[name, row, None] for name in self.names if (name, row, None) in self._records}

    def candidates(self, name: str) -> list[ImageRecord]:
        keys = [(name, "candidate", seed) for seed in self._seeds]
        return [self._records[key] for key in keys if key in self._records]

    def table(self, *getters: Callable[[ImageRecord], float]) -> tuple[Any, ...]:
        """Return the images whose candidates are all there under every getter, and an (images, n) array for each.

        A candidate of -inf is there: it becomes 1 below the least of its image. An image without any other is left out.
        An infinitely good one stands above the best finite one of its image.
        """
        kept, rows = [], []
        for name in self.names:
            table = self.candidates(name)
            values = np.array([[get(record) for record in table] for get in getters], dtype=np.float64)
            for row in values:
                row[row == -math.inf] = min(row[row > -math.inf], default=math.nan) - 1
                row[:] = with_finite_best(torch.from_numpy(row)).numpy()
            if len(table) == len(self._seeds) and np.isfinite(values).all():
                kept.append(name)
                rows.append(values)
        stacked = np.array(rows).reshape(len(rows), len(getters), len(self._seeds))
        return kept, *(stacked[:, k] for k in range(len(getters)))


def _finite_values(records: Mapping[str, ImageRecord], get: Callable[[ImageRecord], float]) -> dict[str, float]:
    """Return image -> value, of the images that have one."""
    return {image: value for image, record in records.items() if math.isfinite(value := get(record))}


def _rows_of(common: Collection[str], images: Sequence[str], table: Array) -> Array:
    """Return the rows of the common images, in the table's order."""
    return table[[k for k, image in enumerate(images) if image in common]]


def _getter(name: str, sign: float) -> Callable[[ImageRecord], float]:
    if name == "reward":
        return lambda record: sign * record.reward
    return lambda record: sign * record.metrics.get(name, math.nan)


def _liking(record: ImageRecord) -> float:
    """Return what the choice goes by: the reward; -inf for a candidate that lost its content, which is never chosen."""
    return -math.inf if (record.reward_error or "").startswith(PREFIX) else record.reward


def _choice(scores: Array, likes: Array) -> dict[str, Any]:
    measures = (statistics.captured_gain, statistics.regret, statistics.within_srcc)
    return {measure.__name__: _number(measure(scores, likes)) for measure in measures}


def _pool_gap(rows: dict[str, dict[str, Any]]) -> float | None:
    values = [rows[row].get("psnr_y", {}).get("value") for row in ("mean", "bicubic")]
    return None if None in values else values[0] - values[1]


def _cost(records: Sequence[ImageRecord]) -> dict[str, Any]:
    seconds = [record.seconds for record in records if math.isfinite(record.seconds)]
    peaks = [record.peak_bytes for record in records if record.peak_bytes is not None]
    return {
        "seconds_per_candidate": sum(seconds) / len(seconds) if seconds else None,
        "seconds": sum(seconds), "peak_bytes": max(peaks, default=None),
    }  # fmt: skip


def _problems(records: Sequence[ImageRecord], pools: _Pools, left_out: dict[str, list[str]]) -> dict[str, Any]:
    failed = [
        {"image": r.image, "seed": r.seed, "error": r.error}
        for r in records
        if r.error is not None and not (r.lq_sha256 == NOT_LOADED and r.row != "bicubic")  # once per image
    ]
    unmeasured: dict[str, Counter[str]] = {}
    for record in records:
        reasons = dict(record.reasons) if record.error is None else {}
        if record.row == "hr":  # it has no reference but itself
            reasons = {name: why for name, why in reasons.items() if METRICS[name].needs != "hr"}
        if record.reward_error is not None and (record.row, record.reward_error) != ("hr", NO_REFERENCE):
            reasons["reward"] = record.reward_error
        for name, why in reasons.items():
            unmeasured.setdefault(name, Counter())[why] += 1
    hashes = {name: [r.sha256 for r in pools.candidates(name) if r.sha256] for name in pools.names}
    same = [name for name, names in hashes.items() if len(names) > 1 and len(set(names)) == 1]
    return {
        "failed": failed, "unmeasured": {name: dict(names) for name, names in unmeasured.items()},
        "left_out": left_out, "identical_candidates": same,
    }  # fmt: skip


def _number(interval: Interval, sign: float = 1.0) -> dict[str, Any]:
    low, high = (interval.low, interval.high) if sign > 0 else (-interval.high, -interval.low)
    value = interval.value if sign > 0 else -interval.value
    return {"value": plain(value), "low": plain(low), "high": plain(high), "images": interval.num_images}
