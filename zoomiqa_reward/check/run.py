"""The check itself: every probe on every photograph, then the measures and the verdicts."""

from collections.abc import Iterable

from zoomiqa_reward.check.ascent import climb
from zoomiqa_reward.check.ladders import DAMAGES, DETAIL, Pool, make_pool
from zoomiqa_reward.check.measures import Answers, Measures, measure_answers
from zoomiqa_reward.check.photographs import Photograph
from zoomiqa_reward.check.report import CheckReport
from zoomiqa_reward.check.scoring import CheckScorer
from zoomiqa_reward.check.transport import sent_scores
from zoomiqa_reward.check.verdict import Thresholds, judge
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.runs.settings import fingerprint_if_known

REPEATS = 3
"""Times that each repeated image is scored."""


def run_check(
    reward: Reward,
    photographs: Iterable[Photograph],
    *,
    repeats: int = REPEATS,
    thresholds: Thresholds | None = None,
) -> CheckReport:
    """Return the report on `reward`. About 50 images a photograph are scored, and five gradients taken.

    An image that cannot be measured is NaN in its ladder and counted; it never stops the check.
    Raises ValueError without photographs, for `repeats` below 2, and for a reward whose values mean something only
    within one call (a sum normalised in groups).
    """
    if repeats < 2:
        raise ValueError(f"repeats={repeats}: a deviation needs at least 2")
    scorer = CheckScorer(reward)
    answers: list[Answers] = []
    names: list[str] = []
    shown: Pool | None = None
    for photograph in photographs:
        pool = make_pool(photograph)
        shown = shown or pool
        names.append(photograph.name)
        answers.append(_ask(reward, pool, scorer, repeats))
    if shown is None:
        raise ValueError("no photographs: give at least one")
    measures = measure_answers(
        answers, measured_share=scorer.measured_share, images_per_s=scorer.images_per_s,
        megapixels_per_s=scorer.megapixels_per_s,
    )  # fmt: skip
    return CheckReport(
        reward=reward.name, fingerprint=fingerprint_if_known(reward), deterministic=reward.deterministic,
        differentiable=reward.differentiable, photographs=tuple(names), measures=measures,
        verdicts=judge(measures, thresholds), errors=tuple(scorer.errors), notes=_notes(reward, measures), shown=shown,
    )  # fmt: skip


def _ask(reward: Reward, pool: Pool, scorer: CheckScorer, repeats: int) -> Answers:
    middle = pool.ladders[DETAIL][len(pool.ladders[DETAIL]) // 2]
    again = [scorer([pool.hr, middle], pool) for _ in range(repeats)]
    ladders = _ladder_scores(pool, scorer)
    return Answers(
        ladders=ladders, repeats=tuple(zip(*again, strict=True)), sent=sent_scores(pool, scorer),
        ascent=climb(reward, pool, scorer),
    )  # fmt: skip


def _ladder_scores(pool: Pool, scorer: CheckScorer) -> dict[str, tuple[float, ...]]:
    """Return the values by kind; the untouched image, which all ladders begin with, is asked about once."""
    damaged = [image for damage in DAMAGES for image in pool.ladders[damage.kind][1:]]
    untouched, *values = scorer([pool.hr, *damaged], pool)
    scores, start = {}, 0
    for damage in DAMAGES:
        stop = start + len(damage.levels)
        scores[damage.kind] = (untouched, *values[start:stop])
        start = stop
    return scores


def _notes(reward: Reward, measures: Measures) -> tuple[str, ...]:
    notes = []
    if reward.deterministic and measures.repeat_deviation > 0:
        notes.append(
            f"{reward.name} says deterministic=True, but the same image got different values "
            f"(deviation {measures.repeat_deviation:.2g})"
        )
    if reward.differentiable and measures.ascent.gradient_share < 1:
        notes.append(f"{reward.name} says differentiable=True, but not every image has a gradient that is of use")
    return tuple(notes)
