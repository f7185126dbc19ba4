"""Who decides, sentence by sentence, whether an answer agrees with the hints: rules on words, or a model.

Both have one interface; a report says which one judged. The rules need no endpoint and are the same every time; what
their words do not cover passes as `unclear`. A model (`model_judge.py`) reads everything and costs tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from train_iqa.curation.claims import read_claims
from train_iqa.curation.hints import ImageHints
from train_iqa.curation.thresholds import HintThresholds, shipped
from train_iqa.curation.written import DECISION, Written

VERDICTS = ("match", "contradiction", "unclear")
WISHES = "Directions for Improvement"


@dataclass(frozen=True, kw_only=True)
class JudgeVerdict:
    """On one sentence."""

    verdict: str
    """One of `VERDICTS`; `unclear`: it says nothing that a hint speaks about."""
    why: str = ""


class JudgeError(ValueError):
    """A judge whose answer cannot be used; never read as a verdict."""


class Judge(Protocol):
    """What the consistency filter asks."""

    name: str
    """`rules`, or `model NAME`: stands in every report."""

    async def judge(
        self, written: Written, hints: ImageHints, *, key: str = "", is_crop: bool = False
    ) -> Sequence[JudgeVerdict]:
        """Return a verdict a sentence, in the order of `written.sentences`. Raises JudgeError.

        key: names the call in the journal. is_crop: the answer is about the crop of the last round.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RulesJudge:
    """Decides by the lexicon's claims and the hints' thresholds; `unclear` where a sentence makes no claim it knows."""

    thresholds: HintThresholds | None = None
    """None: those of this release."""
    name: str = "rules"

    async def judge(
        self, written: Written, hints: ImageHints, *, key: str = "", is_crop: bool = False
    ) -> list[JudgeVerdict]:
        """Return a verdict a sentence."""
        return self.verdicts(written, hints, is_crop=is_crop)

    def verdicts(self, written: Written, hints: ImageHints, *, is_crop: bool = False) -> list[JudgeVerdict]:
        """Return a verdict a sentence; a contradicted claim decides for the whole sentence."""
        thresholds, found = self.thresholds or shipped(), []
        last = len(written.sections) + DECISION
        for place, sentence in written.sentences:
            is_wish = written.sections[place][0] == WISHES
            claims = read_claims(
                sentence, is_wish=is_wish, is_about_crop=is_crop and place != last, box=_whereabouts(written, hints)
            )
            wrong = [c for c in claims if thresholds.contradicts(c.state, c.is_present, hints, in_box=c.in_box)]
            if wrong:
                why = "; ".join(
                    f"{'' if c.is_present else 'not '}{c.state}, but the hints say otherwise" for c in wrong
                )
                found.append(JudgeVerdict(verdict="contradiction", why=why))
            else:
                found.append(JudgeVerdict(verdict="match" if claims else "unclear"))
        return found


def _whereabouts(written: Written, hints: ImageHints) -> tuple[float, float, float, float] | None:
    """Return the box that the sentences may speak of; round 2 names none of its own, and looks at the whole crop."""
    if hints.box is None:
        return None
    return written.bbox or (0.0, 0.0, 1.0, 1.0)
