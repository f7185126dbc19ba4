"""Fit or not, for each use: which measures decide, and the thresholds, each with its reason.

A criterion is met or missed where the value and its whole interval over photographs are on one side of the threshold.
The thresholds were set before any reward was checked with them, and none was moved to let one pass. They are rules of
thumb: `Thresholds(...)` takes yours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from zoomiqa_reward.check.measures import Measures

USES = ("best-of-n", "dpo", "gradients")
FIT, UNFIT = "fit", "not fit"
FEW, UNMEASURED, UNDECIDED = "too few images", "not measured", "undecided"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where fit ends. Raises ValueError for a least number of images below 2: there would be no interval."""

    min_images: int = 20
    """Photographs, all uses. Where none of 20 shows a fault, up to 3 / 20 of all may still have it (rule of three)."""
    min_measured: float = 0.95
    """Share of images that have a value, all uses. Failures are dropped, and they are seldom dropped at random."""
    min_pairs: float = 0.9
    """`pairs_in_order`, best-of-N. Each step of a ladder is plain to see, so a ranker may miss few."""
    min_detail: float = 0.9
    """`detail_in_order`, best-of-N and gradients: candidates of one low-quality image are what both work on."""
    min_far_pairs: float = 0.95
    """`far_pairs_in_order`, DPO: it trains on the best against the worst, and takes a wrong pair for the truth."""
    min_weakest_chosen: float = 0.7
    """`weakest_in_order` and `weakest_worsened_in_order`, best-of-N: choosing among N only meets damage that the
    restorer makes by itself."""
    min_weakest_trained: float = 0.8
    """The same, DPO and gradients: training drifts towards the damage that the reward likes."""
    max_degenerate_preferred: float = 0.0
    """`degenerate_preferred`, all uses: an empty image before an honest candidate is what a policy drifts to."""
    max_contentless_rated: float = 0.0
    """`contentless_rated`, all uses, for rewards that see the image alone: its value there is made up."""
    max_noise_chosen: float = 0.5
    """`noise_to_signal`, best-of-N. Choosing by a noisy value gains 1 / sqrt(1 + r^2) of what choosing by its mean
    does (the correlation of the two, for Gaussian scores): 0.89 at 0.5."""
    max_noise_trained: float = 1.0
    """`noise_to_signal`, DPO and gradients: noise averages out over many pairs; at 1, 0.71 of the signal is left."""
    min_gradient_share: float = 1.0
    """`gradient_share`, gradients: one image without a gradient stops the training, or goes unnoticed."""
    max_rise: float = 1.0
    """`rise_to_spread`, gradients: a change of 2/255 must not gain more than candidates differ."""

    def __post_init__(self) -> None:
        if self.min_images < 2:
            raise ValueError(
                f"min_images={self.min_images}: must be at least 2, because one photograph has no interval"
            )


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One measure against its threshold."""

    name: str
    value: float
    low: float = math.nan
    """95 % interval of the value over photographs, from here; NaN where there is none."""
    high: float = math.nan
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether value and interval both meet the threshold, or both miss it; None where they do not agree or there
        is no value.

        Where the threshold is never (0) or always (1) one counterexample decides, so the value does.
        """
        limit = self.at_most if self.at_least is None else self.at_least
        if limit is None or math.isnan(self.value):
            return None
        is_never = self.at_most == 0 or self.at_least == 1
        ends = [self.value] if is_never else [end for end in (self.value, self.low, self.high) if not math.isnan(end)]
        answers = {end <= limit if self.at_least is None else end >= limit for end in ends}
        return answers.pop() if len(answers) == 1 else None

    def __str__(self) -> str:
        """Return the measure, its interval and what is wanted of it, for people."""
        value = "not measured" if math.isnan(self.value) else f"{self.value:.3g}"
        between = "" if math.isnan(self.low) else f" [{self.low:.3g}, {self.high:.3g}]"
        wanted = f"at most {self.at_most:g}" if self.at_least is None else f"at least {self.at_least:g}"
        return f"{self.name} {value}{between}{f' ({self.note})' if self.note else ''}, wanted {wanted}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a reward is fit for one use."""

    use: str
    criteria: tuple[Criterion, ...]
    num_images: int
    """Photographs that were checked."""
    min_images: int
    """Photographs that a verdict needs."""

    @property
    def verdict(self) -> str:
        """One of the five words.

        `too few images` below the least number of photographs, whatever was measured; `not fit` where a criterion is
        missed; `not measured` where none is missed but some has no value; `undecided` where some interval holds its
        threshold; else `fit`.
        """
        if self.num_images < self.min_images:
            return FEW
        if any(criterion.met is False for criterion in self.criteria):
            return UNFIT
        if any(math.isnan(criterion.value) for criterion in self.criteria):
            return UNMEASURED
        return FIT if all(criterion.met for criterion in self.criteria) else UNDECIDED

    @property
    def is_reached(self) -> bool:
        """Whether it says fit or not fit."""
        return self.verdict in (FIT, UNFIT)

    @property
    def reasons(self) -> tuple[Criterion, ...]:
        """The criteria that are missed, then those without a value, then those whose interval holds the threshold."""
        missed = [criterion for criterion in self.criteria if criterion.met is False]
        unmeasured = [criterion for criterion in self.criteria if math.isnan(criterion.value)]
        unsure = [criterion for criterion in self.criteria if criterion.met is None and not math.isnan(criterion.value)]
        return (*missed, *unmeasured, *unsure)


