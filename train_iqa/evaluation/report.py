"""From lines to the report: every measure of one data set, and what they have in common."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_iqa.data import LabelledImage
from train_iqa.data.splits import group_of
from train_iqa.evaluation.calibration import calibrate
from train_iqa.evaluation.correlations import correlations, pair_tables, raw_correlations, share
from train_iqa.evaluation.grounding import grounding
from train_iqa.evaluation.measuring import Key
from train_iqa.evaluation.robustness import gain_over_sampling, rating_changes, spread_of_calls
from zoomiqa_reward.runs.bootstrap import bootstrap, bootstrap_share, group_numbers, merge_groups
from zoomiqa_reward.runs.json_lines import as_float

PAIR_MARGINS = (0.0, 0.5)
"""Of MOS: all pairs that people rate differently, and those that they rate clearly so."""

Lines = Mapping[Key, Mapping[str, Any]]


def report_of(
    images: Sequence[LabelledImage], lines: Lines, *, mode: str, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return all measures of one data set's images; each must have its line.

    Failed images are counted and left out of everything else. Intervals are 95 %, over references where known.
    """
    rows = [lines[(image.dataset, image.id)] for image in images]
    valid = [bool(line["valid"]) for line in rows]
    ratings = np.array([as_float(line["rating"]) for line in rows])
    mos = np.array([image.mos for image in images])
    kept = np.flatnonzero(valid)
    groups = group_numbers([group_of(images[int(index)]) for index in kept])
    return {
        "images": len(images),
        "references": len(set(groups.tolist())) if any(image.reference for image in images) else None,
        "failed": len(images) - len(kept),
        "failed_share": 1 - len(kept) / len(images),
        "errors": _counts([line["error"] for line in rows if not line["valid"]]),
        "warned_share": float(np.mean([line["warning"] is not None for line in rows])),
        "zoom_rate": _zoom_rate(rows) if mode == "reason" else None,
        "rating_mean": float(ratings[kept].mean()) if len(kept) else math.nan,
        "rating_std": float(ratings[kept].std(ddof=1)) if len(kept) > 1 else math.nan,
        "seconds_per_image": float(np.mean([line["seconds"] for line in rows if "probe" not in line] or [math.nan])),
        "agreement": _agreement(ratings[kept], mos[kept], groups, draws, seed),
        "pairs": _pairs(ratings[kept], mos[kept], groups, draws, seed),
        "std_calibration": _calibration(rows, ratings, mos),
        "grounding": _grounding(images, rows),
        **_probes(rows, ratings, mos),
    }


def compare(lines: Lines, others: Lines) -> dict[str, float]:
    """Return how two runs' ratings agree over the images that both could rate (another mode, another checkpoint)."""
    keys = [key for key in lines if key in others and lines[key]["valid"] and others[key]["valid"]]
    ratings = [[float(run[key]["rating"]) for key in keys] for run in (lines, others)]
    plcc, srcc = raw_correlations(*ratings) if len(keys) >= 2 else (math.nan, math.nan)
    change = float(np.mean(np.abs(np.subtract(ratings[0], ratings[1])))) if keys else math.nan
    return {"images": len(keys), "plcc": plcc, "srcc": srcc, "abs_difference_mean": change}


def _agreement(
    ratings: NDArray[np.float64], mos: NDArray[np.float64], groups: NDArray[np.int64], draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    values = correlations(ratings, mos)
    intervals = bootstrap(lambda index: correlations(ratings[index], mos[index]), groups, draws=draws, seed=seed)
    return {name: {"value": value, "interval_95": intervals.get(name)} for name, value in values.items()}


def _pairs(
    ratings: NDArray[np.float64], mos: NDArray[np.float64], groups: NDArray[np.int64], draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return pair agreement over all pairs, and over those of one reference, for each margin."""
    pairs: dict[str, dict[str, Any]] = {}
    merged = merge_groups(groups, seed=seed)
    members = [np.flatnonzero(groups == number) for number in range(int(groups.max(initial=-1)) + 1)]
    for margin in PAIR_MARGINS:
        right, counted = pair_tables(ratings, mos, merged, margin=margin)
        inside = [
            [float(t.sum()) for t in pair_tables(ratings[m], mos[m], np.zeros(len(m), dtype=np.int64), margin=margin)]
            for m in members
            if len(m) > 1
        ]
        inner = np.array(inside).reshape(-1, 2).T
        for name, good, all_pairs in (("all", right, counted), ("within_reference", inner[0], inner[1])):
            pairs[f"{name}_apart_{margin:g}"] = {
                "pairs": int(all_pairs.sum() / 2),
                "value": share(good.sum(), all_pairs.sum()),
                "interval_95": bootstrap_share(good, all_pairs, draws=draws, seed=seed),
            }
    return pairs


def _zoom_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """Share of the images with an answer that asked for round 2, readable in the end or not."""
    answered = [line["rounds"] for line in rows if line["rounds"] > 0]
    return float(np.mean([rounds > 1 for rounds in answered])) if answered else math.nan


def _calibration(
    rows: Sequence[Mapping[str, Any]], ratings: NDArray[np.float64], mos: NDArray[np.float64]
) -> dict[str, Any] | None:
    """Calibration of the ratings' own std, else of the sampled answers' mean and std, None where neither is there."""
    stds = np.array([as_float(line["std"]) for line in rows])
    if np.isfinite(stds).any():
        return {"of": "rating"} | asdict(calibrate(ratings, stds, mos))
    sampled = [[as_float(value) for value in line.get("probe", {}).get("sampled", [])] for line in rows]
    chosen = [k for k, values in enumerate(sampled) if len(values) > 1 and np.isfinite(values).all()]
    if not chosen:
        return None
    table = np.array([sampled[k] for k in chosen])
    return {"of": "samples"} | asdict(calibrate(table.mean(axis=1), table.std(axis=1, ddof=1), mos[chosen]))


def _grounding(images: Sequence[LabelledImage], rows: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """None where no region is known or the mode names no boxes."""
    pairs = [
        (None if line["bbox"] is None else tuple(line["bbox"]), image.boxes)
        for image, line in zip(images, rows, strict=True)
        if line["rounds"] > 0
    ]
    if not any(truth is not None for _, truth in pairs):
        return None
    return grounding([named for named, _ in pairs], [truth for _, truth in pairs])


def _probes(
    rows: Sequence[Mapping[str, Any]], ratings: NDArray[np.float64], mos: NDArray[np.float64]
) -> dict[str, Any]:
    places = [k for k, line in enumerate(rows) if "probe" in line]
    probes = [rows[k]["probe"] for k in places]
    if not probes:
        return {"repeats": None, "sampling": None, "robustness": None}
    repeated, sampled = ([[as_float(v) for v in probe[key]] for probe in probes] for key in ("repeated", "sampled"))
    perturbed = [{name: as_float(value) for name, value in probe["perturbed"].items()} for probe in probes]
    chosen = [float(ratings[k]) for k in places]
    sampling = None
    if sampled[0]:
        sampling = spread_of_calls(sampled) | gain_over_sampling(chosen, sampled, [float(mos[k]) for k in places])
        sampling["failed_share"] = float(np.mean(~np.isfinite(np.array(sampled))))
    return {
        "repeats": spread_of_calls(repeated),
        "sampling": sampling,
        "robustness": rating_changes(chosen, perturbed),
    }


def _counts(errors: Sequence[str | None]) -> dict[str, int]:
    """Count errors by their beginning: the rest of the message quotes the answer."""
    counts: dict[str, int] = {}
    for error in errors:
        kind = (error or "no reason").split(" in ")[0].split("; ")[0][:80]
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
