"""The check itself: every probe on every photograph, then the measures and the verdicts."""

from collections.abc import Iterable

from torch import Tensor

from zoomiqa_reward.check.degenerate import empty_rows
from zoomiqa_reward.check.ladders import DETAIL, Photograph, Pool, make_pool
from zoomiqa_reward.check.measures import Measures, measure_answers
from zoomiqa_reward.check.probes import Answers, CheckScorer, climb, sent_scores
from zoomiqa_reward.check.report import CheckReport
from zoomiqa_reward.check.verdict import Thresholds, judge
from zoomiqa_reward.images.content import contentless
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
    """Return the report on `reward`. About 80 images per photograph are scored, and five gradients taken.

    An image that cannot be measured is NaN in its ladder and counted; it never stops the check. Below
    `thresholds.min_images` photographs everything is measured, but no use is said to be fit or not.
    Raises ValueError without photographs, for `repeats` below 2, and for a reward whose values mean something only
    within one call (a sum normalised in groups).
    """
    if repeats < 2:
        raise ValueError(f"repeats={repeats}: a deviation needs at least 2")
    scorer = CheckScorer(reward)
    answers: list[Answers] = []
    names: list[str] = []
    small: list[str] = []
    shown: Pool | None = None
    for photograph in photographs:
        pool = make_pool(photograph)
        shown = shown or pool
        names.append(photograph.name)
        height, width = photograph.image.shape[1:]
        if min(height, width) < photograph.crop_px:
            small.append(
                f"{photograph.name}, {width} x {height} px instead of {photograph.crop_px} x {photograph.crop_px}"
            )
        answers.append(_ask(reward, pool, scorer, repeats))
    if shown is None:
        raise ValueError("no photographs: give at least one")
    measures = measure_answers(
        answers, images_per_s=scorer.images_per_s, megapixels_per_s=scorer.megapixels_per_s,
        compares=bool({"lq", "hr"} & reward.needs),
    )  # fmt: skip
    return CheckReport(
        reward=reward.name, fingerprint=fingerprint_if_known(reward), deterministic=reward.deterministic,
        differentiable=reward.differentiable, photographs=tuple(names), measures=measures,
        verdicts=judge(measures, thresholds), errors=tuple(scorer.errors),
        notes=_notes(reward, measures, scorer.outside, small), shown=shown,
    )  # fmt: skip


def _ask(reward: Reward, pool: Pool, scorer: CheckScorer, repeats: int) -> Answers:
    asked, failed = scorer.num_asked, len(scorer.errors)
    middle = pool.ladders[DETAIL][len(pool.ladders[DETAIL]) // 2]
    again = [scorer([pool.hr, middle], pool) for _ in range(repeats)]
    ladders = _row_scores(pool.ladders, pool, scorer)
    worsened = _row_scores(pool.worsened, pool, scorer)
    emptied = empty_rows(pool.hr, pool.enlarged)
    sent, ascent = sent_scores(pool, scorer), climb(reward, pool, scorer)
    return Answers(
        ladders=ladders, worsened=worsened, empty=_row_scores(emptied, pool, scorer, may_fail=True),
        contentless={kind: tuple(contentless(image) is not None for image in row) for kind, row in emptied.items()},
        repeats=tuple(zip(*again, strict=True)), sent=sent, ascent=ascent,
        num_asked=scorer.num_asked - asked, num_failed=len(scorer.errors) - failed,
    )  # fmt: skip


def _row_scores(
    rows: dict[str, tuple[Tensor, ...]], pool: Pool, scorer: CheckScorer, *, may_fail: bool = False
) -> dict[str, tuple[float, ...]]:
    """Return the values by kind; an image that several rows begin with is asked about once."""
    images = {id(image): image for row in rows.values() for image in row}
    values = dict(zip(images, scorer(list(images.values()), pool, may_fail=may_fail), strict=True))
    return {kind: tuple(values[id(image)] for image in row) for kind, row in rows.items()}


def _notes(reward: Reward, measures: Measures, outside: str | None, small: list[str]) -> tuple[str, ...]:
    notes = [] if outside is None else [outside]
    if small:
        notes.append(
            f"smaller than the square that was asked for (crop_px), and used as far as they reach: {len(small)} "
            f"photographs, the first {small[0]}"
        )
    if reward.deterministic and measures.repeat_deviation > 0:
        notes.append(
            f"{reward.name} says deterministic=True, but the same image got different values "
            f"(deviation {measures.repeat_deviation:.2g})"
        )
    if reward.differentiable and measures.ascent.gradient_share < 1:
        notes.append(f"{reward.name} says differentiable=True, but not every image has a gradient that is of use")
    return tuple(notes)
