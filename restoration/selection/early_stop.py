"""Stop drawing candidates when one more is not expected to raise the best score by its cost.

The rule. Scores of one source are taken as independent draws from a normal distribution of unknown mean and
variance. After m of them, with mean a and standard deviation s (divisor m - 1), the next score X has Student's t
distribution with v = m - 1 degrees of freedom, centre a and scale c = s sqrt(1 + 1/m). With b the best score so far
and z = (a - b) / c, its expected improvement is

    E[max(X - b, 0)] = (a - b) T_v(z) + c (v + z^2) / (v - 1) t_v(z)

where T_v and t_v are the distribution function and density. Drawing stops when this is below `min_gain`. For a known
distribution and a cost of `min_gain` a draw that rule is optimal: later draws cannot pay where the next one does not.
Sources: optimal search with recall, Weitzman 1979 and DeGroot 1970, chapter 13; the predictive distribution: any text
on Bayesian statistics, with the prior 1/variance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from zoomiqa_reward.whole_numbers import whole_numbers


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Stopping rule, in the units of the reward."""

    min_gain: float = 0.01
    """Smallest expected gain of the best score that is worth one more candidate."""
    min_draws: int = 4
    """Measured candidates per source before the rule may stop; at least 3, because the formula needs them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_draws", whole_numbers(min_draws=self.min_draws)[0])
        if not self.min_gain > 0 or not math.isfinite(self.min_gain):
            raise ValueError(f"min_gain={self.min_gain}: must be above 0, in the reward's units")
        if self.min_draws < 3:
            raise ValueError(f"min_draws={self.min_draws}: must be at least 3")

    def says_stop(self, scores_by_source: Sequence[Sequence[float]]) -> bool:
        """Return whether no source is expected to raise the best score of all by `min_gain`.

        One sequence of measured scores per source (restorer and prompt). If one is shorter than `min_draws`, drawing
        continues.
        """
        if not scores_by_source or any(len(scores) < self.min_draws for scores in scores_by_source):
            return False
        best = max(max(scores) for scores in scores_by_source)
        if best == math.inf:
            return True  # nothing is better
        return all(expected_improvement(scores, best) < self.min_gain for scores in scores_by_source)


def expected_improvement(scores: Sequence[float], best: float) -> float:
    """Return the expected gain over `best` of one more draw from the source of these scores.

    If all scores are equal, the result is 0 unless they lie above `best`.
    Raises ValueError for fewer than 3 scores.

    >>> round(expected_improvement([2.0, 3.0, 4.0], best=4.0), 4)
    0.4574
    """
    count = len(scores)
    if count < 3:
        raise ValueError(f"{count} scores: at least 3 are needed")
    mean = math.fsum(scores) / count
    spread = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (count - 1))
    scale = spread * math.sqrt(1 + 1 / count)
    if scale == 0:
        return max(mean - best, 0.0)
    freedom = count - 1
    z = (mean - best) / scale
    tail = scale * (freedom + z * z) / (freedom - 1) * stats.t.pdf(z, freedom)
    return max(float((mean - best) * stats.t.cdf(z, freedom) + tail), 0.0)
