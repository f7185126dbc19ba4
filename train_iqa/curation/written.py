"""A teacher's answer as parts: labelled sections, box, rating and tool; read strictly, written in one form.

What is kept is always written anew, so that all rows have one form whatever the teacher's habits are.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.protocol import AnswerError, read_rating, read_route, read_sections, read_tool, usable_box
from zoomiqa_reward.protocol.answers import require_quotable

Box = tuple[float, float, float, float]
DECISION = -1
"""Place of the section that decides: the last one of either round."""
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])|\n+")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|cf|vs|approx|etc|ca|no|fig)\.$", re.IGNORECASE)


class FormError(ZoomIQAError, ValueError):
    """An answer that has not the form of the protocol; the message is "reason: what was found"."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One answer of a round."""

    sections: tuple[tuple[str, tuple[str, ...]], ...]
    """Label and sentences of each section, in the protocol's order; no section is empty."""
    bbox: Box | None
    """Shares of the sides, corners in order; None where no closer look is wanted."""
    rating: float

    @property
    def tool(self) -> str:
        """`crop` or `final`."""
        return "final" if self.bbox is None else "crop"

    @property
    def sentences(self) -> tuple[tuple[int, str], ...]:
        """(place of the section, sentence), in order."""
        return tuple((index, sentence) for index, (_, texts) in enumerate(self.sections) for sentence in texts)

    def partial(self) -> str:
        """Return the reasoning up to where it decides: what a continuation without the image starts from."""
        return _lines(self.sections[:DECISION])

    def render(self) -> str:
        """Return the answer's text."""
        sides = (0, 0, 0, 0) if self.bbox is None else tuple(f"{side:.2f}" for side in self.bbox)
        return (
            f"<think>\n{_lines(self.sections)}\n</think>\n"
            f'<answer>{{"bbox_2d": [{", ".join(map(str, sides))}], "rating": {self.rating:.2f}, '
            f'"tool": "{self.tool}"}}</answer>'
        )

    def without(self, dropped: Sequence[int]) -> "Written":
        """Return the answer without the sentences at these places of `sentences`; emptied sections are an error."""
        gone, kept, count = set(dropped), [], 0
        for label, texts in self.sections:
            left = tuple(sentence for index, sentence in enumerate(texts, start=count) if index not in gone)
            count += len(texts)
            if not left:
                raise ValueError(f"{label}: no sentence is left")
            kept.append((label, left))
        return replace(self, sections=tuple(kept))


def _lines(sections: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    return "\n".join(f"{label}: {' '.join(texts)}" for label, texts in sections)


def read_written(text: str, labels: Sequence[str], *, is_last: bool = False) -> Written:
    """Return the parts of an answer whose reasoning must hold all `labels`; is_last: no closer look is left to ask for.

    No labels: only the answer itself is read.

    Raises FormError: no readable answer, or one that no prompt can quote; a section that is missing or has no word;
    a rating outside 1..5; a box that is no shares of the image's sides or has no area; box and tool that disagree; a
    box in the last round.
    """
    try:
        rating, route, tool = read_rating(text), read_route(text), read_tool(text)
        require_quotable(text)
    except AnswerError as error:
        raise FormError(f"no readable answer: {error}") from error
    if not 1 <= rating <= 5:
        raise FormError(f"rating off the scale: {rating:g} is not in 1..5")
    results = {label: split_sentences(section) for label, section in read_sections(text, labels).items()}
    if missing := [label for label in labels if not results.get(label)]:
        raise FormError(f"section missing: {missing[0]}")
    bbox = usable_box(route.bbox)
    if tool not in ("crop", "final") or (bbox is None) != (tool == "final"):
        raise FormError(f"box and tool disagree: {route.bbox!r} with tool {tool!r}")
    if bbox is not None:
        if is_last:
            raise FormError("last round asks for a closer look: it must name four zeros and final")
        if not all(0 <= side <= 1 for side in bbox):
            raise FormError(f"box off the scale: {list(bbox)} are no shares 0..1 of the sides")
        left, right = sorted(round(side, 2) for side in (bbox[0], bbox[2]))
        top, bottom = sorted(round(side, 2) for side in (bbox[1], bbox[3]))
        bbox = (left, top, right, bottom)
        if left == right or top == bottom:
            raise FormError(f"box without area: {list(bbox)}")
    return Written(sections=tuple((label, results[label]) for label in labels), bbox=bbox, rating=rating)


def split_sentences(text: str) -> tuple[str, ...]:
    """Return the sentences of a section; lines and list marks end them, decimals and abbreviations do not.

    What holds no letter and no digit, such as a dash alone, is none.

    >>> split_sentences("Noise, e.g. Grain, at 0.5 strength. It is clear.")
    ('Noise, e.g. Grain, at 0.5 strength.', 'It is clear.')
    """
    sentences: list[str] = []
    joins = False
    for piece in _END.split(text):
        sentence = re.sub(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+", "", piece).strip()
        if re.search(r"\w", sentence) is None:
            continue
        if joins:
            sentences[-1] = f"{sentences[-1]} {sentence}"
        else:
            sentences.append(sentence)
        joins = _ABBREVIATION.search(sentence) is not None
    return tuple(sentences)


def box_difference(first: Box | None, second: Box | None) -> float:
    """Return 1 - IoU of two boxes; 0 where neither answer names one, 1 where only one does."""
    if first is None or second is None:
        return 0.0 if first is second else 1.0
    from train_iqa.evaluation.grounding import iou

    difference = 1.0 - iou(first, second)
    return 0.0 if math.isclose(difference, 0.0, abs_tol=1e-12) else difference
