"""Fit or not, for each use: which measures decide, and the thresholds, each with its reason.

The thresholds were set before any reward was checked with them, and none was moved to let one pass. They are rules of
thumb: `Thresholds(...)` takes yours.
"""

import math
from dataclasses import dataclass

from zoomiqa_reward.check.measures import Measures

USES = ("best-of-n", "dpo", "gradients")
FIT, UNFIT, UNMEASURED = "fit", "not fit", "not measured"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where fit ends."""

    min_measured: float = 0.95
    """Share of images that have a value, all uses. Failures are dropped, and they are seldom dropped at random."""
    min_pairs: float = 0.9
    """`pairs_in_order`, best-of-N. Each step of a ladder is plain to see, so a ranker may miss few."""
    min_detail: float = 0.9
    """`detail_in_order`, best-of-N and gradients: candidates of one low-quality image are what both work on."""
    min_far_pairs: float = 0.95
    """`far_pairs_in_order`, DPO: it trains on the best against the worst, and takes a wrong pair for the truth."""
    min_weakest_chosen: float = 0.7
    """`weakest_in_order`, best-of-N: choosing among N only meets damage that the restorer makes by itself."""
    min_weakest_trained: float = 0.8
    """`weakest_in_order`, DPO and gradients: training drifts towards the damage that the reward likes."""
    max_noise_chosen: float = 0.5
    """`noise_to_signal`, best-of-N. Choosing by a noisy value gains 1 / sqrt(1 + r^2) of what choosing by its mean
    does (the correlation of the two, for Gaussian scores): 0.89 at 0.5."""
    max_noise_trained: float = 1.0
    """`noise_to_signal`, DPO and gradients: noise averages out over many pairs; at 1, 0.71 of the signal is left."""
    min_gradient_share: float = 1.0
    """`gradient_share`, gradients: one image without a gradient stops the training, or goes unnoticed."""
    max_rise: float = 1.0
    """`rise_to_spread`, gradients: a change of 2/255 must not gain more than candidates differ."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One measure against its threshold."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None where the value could not be measured."""
        if math.isnan(self.value):
            return None
        return self.value <= self.at_most if self.at_least is None else self.value >= self.at_least

    def __str__(self) -> str:
        """Return the measure and what is wanted of it, for people."""
        value = "not measured" if math.isnan(self.value) else f"{self.value:.3g}"
        wanted = f"at most {self.at_most:g}" if self.at_least is None else f"at least {self.at_least:g}"
        return f"{self.name} {value}{f' ({self.note})' if self.note else ''}, wanted {wanted}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a reward is fit for one use."""

    use: str
    criteria: tuple[Criterion, ...]

    @property
    def verdict(self) -> str:
        """`fit`; `not fit` where a criterion is not met; `not measured` where none fails but some has no value."""
        met = [criterion.met for criterion in self.criteria]
        return UNFIT if False in met else UNMEASURED if None in met else FIT

    @property
    def reasons(self) -> tuple[Criterion, ...]:
        """The criteria that are not met, then those that have no value."""
        unmet = [criterion for criterion in self.criteria if criterion.met is False]
        return (*unmet, *(criterion for criterion in self.criteria if criterion.met is None))


def judge(measures: Measures, thresholds: Thresholds | None = None) -> tuple[Verdict, ...]:
    """Return one verdict for each of `USES`, in order."""
    t = thresholds or Thresholds()
    kind = measures.weakest_kind or ""
    measured = Criterion(name="measured_share", value=measures.measured_share, at_least=t.min_measured)
    detail = Criterion(name="detail_in_order", value=measures.detail_in_order, at_least=t.min_detail)
    noise = [
        Criterion(name="noise_to_signal", value=measures.noise_to_signal, at_most=most)
        for most in (t.max_noise_chosen, t.max_noise_trained)
    ]
    weakest = [
        Criterion(name="weakest_in_order", value=measures.weakest_in_order, at_least=least, note=kind)
        for least in (t.min_weakest_chosen, t.min_weakest_trained)
    ]
    pairs = Criterion(name="pairs_in_order", value=measures.pairs_in_order, at_least=t.min_pairs)
    far = Criterion(name="far_pairs_in_order", value=measures.far_pairs_in_order, at_least=t.min_far_pairs)
    gradient = Criterion(
        name="gradient_share", value=measures.ascent.gradient_share, at_least=t.min_gradient_share,
        note=measures.ascent.error or "",
    )  # fmt: skip
    criteria = {
        "best-of-n": (measured, pairs, detail, weakest[0], noise[0]),
        "dpo": (measured, far, weakest[1], noise[1]),
        "gradients": (measured, gradient, detail, weakest[1], noise[1], *_rise(measures, t)),
    }
    return tuple(Verdict(use=use, criteria=criteria[use]) for use in USES)


def _rise(measures: Measures, thresholds: Thresholds) -> tuple[Criterion, ...]:
    """Return the adversarial criterion; without a gradient, `gradient_share` already says no."""
    if measures.ascent.gradient_share == 0:
        return ()
    return (Criterion(name="rise_to_spread", value=measures.ascent.rise_to_spread, at_most=thresholds.max_rise),)
