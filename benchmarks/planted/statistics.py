"""How good a filter of texts is on planted cases: precision and recall of its rejections, with intervals.

A case is a text of which it is known, from the record of how it was made, whether a false claim was planted in it. Used
for the two filters of the curation (visual reliance, hint consistency), each on its own cases and both together.
"""

import math
from collections.abc import Sequence
from typing import Any

from zoomiqa_reward.runs.bootstrap import wilson_interval


def filter_statistics(
    is_planted: Sequence[bool], is_rejected: Sequence[bool], kinds: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return how the rejections meet the plants, each share as {"hits", "of", "value", "interval_95"}.

    `precision`: rejected texts that hold a plant; `recall`: texts with a plant that were rejected; `false_alarms`:
    texts without a plant that were rejected all the same; `f1`; and with `kinds` (one a case, for instance the kind of
    plant, or `paraphrased`) the recall of each kind. A share of nothing is NaN. Raises ValueError for lists of
    different length.
    """
    planted, rejected = list(map(bool, is_planted)), list(map(bool, is_rejected))
    names = [""] * len(planted) if kinds is None else list(kinds)
    if not len(planted) == len(rejected) == len(names):
        raise ValueError(f"{len(planted)} cases, {len(rejected)} decisions, {len(names)} kinds: one each is needed")
    cases = list(zip(planted, rejected, names, strict=True))
    caught = sum(bad and out for bad, out, _ in cases)
    wrong = sum(out for bad, out, _ in cases if not bad)
    statistics: dict[str, Any] = {
        "cases": len(cases),
        "precision": _share(caught, sum(rejected)),
        "recall": _share(caught, sum(planted)),
        "false_alarms": _share(wrong, len(cases) - sum(planted)),
        "f1": 2 * caught / (sum(planted) + sum(rejected)) if any(planted) or any(rejected) else math.nan,
    }
    if kinds is not None:
        by_kind: dict[str, list[bool]] = {}
        for bad, out, name in cases:
            if bad:
                by_kind.setdefault(name, []).append(out)
        statistics["recall_by_kind"] = {name: _share(sum(outs), len(outs)) for name, outs in sorted(by_kind.items())}
    return statistics


def _share(hits: int, count: int) -> dict[str, Any]:
    value = hits / count if count else math.nan
    return {"hits": hits, "of": count, "value": value, "interval_95": wilson_interval(hits, count)}
