"""Who judges a try, and when it is kept: its reward must rise, its LR-consistency must not fall. With the reason."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from restoration.refinement.records import Attempt, Round
from zoomiqa_reward.rewards.base import Reward, find_part
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

    Assessor = ZoomIQA | RemoteZoomIQA

MIN_GAIN_FRAC = 0.0025
"""Least rise by default, of the width of the reward's range: 0.01 on 1..5, the margin within which `rank` sees ties."""


@dataclass(frozen=True, kw_only=True)
class AcceptanceRule:
    """The bar for one round's attempts; build it with `acceptance_rule`."""

    reward: float
    """The image's so far."""
    lr_consistency: float
    """The image's so far, dB."""
    floor_db: float
    """Least LR-consistency of a try."""
    min_gain: float

    def rises(self, attempt: Attempt) -> bool:
        """Return whether the reward rises by enough; with `min_gain` 0, at all."""
        return attempt.valid and attempt.reward > self.reward and attempt.reward - self.reward >= self.min_gain

    def accepts(self, attempt: Attempt) -> bool:
        """Return whether the try is kept. One that could not be measured is not."""
        return self.rises(attempt) and attempt.lr_consistency >= self.floor_db  # False for NaN

    def best_of(self, attempts: Sequence[Attempt]) -> Attempt:
        """Return the try with the highest reward of those that may be kept, or else of all; the earlier one of equals.

        Where none is valid, one that has an image.
        """

        def strength(attempt: Attempt) -> tuple[bool, bool, float, bool]:
            return (
                self.accepts(attempt),
                attempt.valid,
                attempt.reward if attempt.valid else 0.0,
                math.isfinite(attempt.lr_consistency),
            )

        return max(attempts, key=strength)  # max returns the first of equals

    def reason(self, attempts: Sequence[Attempt]) -> str:
        """Return the verdict on the best of the attempts, in words."""
        best = self.best_of(attempts)
        failed = [attempt for attempt in attempts if not attempt.valid]
        tail = f"; {len(failed)} of {len(attempts)} failed, the first: {failed[0].error}" if failed else ""
        if len(failed) == len(attempts):
            return f"none of {len(attempts)} could be made or measured, the first: {failed[0].error}"
        if self.accepts(best):
            return (
                f"reward {self.reward:.3f} to {best.reward:.3f}, LR-consistency {self.lr_consistency:.2f} to "
                f"{best.lr_consistency:.2f} dB{tail}"
            )
        fallen = sum(self.rises(attempt) for attempt in attempts)
        if fallen:
            return (
                f"{fallen} of {len(attempts)} raise the reward by {self.min_gain:.3g} or more, all with an "
                f"LR-consistency below {self.floor_db:.2f} dB{tail}"
            )
        return (
            f"none of {len(attempts)} raises the reward by {self.min_gain:.3g}; the best changes it by "
            f"{best.reward - self.reward:+.3f}{tail}"
        )


def acceptance_rule(kept: Round, highest_db: float, min_gain: float, slack_db: float) -> AcceptanceRule:
    """Return the judge of a round that starts from `kept`, `highest_db` being the best LR-consistency kept so far."""
    return AcceptanceRule(
        reward=kept.reward, lr_consistency=kept.lr_consistency, floor_db=highest_db - slack_db, min_gain=min_gain
    )


def find_reward_and_assessor(
    iqa_or_reward: "Assessor | Reward", assessor: "Assessor | None"
) -> tuple[Reward, "Assessor"]:
    """Return the reward and who assesses. Raises ValueError and TypeError as `refine` says."""
    reward: Reward
    judge: Assessor | None
    if hasattr(iqa_or_reward, "assess") and hasattr(iqa_or_reward, "rate"):
        judge = cast("Assessor", iqa_or_reward)
        reward = ZoomIQAReward(judge)
    elif callable(iqa_or_reward) and hasattr(iqa_or_reward, "needs"):
        of_model = find_part(iqa_or_reward, ZoomIQAReward)
        reward, judge = iqa_or_reward, None if of_model is None else of_model.iqa
    else:
        raise TypeError(f"iqa_or_reward={type(iqa_or_reward).__name__}: must be a ZoomIQA or a Reward")
    judge = judge if assessor is None else assessor
    if judge is None or not hasattr(judge, "assess"):
        raise ValueError(
            f"reward {reward.name!r} writes no words to guide refine: pass assessor=ZoomIQA.from_pretrained()"
        )
    if "hr" in reward.needs:
        raise ValueError(f"reward {reward.name!r} needs hr: a ground truth must not guide what is restored")
    return reward, judge


def limits_of(reward: Reward, min_gain: float | None, slack_db: float) -> dict[str, float]:
    """Return what a try must keep to, as run.json names it. Raises ValueError for numbers that are no limits."""
    low, high = reward.score_range
    if min_gain is None and not math.isfinite(high - low):
        raise ValueError(f"min_gain=None: reward {reward.name!r} has no finite range; pass the least rise that counts")
    gain = float((high - low) * MIN_GAIN_FRAC if min_gain is None else min_gain)
    if not 0 <= gain < math.inf or not 0 <= slack_db < math.inf:
        raise ValueError(f"min_gain={gain}, lr_consistency_slack_db={slack_db}: both must be finite and at least 0")
    return {"min_gain": gain, "lr_consistency_slack_db": float(slack_db)}
