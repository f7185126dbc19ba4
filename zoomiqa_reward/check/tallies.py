"""Statistics of short lists of scores, and the measures that decide a check.

NaN stands for "not measured" and is left out.

Each deciding measure is a ratio of two sums over photographs, or made of such ratios. So its interval over photographs
comes from resampling the sums, by the same lines as the number itself, and no image is scored again.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from zoomiqa_reward.check.ladders import DETAIL
from zoomiqa_reward.check.probes import Answers
from zoomiqa_reward.runs.bootstrap import Interval, bootstrap


def pair_scores(values: Sequence[float], *, least_apart: int = 1, most_apart: int | None = None) -> list[float]:
    """Return for each pair of a list that should fall: 1 if it does, 0.5 for a tie, 0 if it rises.

    Pairs are those whose places differ by `least_apart` to `most_apart`; a pair with NaN gives nothing.

    >>> pair_scores([3.0, 2.0, 2.0])
    [1.0, 1.0, 0.5]
    """
    last = len(values) if most_apart is None else most_apart
    results = []
    for first, better in enumerate(values):
        for worse in values[first + least_apart : first + last + 1]:
            if math.isfinite(better) and math.isfinite(worse):
                results.append(1.0 if better > worse else 0.5 if better == worse else 0.0)
    return results


def mean(values: Iterable[float]) -> float:
    """Return the mean of what was measured, NaN if nothing was.

    >>> mean([1.0, math.nan, 3.0]), mean([])
    (2.0, nan)
    """
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def deviation(values: Sequence[float], *, unbiased: bool) -> float:
    """Return the standard deviation of what was measured (divided by n - 1 if unbiased); NaN below two values.

    >>> deviation([1.0, 3.0], unbiased=False)
    1.0
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return math.nan
    centre = mean(finite)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in finite) / (len(finite) - unbiased))


def root_mean_square(values: Iterable[float]) -> float:
    """Return the root of the mean square of what was measured, NaN if nothing was."""
    return math.sqrt(square) if math.isfinite(square := mean(value * value for value in values)) else math.nan


def ratio(numerator: float, spread: float) -> float:
    """Return part / spread: infinite where there is no spread, since nothing small compares with nothing.

    >>> ratio(0.5, 2.0), ratio(0.0, 0.0), ratio(math.nan, 1.0)
    (0.25, inf, nan)
    """
    if math.isnan(numerator) or math.isnan(spread):
        return math.nan
    return numerator / spread if spread > 0 else math.inf


FAR_APART = 3
"""Places in a ladder of five from which a pair counts as far apart: what DPO pairs, best against worst."""

Table = dict[str, NDArray[np.float64]]
"""By name: [photographs, 2], the sum of what was measured and how many that were."""


def table_of(answers: Sequence[Answers]) -> Table:
    """Return the sums of each photograph."""
    rows = [dict(_tallies(answer)) for answer in answers]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def decisive(table: Table, weakest: str | None, weakest_worsened: str | None) -> dict[str, float]:
    """Return every measure that decides, by its name in `Measures`; NaN where nothing was measured.

    weakest, weakest_worsened: the ladders that `weakest_in_order` and `weakest_worsened_in_order` are about.
    """
    means = {name: _mean(sums) for name, sums in table.items()}
    spread, repeat = _root(means["variance"]), _root(means["repeat_variance"])
    return {
        "measured_share": means["measured"],
        "pairs_in_order": means["pairs"],
        "far_pairs_in_order": means["far pairs"],
        "detail_in_order": means[f"ladder {DETAIL}"],
        "weakest_in_order": means.get(f"ladder {weakest}", math.nan),
        "weakest_worsened_in_order": means.get(f"worsened {weakest_worsened}", math.nan),
        "contentless_rated": means["rated"],
        "degenerate_preferred": means["preferred"],
        "spread": spread,
        "repeat_deviation": repeat,
        "noise_to_signal": ratio(repeat, spread),
        "rise_to_spread": ratio(means["rise"], spread),
        "gradient_share": means["gradient"],
    }


def intervals(table: Table, weakest: str | None, weakest_worsened: str | None) -> dict[str, Interval]:
    """Return the 95 % interval of each of them over photographs, all from the same draws; none with one photograph."""
    count = len(table["measured"])
    return bootstrap(
        lambda index: decisive({name: sums[index] for name, sums in table.items()}, weakest, weakest_worsened),
        np.arange(count),
    )


def preference(value: float, honest: float) -> float:
    """Return 1 where an emptied image would be chosen before the honest candidate, 0 where not, 0.5 for a tie.

    What has no value is chosen last; where neither has one there is nothing to choose.

    >>> preference(math.nan, 1.0), preference(2.0, math.nan), preference(1.0, 1.0), preference(math.nan, math.nan)
    (0.0, 1.0, 0.5, 0.0)
    """
    if math.isnan(value):
        return 0.0
    return 0.5 if value == honest else float(not value < honest)


def _tallies(answer: Answers) -> Iterable[tuple[str, tuple[float, int]]]:
    for kind, row in answer.ladders.items():
        yield f"ladder {kind}", _sums(pair_scores(row))
    for kind, row in answer.worsened.items():
        yield f"worsened {kind}", _sums(pair_scores(row))
    yield "pairs", _sums(score for row in answer.ladders.values() for score in pair_scores(row))
    yield (
        "far pairs",
        _sums(score for row in answer.ladders.values() for score in pair_scores(row, least_apart=FAR_APART)),
    )
    yield "variance", _sums([deviation(answer.ladders[DETAIL], unbiased=False) ** 2])
    yield "repeat_variance", _sums(deviation(row, unbiased=True) ** 2 for row in answer.repeats)
    yield "rise", _sums([answer.ascent.rise])
    yield "gradient", (float(answer.ascent.has_gradient), 1)
    yield "measured", (answer.num_asked - answer.num_failed, answer.num_asked)
    yield (
        "rated",
        _sums(
            float(not math.isnan(value))
            for kind, row in answer.empty.items()
            for value, is_empty in zip(row, answer.contentless[kind], strict=True)
            if is_empty
        ),
    )
    yield "preferred", _sums(preference(value, row[0]) for row in answer.empty.values() for value in row[1:])


def _sums(values: Iterable[float]) -> tuple[float, int]:
    measured = [value for value in values if math.isfinite(value)]
    return math.fsum(measured), len(measured)


def _mean(sums: NDArray[np.float64]) -> float:
    total, count = sums.sum(axis=0)
    return float(total / count) if count else math.nan


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else math.nan
