"""Which row comes when: several data sets mixed by weight, each gone through in shuffled epochs.

The whole order is a function of sizes, weights and the seed, so a resumed run and any number of processes see the
same rows at the same steps.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def plan_rows(sizes: Sequence[int], weights: Sequence[float], total: int, seed: int) -> NDArray[np.int64]:
    """Return int64 [total, 2]: (data set, row) of each draw.

    A data set's share is proportional to size x weight: at weight 1 every row comes equally often, at weight 2 twice
    as often. After every draw each data set has had its share to within one row; none of its rows comes again before
    all have come. Raises ValueError for an empty data set, negative weights or no weight at all.

    >>> plan_rows([2, 4], [1.0, 0.5], 4, seed=0)[:, 0].tolist()
    [0, 1, 0, 1]
    """
    if len(sizes) != len(weights) or not sizes:
        raise ValueError(f"{len(sizes)} data sets and {len(weights)} weights: give one weight each")
    wanted = np.asarray(sizes, dtype=np.float64) * np.asarray(weights, dtype=np.float64)
    if min(sizes) < 1 or (wanted < 0).any() or wanted.sum() == 0:
        raise ValueError(f"sizes {list(sizes)} and weights {list(weights)}: sizes >= 1, weights >= 0, not all 0")
    shares = wanted / wanted.sum()
    drawn = np.zeros(len(sizes), dtype=np.int64)
    plan = np.empty((total, 2), dtype=np.int64)
    orders: dict[int, NDArray[np.int64]] = {}
    for place in range(total):
        source = int(np.argmax(np.round(shares * (place + 1) - drawn, 9)))  # rounded: equal debts go by order
        epoch, index = divmod(int(drawn[source]), sizes[source])
        if index == 0:
            orders[source] = np.random.default_rng([seed, source, epoch]).permutation(sizes[source])
        plan[place] = source, orders[source][index]
        drawn[source] += 1
    return plan
