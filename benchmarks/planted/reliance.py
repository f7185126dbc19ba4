"""Planted cases for the visual reliance filter: answers that come out of their own text, and a teacher without eyes.

`guess` is that teacher: it reads the beginning of an analysis and knows no image. Numbers that it finds it repeats, a
place becomes a third of the frame, a level its number, faults a middling rating. Plants are `copied` (the reasoning
tells box and rating, in numbers or, paraphrased, in per cent and words), `prior` (the answer is what anybody would
guess from the words) and `told` (the reasoning says the level of the score that the teacher was told, and no more).
A teacher is sampled, so each continuation of either kind strays (`RATING_SPREAD`, `BOX_SPREAD`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from train_iqa.curation.reliance import Continuation
from train_iqa.curation.written import Box, Written

from .cases import PlantedCase

_COLUMNS = {"left": (0.0, 0.33), "centre": (0.33, 0.67), "right": (0.67, 1.0)}
_ROWS = {"upper": (0.0, 0.33), "middle": (0.33, 0.67), "lower": (0.67, 1.0)}
_PLACE = re.compile(r"\b(upper|middle|lower) (left|centre|right)\b")
_BOX = re.compile(r"\[(\d\.\d+), (\d\.\d+), (\d\.\d+), (\d\.\d+)\]")
_PERCENT = re.compile(r"(\d+) to (\d+) per cent across and (\d+) to (\d+) per cent down")
_RATING = re.compile(r"\b(?:rating of|merits) (\d(?:\.\d+)?)")
_LEVEL = re.compile(r"\boverall (bad|poor|fair|good|excellent)\b")
_LEVELS = ("bad", "poor", "fair", "good", "excellent")
FAULTY, FAULTLESS = 2.6, 4.3
"""Ratings that are guessed where a text names faults, and where it names none."""
RATING_SPREAD, BOX_SPREAD = 0.15, 0.03
"""Standard deviations of a sampled continuation: of the rating, and of each side of the box as a share."""


@dataclass(frozen=True, kw_only=True)
class RelianceCase:
    """One answer, and whether it was made without the image."""

    written: Written
    is_planted: bool
    kind: str
    """`grounded`, `copied`, `prior` or `told`."""
    is_paraphrased: bool


def guess(text: str) -> tuple[Box | None, float]:
    """Return the box and the rating that follow from a beginning alone."""
    rating = _RATING.search(text)
    value = FAULTLESS if "Nothing to name" in text else FAULTY
    if rating is not None:
        value = float(rating[1])
    elif level := _LEVEL.search(text):
        value = 1.0 + _LEVELS.index(level[1])
    if numbers := _BOX.search(text):
        return (float(numbers[1]), float(numbers[2]), float(numbers[3]), float(numbers[4])), value
    if shares := _PERCENT.search(text):
        left, right, top, bottom = (int(share) / 100 for share in shares.groups())
        return (left, top, right, bottom), value
    if match := _PLACE.search(text):
        (left, right), (top, bottom) = _COLUMNS[match[2]], _ROWS[match[1]]
        return (left, top, right, bottom), value
    return None, value


def sample_continuation(bbox: Box | None, rating: float, rng: np.random.Generator) -> Written:
    """Return one sampled continuation around a box and a rating; the box keeps an area."""
    if bbox is not None:
        sides = np.clip(np.add(bbox, rng.normal(0, BOX_SPREAD, 4)), 0, 1).round(2).tolist()
        left, top = min(sides[0], sides[2] - 0.01), min(sides[1], sides[3] - 0.01)
        bbox = (max(0.0, left), max(0.0, top), max(0.01, sides[2]), max(0.01, sides[3]))
    value = round(float(np.clip(rating + rng.normal(0, RATING_SPREAD), 1, 5)), 2)
    sections = (("Decision & Rationale", ("The text leads to this.",)),)
    return Written(sections=sections, bbox=bbox, rating=value)


def continuations(
    case: RelianceCase, count: int, rng: np.random.Generator
) -> tuple[list[Continuation], list[Continuation]]:
    """Return `count` continuations of a case with the image, and as many without it.

    The teacher of a planted case has no eyes, so that both kinds are guesses; that of a grounded one sees what the
    answer says.
    """
    guessed = guess(case.written.partial())
    shown = guessed if case.is_planted else (case.written.bbox, case.written.rating)
    seen, blind = (
        [Continuation(written=sample_continuation(*source, rng)) for _ in range(count)] for source in (shown, guessed)
    )
    return seen, blind


def reliance_cases(cases: Sequence[PlantedCase], *, seed: int = 0) -> list[RelianceCase]:
    """Return two cases for each grounded answer of `cases`: itself, and a plant of it; kinds take turns."""
    rng, results = np.random.default_rng(seed), []
    grounded = [case for case in cases if case.plant is None]
    for index, case in enumerate(grounded):
        kind, plant = (("copied", _copied), ("prior", _prior), ("told", _answer_after_score))[index // 2 % 3]
        planted = plant(case, rng)
        for written, is_planted, name in ((case.written, False, "grounded"), (planted, True, kind)):
            results.append(
                RelianceCase(written=written, is_planted=is_planted, kind=name, is_paraphrased=case.is_paraphrased)
            )
    return results


def _copied(case: PlantedCase, rng: np.random.Generator) -> Written:
    written = case.written
    sentences = [f"Taken together this merits {written.rating:.1f} points."]
    if not case.is_paraphrased:
        sentences = [f"This leads to a rating of {written.rating:.2f}."]
    if written.bbox is not None:
        left, top, right, bottom = written.bbox
        if case.is_paraphrased:
            shares = tuple(round(100 * side) for side in (left, right, top, bottom))
            sentences.append("It lies from {} to {} per cent across and {} to {} per cent down.".format(*shares))
        else:
            sentences.append(f"The region is [{left:.2f}, {top:.2f}, {right:.2f}, {bottom:.2f}].")
    sections = list(written.sections)
    label, texts = sections[2]
    sections[2] = label, (*texts, *sentences)
    return replace(written, sections=tuple(sections))


def _prior(case: PlantedCase, rng: np.random.Generator) -> Written:
    """Return the answer that a teacher gives who goes by its own words, with a little spread."""
    box, rating = guess(case.written.partial())
    if box is not None:
        spread = rng.uniform(-0.03, 0.03, 4)
        left, top, right, bottom = np.clip(np.add(box, spread), 0, 1).round(2).tolist()
        box = (left, top, right, bottom)
    return replace(case.written, bbox=box, rating=round(rating + float(rng.uniform(-0.08, 0.08)), 2))


def _answer_after_score(case: PlantedCase, rng: np.random.Generator) -> Written:
    """Return an answer whose reasoning is the told score's level in words, with a box of the frame's own thirds."""
    level = _LEVELS[round(case.written.rating) - 1]
    names = [label for label, _ in case.written.sections]
    texts = (f"The quality is overall {level}.", "More would help.", f"It stays overall {level}.", "I decide now.")
    box = (0.33, 0.33, 0.67, 0.67) if rng.random() < 0.5 else None
    sections = tuple((label, (text,)) for label, text in zip(names, texts, strict=True))
    return replace(case.written, sections=sections, bbox=box)
