"""From the scores of each photograph to the numbers that decide, each with its interval over photographs.

Everything that is compared with a spread is compared with **the spread within one low-quality image**: the standard
deviation over the `detail` ladder, root mean square over photographs. The spread over all photographs would be larger
and say nothing about choosing among candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoomiqa_reward.check.degenerate import EMPTYINGS, Emptying
from zoomiqa_reward.check.ladders import DAMAGES, DETAIL, WORSENINGS, Damage
from zoomiqa_reward.check.probes import Answers, Ascent
from zoomiqa_reward.check.tallies import (
    decisive,
    intervals,
    mean,
    pair_scores,
    preference,
    ratio,
    root_mean_square,
    table_of,
)
from zoomiqa_reward.runs.bootstrap import Interval


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
class EmptyMeasure:
    """One way to take the scene out of an image, over all photographs; the first step is the honest candidate."""

    kind: str
    labels: tuple[str, ...]
    means: tuple[float, ...]
    """Mean value of each step, over the photographs on which it has one."""
    rated: tuple[float, ...]
    """By step: share of the contentless images that have a value; NaN where none is contentless."""
    preferred: tuple[float, ...]
    """By step: share of the photographs on which it would be chosen before the honest candidate. Ties count half."""
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
    compares: bool
    """Whether the reward compares with a source or a ground truth, so that a value of a blank image has a meaning."""
    measured_share: float
    """Of the images that have to have a value: not of contentless and emptied ones."""
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
    worsened: tuple[LadderMeasure, ...]
    """Ladders that start from a bad image."""
    weakest_worsened_kind: str | None
    weakest_worsened_in_order: float
    """Lowest `pairs_in_order` of those, and which."""
    empty: tuple[EmptyMeasure, ...]
    contentless_rated: float
    """Share of the contentless images that have a value; NaN where none was contentless."""
    degenerate_preferred: float
    """Share of all emptied images that would be chosen before the honest candidate. Ties count half."""
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
    intervals: dict[str, Interval]
    """95 % bootstrap intervals over photographs, by the name of a measure above; empty with one photograph."""


def measure_answers(
    answers: Sequence[Answers], *, images_per_s: float, megapixels_per_s: float, compares: bool = False
) -> Measures:
    """Return the measures of the answers, one entry per photograph. Raises ValueError where there is none."""
    if not answers:
        raise ValueError("no photograph was checked, so there is nothing to measure")
    ladders = tuple(_ladder(damage, [row.ladders[damage.kind] for row in answers]) for damage in DAMAGES)
    worsened = tuple(_ladder(way.damage, [row.worsened[way.damage.kind] for row in answers]) for way in WORSENINGS)
    weakest = _weakest(ladders), _weakest(worsened)
    table = table_of(answers)
    values = decisive(table, *weakest)
    rise_to_spread, gradient_share = values.pop("rise_to_spread"), values.pop("gradient_share")
    detail = [answer.ladders[DETAIL] for answer in answers]
    ascents = [answer.ascent for answer in answers]
    return Measures(
        num_photographs=len(answers), compares=compares, ladders=ladders, weakest_kind=weakest[0],
        worsened=worsened, weakest_worsened_kind=weakest[1], empty=tuple(_empty(way, answers) for way in EMPTYINGS),
        transports=tuple(_transport(name, [answer.sent[name] for answer in answers], detail, values["spread"])
                         for name in answers[0].sent),
        ascent=_ascent(ascents, rise_to_spread, gradient_share),
        images_per_s=images_per_s, megapixels_per_s=megapixels_per_s, intervals=intervals(table, *weakest), **values,
    )  # fmt: skip


def _weakest(ladders: Sequence[LadderMeasure]) -> str | None:
    rated = [ladder for ladder in ladders if math.isfinite(ladder.pairs_in_order)]
    values = min(rated, key=lambda ladder: ladder.pairs_in_order, default=None)
    return values.kind if values else None


def _ladder(damage: Damage, rows: list[tuple[float, ...]]) -> LadderMeasure:
    return LadderMeasure(
        kind=damage.kind, labels=damage.labels(), rows=tuple(rows),
        means=tuple(mean(column) for column in zip(*rows, strict=True)),
        steps_in_order=mean(score for row in rows for score in pair_scores(row, most_apart=1)),
        pairs_in_order=mean(score for row in rows for score in pair_scores(row)),
    )  # fmt: skip


def _empty(way: Emptying, answers: Sequence[Answers]) -> EmptyMeasure:
    rows = [answer.empty[way.kind] for answer in answers]
    marks = [answer.contentless[way.kind] for answer in answers]
    steps = range(len(way.labels()))
    return EmptyMeasure(
        kind=way.kind, labels=way.labels(), rows=tuple(rows),
        means=tuple(mean(column) for column in zip(*rows, strict=True)),
        rated=tuple(mean(float(not math.isnan(row[k])) for row, mark in zip(rows, marks, strict=True) if mark[k])
                    for k in steps),
        preferred=tuple(mean(preference(row[k], row[0]) for row in rows) if k else 0.0 for k in steps),
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
    values = []
    for i in range(len(before)):
        for j in range(i + 1, len(before)):
            old, new = before[i] - before[j], after[i] - after[j]
            if math.isfinite(old) and math.isfinite(new):
                values.append(float((old > 0) - (old < 0) == (new > 0) - (new < 0)))
    return values


def _ascent(ascents: list[Ascent], rise_to_spread: float, gradient_share: float) -> AscentMeasure:
    return AscentMeasure(
        rise=mean(ascent.rise for ascent in ascents), rise_to_spread=rise_to_spread,
        random_change=mean(ascent.random - ascent.start for ascent in ascents), gradient_share=gradient_share,
        error=next((ascent.error for ascent in ascents if ascent.error), None),
    )  # fmt: skip
