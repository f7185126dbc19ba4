"""From the scores of each photograph to the numbers that decide.

Everything that is compared with a spread is compared with **the spread within one low-quality image**: the standard
deviation over the `detail` ladder, root mean square over photographs. The spread over all photographs would be larger
and say nothing about choosing among candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoomiqa_reward.check.ascent import Ascent
from zoomiqa_reward.check.ladders import DAMAGES, DETAIL
from zoomiqa_reward.check.order import deviation, mean, pair_scores, ratio, root_mean_square

FAR_APART = 3
"""Places in a ladder of five from which a pair counts as far apart: what DPO pairs, best against worst."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the reward said about one photograph; NaN where it could not be measured."""

    ladders: dict[str, tuple[float, ...]]
    """By kind, the untouched image first."""
    repeats: tuple[tuple[float, ...], ...]
    """One row per image that was scored several times."""
    sent: dict[str, tuple[float, ...]]
    """The `detail` ladder by transport."""
    ascent: Ascent


@dataclass(frozen=True, kw_only=True)
class LadderMeasure:
    """One kind of damage over all photographs."""

    kind: str
    labels: tuple[str, ...]
    means: tuple[float, ...]
    """Mean value of each step, over photographs."""
    steps_in_order: float
    """Share of steps to the next image, one at a time, at which the value falls: monotonicity. Ties count half."""
    pairs_in_order: float
    """The same for all pairs of one ladder."""
    rows: tuple[tuple[float, ...], ...]
    """Values by photograph."""


@dataclass(frozen=True, kw_only=True)
class TransportMeasure:
    """One way of sending an image."""

    name: str
    shift: float
    """Mean change of the value: the same for all candidates, so without harm by itself."""
    change_to_spread: float
    """Root mean square of the change over the spread within one low-quality image."""
    order_kept: float
    """Share of pairs of the `detail` ladder that stand in the order that they had before."""


@dataclass(frozen=True, kw_only=True)
class AscentMeasure:
    """The adversarial probe over all photographs."""

    rise: float
    """Mean rise of the value."""
    rise_to_spread: float
    """Mean rise over the spread within one low-quality image."""
    random_change: float
    """Mean change of the value by a random change of the same size."""
    gradient_share: float
    """Photographs with a finite gradient that is not zero, over all; 0 where there is no gradient at all."""
    error: str | None
    """Why there is no ascent, or not on every photograph."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """All that a verdict looks at, and what it is made of."""

    num_photographs: int
    measured_share: float
    ladders: tuple[LadderMeasure, ...]
    pairs_in_order: float
    """Ranking accuracy within one photograph: all pairs of all ladders. 0.5 is chance."""
    far_pairs_in_order: float
    """The same for pairs that are `FAR_APART` or more."""
    detail_in_order: float
    """The same for the `detail` ladder, the candidates of one low-quality image."""
    weakest_kind: str | None
    weakest_in_order: float
    """Lowest `pairs_in_order` of a ladder, and which: the damage that an optimiser will find."""
    spread: float
    """Within one low-quality image; see above."""
    repeat_deviation: float
    """Standard deviation of an image's value when asked again, root mean square over images."""
    noise_to_signal: float
    """repeat_deviation / spread."""
    transports: tuple[TransportMeasure, ...]
    ascent: AscentMeasure
    images_per_s: float
    megapixels_per_s: float


def measure_answers(
    answers: Sequence[Answers], *, measured_share: float, images_per_s: float, megapixels_per_s: float
) -> Measures:
    """Return the measures of the answers, one entry a photograph. Raises ValueError where there is none."""
    if not answers:
        raise ValueError("no photograph was checked, so there is nothing to measure")
    ladders = tuple(
        _ladder(damage.kind, damage.labels(), [answer.ladders[damage.kind] for answer in answers]) for damage in DAMAGES
    )
    detail = [answer.ladders[DETAIL] for answer in answers]
    spread = root_mean_square(deviation(row, unbiased=False) for row in detail)
    repeat = root_mean_square(deviation(row, unbiased=True) for answer in answers for row in answer.repeats)
    rated = [ladder for ladder in ladders if math.isfinite(ladder.pairs_in_order)]
    weakest = min(rated, key=lambda ladder: ladder.pairs_in_order, default=None)
    rows = [row for ladder in ladders for row in ladder.rows]
    return Measures(
        num_photographs=len(answers), measured_share=measured_share, ladders=ladders,
        pairs_in_order=mean(score for row in rows for score in pair_scores(row)),
        far_pairs_in_order=mean(score for row in rows for score in pair_scores(row, least_apart=FAR_APART)),
        detail_in_order=mean(score for row in detail for score in pair_scores(row)),
        weakest_kind=weakest.kind if weakest else None,
        weakest_in_order=weakest.pairs_in_order if weakest else math.nan,
        spread=spread, repeat_deviation=repeat, noise_to_signal=ratio(repeat, spread),
        transports=tuple(_transport(name, [answer.sent[name] for answer in answers], detail, spread)
                         for name in answers[0].sent),
        ascent=_ascent([answer.ascent for answer in answers], spread),
        images_per_s=images_per_s, megapixels_per_s=megapixels_per_s,
    )  # fmt: skip


def _ladder(kind: str, labels: tuple[str, ...], rows: list[tuple[float, ...]]) -> LadderMeasure:
    return LadderMeasure(
        kind=kind, labels=labels, rows=tuple(rows),
        means=tuple(mean(column) for column in zip(*rows, strict=True)),
        steps_in_order=mean(score for row in rows for score in pair_scores(row, most_apart=1)),
        pairs_in_order=mean(score for row in rows for score in pair_scores(row)),
    )  # fmt: skip


def _transport(
    name: str, sent: list[tuple[float, ...]], before: list[tuple[float, ...]], spread: float
) -> TransportMeasure:
    changes = [new - old for after, row in zip(sent, before, strict=True) for new, old in zip(after, row, strict=True)]
    kept = [score for after, row in zip(sent, before, strict=True) for score in _orders_kept(row, after)]
    return TransportMeasure(
        name=name, shift=mean(changes), change_to_spread=ratio(root_mean_square(changes), spread),
        order_kept=mean(kept),
    )  # fmt: skip


def _orders_kept(before: tuple[float, ...], after: tuple[float, ...]) -> list[float]:
    """Return 1 for each pair whose order is as it was, a tie staying a tie included, else 0."""
    results = []
    for i in range(len(before)):
        for j in range(i + 1, len(before)):
            old, new = before[i] - before[j], after[i] - after[j]
            if math.isfinite(old) and math.isfinite(new):
                results.append(float((old > 0) - (old < 0) == (new > 0) - (new < 0)))
    return results


def _ascent(ascents: list[Ascent], spread: float) -> AscentMeasure:
    rise = mean(ascent.rise for ascent in ascents)
    return AscentMeasure(
        rise=rise, rise_to_spread=ratio(rise, spread),
        random_change=mean(ascent.random - ascent.start for ascent in ascents),
        gradient_share=sum(ascent.has_gradient for ascent in ascents) / len(ascents),
        error=next((ascent.error for ascent in ascents if ascent.error), None),
    )  # fmt: skip
