"""Planted cases for the visual reliance filter: answers that come out of their own text, and a teacher without eyes.

`guess` is that teacher: it reads the beginning of an analysis and knows no picture. Numbers that it finds it repeats,
a place becomes a third of the frame, faults a middling rating. Plants are `copied` (the reasoning tells box and rating,
in numbers or, paraphrased, in per cent and words) and `prior` (the answer is what anybody would guess from the words).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from train_iqa.curation.planted import PlantedCase
from train_iqa.curation.written import Box, Written

_COLUMNS = {"left": (0.0, 0.33), "centre": (0.33, 0.67), "right": (0.67, 1.0)}
_ROWS = {"upper": (0.0, 0.33), "middle": (0.33, 0.67), "lower": (0.67, 1.0)}
_PLACE = re.compile(r"\b(upper|middle|lower) (left|centre|right)\b")
_BOX = re.compile(r"\[(\d\.\d+), (\d\.\d+), (\d\.\d+), (\d\.\d+)\]")
_PERCENT = re.compile(r"(\d+) to (\d+) per cent across and (\d+) to (\d+) per cent down")
_RATING = re.compile(r"\b(?:rating of|merits) (\d(?:\.\d+)?)")
FAULTY, FAULTLESS = 2.6, 4.3
"""Ratings that are guessed where a text names faults, and where it names none."""


@dataclass(frozen=True, kw_only=True)
class RelianceCase:
    """One answer, and whether it was made without the picture."""

    written: Written
    is_planted: bool
    kind: str
    """`grounded`, `copied` or `prior`."""
    is_paraphrased: bool


def guess(text: str) -> tuple[Box | None, float]:
    """Return the box and the rating that follow from a beginning alone."""
    rating = _RATING.search(text)
    value = FAULTLESS if "Nothing to name" in text else FAULTY
    if rating is not None:
        value = float(rating[1])
    if numbers := _BOX.search(text):
        return (float(numbers[1]), float(numbers[2]), float(numbers[3]), float(numbers[4])), value
    if shares := _PERCENT.search(text):
        left, right, top, bottom = (int(share) / 100 for share in shares.groups())
        return (left, top, right, bottom), value
    if place := _PLACE.search(text):
        (left, right), (top, bottom) = _COLUMNS[place[2]], _ROWS[place[1]]
        return (left, top, right, bottom), value
    return None, value


def guessed_answer(text: str) -> str:
    """Return the guess as a teacher would write it."""
    box, rating = guess(text)
    sections = (("Decision & Rationale", ("The text leads to this.",)),)
    return Written(sections=sections, bbox=box, rating=rating).render()


def reliance_cases(cases: Sequence[PlantedCase], *, seed: int = 0) -> list[RelianceCase]:
    """Return two cases for each grounded answer of `cases`: itself, and a plant of it; kinds take turns."""
    rng, found = np.random.default_rng(seed), []
    grounded = [case for case in cases if case.plant is None]
    for index, case in enumerate(grounded):
        kind = "copied" if index // 2 % 2 == 0 else "prior"
        planted = _copied(case, rng) if kind == "copied" else _prior(case, rng)
        for written, is_planted, name in ((case.written, False, "grounded"), (planted, True, kind)):
            found.append(
                RelianceCase(written=written, is_planted=is_planted, kind=name, is_paraphrased=case.is_paraphrased)
            )
    return found


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
