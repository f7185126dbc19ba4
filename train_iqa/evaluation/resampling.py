"""What an evaluation resamples: references where they are known, else images; and pairs of them.

Twenty distortions of one photograph are not twenty photographs; an interval over images would be far too narrow.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from zoomiqa_reward.bootstrap import Interval, percentile_interval

MAX_PAIR_GROUPS = 1000
"""Above it groups are thrown together at random for the intervals of pair agreement: its table is square."""


def group_numbers(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return 0, 1, ... for the names, equal numbers for equal names, in order of first appearance.

    >>> group_numbers(["a", "b", "a"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def bootstrap_share(
    right: NDArray[np.float64], counted: NDArray[np.float64], *, draws: int = 1000, seed: int = 0
) -> Interval | None:
    """Return the 95 % interval of sum(right) / sum(counted) over resampled groups, None with fewer than 2 groups.

    Both are [groups], or [groups, groups] as `agreement.pair_tables` gives them: a group drawn w times then meets
    itself and every other one w times as often, which is what pairing all images of the resample would count.
    """
    count = len(counted)
    if count < 2 or draws == 0:
        return None
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        sums = [weights @ table @ weights if table.ndim == 2 else weights @ table for table in (right, counted)]
        values.append(sums[0] / sums[1] if sums[1] else float("nan"))
    return percentile_interval(values)


def merge_groups(groups: NDArray[np.int64], limit: int = MAX_PAIR_GROUPS, seed: int = 0) -> NDArray[np.int64]:
    """Return the groups thrown together at random into at most `limit` (groups themselves where they are as few)."""
    count = int(groups.max()) + 1 if len(groups) else 0
    if count <= limit:
        return groups
    return np.random.default_rng(seed).permutation(count)[groups] % limit
