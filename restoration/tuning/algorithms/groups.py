"""From scores to advantages: how much better a candidate is than the others of the same low-quality image.

Keys are the sha256 of the LR pixels with the prompt (`rewards.normalise.group_keys`): by the prompt alone different
images would be one group. What carries no signal is dropped and counted, never scored as 0: failed
measurements, groups of one, groups without spread, and groups that are already near the top of the scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from restoration.tuning.config import TuneConfig
from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.normalise import FLAT, group_index, with_finite_best
from zoomiqa_reward.rewards.restorations import EMPTY_SOURCE

SATURATED_STD, SATURATED_MEAN = 0.05, 0.9
"""A group above this mean and below this spread (both as shares of the reward's range) has nothing left to learn.
Source: the rule of Edit-R1 / UniWorld-V2."""
RATINGS = (1.0, 5.0)
"""The range that the rule is for. Metrics use a corner of theirs (NIQE 5 to 10 of 0 to 100), and all their groups would
count as near the top."""


class TooManyFailures(ZoomIQAError, RuntimeError):
    """So many scores could not be measured that what is left would be a biased sample."""


class NothingLearned(ZoomIQAError, RuntimeError):
    """A whole run made no update, so what it would leave is its base model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Advantages:
    """What a batch of scores says about its candidates."""

    value: Tensor
    """[batch] float32: within-group z-score, clipped; NaN where dropped."""
    kept: Tensor
    """[batch] bool."""
    num_failed: int
    """Candidates that could not be measured."""
    num_tied: int
    """Groups without spread, or with fewer than two measured candidates."""
    num_saturated: int
    """Groups at the top of the scale."""

    def report(self) -> dict[str, float]:
        """Return the counts for a log."""
        return {"failed": self.num_failed, "tied_groups": self.num_tied, "saturated_groups": self.num_saturated,
                "kept": int(self.kept.sum())}  # fmt: skip


def group_advantages(
    scores: Scores, keys: Sequence[str], *, clip: float = 5.0, max_failure_rate: float = 0.1,
    score_range: tuple[float, float] = (-math.inf, math.inf),
) -> Advantages:  # fmt: skip
    """Return (score - group mean) / group standard deviation (population), clipped to +-`clip`.

    keys: one per score, equal within a group. score_range: the reward's; that of ratings, 1 to 5, switches the rule on
    groups near the top on. Raises TooManyFailures above `max_failure_rate`, ValueError for other lengths.

    >>> scores = Scores(value=torch.tensor([1.0, 3.0]), valid=torch.tensor([True, True]), std=torch.zeros(2))
    >>> group_advantages(scores, ["a", "a"]).value
    tensor([-1.,  1.])
    """
    if len(keys) != len(scores):
        raise ValueError(f"{len(keys)} keys for {len(scores)} scores: one per score is needed")
    values, valid = scores.value.detach().double().cpu(), scores.valid.cpu()
    check_failures(scores, max_failure_rate)
    advantages, tied, saturated = torch.full_like(values, math.nan), 0, 0
    index = group_index(list(keys))
    for number in index.unique().tolist():
        members = (index == number) & valid & (values != -math.inf)
        group_values = with_finite_best(values[members])
        spread = float(group_values.std(correction=0)) if len(group_values) > 1 else 0.0
        if spread <= FLAT * max(1.0, abs(float(group_values.mean())) if len(group_values) else 1.0):
            tied += 1
        elif tuple(score_range) == RATINGS and _is_saturated(group_values, spread):
            saturated += 1
        else:
            advantages[members] = ((group_values - group_values.mean()) / spread).clamp(-clip, clip)
    kept = ~advantages.isnan()
    return Advantages(value=advantages.float(), kept=kept, num_failed=int((~valid).sum()),
                      num_tied=tied, num_saturated=saturated)  # fmt: skip


def require_groups(config: TuneConfig, name: str) -> None:
    """Raise ValueError where an image has one candidate: an algorithm that compares would drop every group."""
    if config.num_samples < 2:
        raise ValueError(
            f"num_samples={config.num_samples}: {name} compares the candidates of an image, so it needs 2 or more"
        )


def check_failures(scores: Scores, max_failure_rate: float) -> None:
    """Raise TooManyFailures where more than that share could not be measured, naming the first reason.

    A restoration of a crop that shows nothing, such as an even sky, is no failure: there is nothing to measure.
    """
    pairs = zip(scores.valid.tolist(), scores.errors or [None] * len(scores), strict=True)
    refuse_failures([why or NO_REASON for is_valid, why in pairs if not is_valid], len(scores), max_failure_rate)


NO_REASON = "no reason given"


def refuse_failures(reasons: Sequence[str], total: int, max_failure_rate: float) -> None:
    """Raise TooManyFailures for the reasons of those of `total` candidates that failed, see `check_failures`."""
    failed = [why for why in reasons if not why.startswith(EMPTY_SOURCE)]
    if len(failed) > max_failure_rate * total:
        first = next((why for why in failed if why != NO_REASON), NO_REASON)
        raise TooManyFailures(
            f"{len(failed)} of {total} candidates could not be scored (at most {max_failure_rate:.0%} may fail); "
            f"the first: {first}"
        )


def _is_saturated(group_values: Tensor, spread: float) -> bool:
    low, high = RATINGS
    share = (float(group_values.mean()) - low) / (high - low)
    return share > SATURATED_MEAN and spread / (high - low) < SATURATED_STD