def judge(measures: Measures, thresholds: Thresholds | None = None) -> tuple[Verdict, ...]:
    """Return one verdict for each of `USES`, in order."""
    t = thresholds or Thresholds()

    def criterion(name: str, *, note: str = "", **wanted: float) -> Criterion:
        low, high = measures.intervals.get(name, (math.nan, math.nan))
        owner = measures if hasattr(measures, name) else measures.ascent
        return Criterion(name=name, value=getattr(owner, name), low=low, high=high, note=note, **wanted)

    def trained_or_chosen(weakest: float, noise: float) -> tuple[Criterion, ...]:
        return (
            criterion("weakest_in_order", at_least=weakest, note=measures.weakest_kind or ""),
            criterion("weakest_worsened_in_order", at_least=weakest, note=measures.weakest_worsened_kind or ""),
            criterion("noise_to_signal", at_most=noise),
        )

    always = (criterion("measured_share", at_least=t.min_measured), *_degenerate(measures, criterion, t))
    chosen = trained_or_chosen(t.min_weakest_chosen, t.max_noise_chosen)
    trained = trained_or_chosen(t.min_weakest_trained, t.max_noise_trained)
    detail = criterion("detail_in_order", at_least=t.min_detail)
    pairs = criterion("pairs_in_order", at_least=t.min_pairs)
    far = criterion("far_pairs_in_order", at_least=t.min_far_pairs)
    gradient = criterion("gradient_share", at_least=t.min_gradient_share, note=measures.ascent.error or "")
    # Without a gradient there is no rise, and `gradient_share` says no already.
    rise = () if measures.ascent.gradient_share == 0 else (criterion("rise_to_spread", at_most=t.max_rise),)
    criteria = {
        "best-of-n": (*always, pairs, detail, *chosen),
        "dpo": (*always, far, *trained),
        "gradients": (*always, gradient, detail, *trained, *rise),
    }
    return tuple(
        Verdict(use=use, criteria=criteria[use], num_images=measures.num_photographs, min_images=t.min_images)
        for use in USES
    )


def _degenerate(
    measures: Measures, criterion: Callable[..., Criterion], thresholds: Thresholds
) -> tuple[Criterion, ...]:
    """Return the criteria on emptied images. A reward that compares may rate a blank image: low is a measurement."""
    rated = [f"{row.kind}: {label}" for row in measures.empty
             for label, share in zip(row.labels, row.rated, strict=True) if share > 0]  # fmt: skip
    preferred = [f"{row.kind}: {label}" for row in measures.empty
                 for label, share in zip(row.labels, row.preferred, strict=True) if share > 0]  # fmt: skip
    criteria = [
        criterion("degenerate_preferred", at_most=thresholds.max_degenerate_preferred, note=", ".join(preferred))
    ]
    # NaN where the crops were such that no emptied image was contentless: then there is nothing to hold against it.
    if not measures.compares and not math.isnan(measures.contentless_rated):
        note = ", ".join(rated)
        criteria.append(criterion("contentless_rated", at_most=thresholds.max_contentless_rated, note=note))
    return tuple(criteria)
