"""Judges compare an answer with the hints, sentence by sentence; a filter then drops sentences or refuses the answer.

There are two judges with one interface; the report names the one that was used. The rules (`RulesJudge`) need no
endpoint and give the same verdicts every time; a sentence that their words do not cover passes as `unclear`. A model
(`ModelJudge`) reads the hints in words and the numbered sentences, and returns a JSON verdict on each. If its reply
cannot be used, it is asked again; after that the answer counts as not judged.

Hint-Augmented Consistency Filtering drops the sentences that the hints contradict, if the text stays whole: the section
that decides loses nothing, every section keeps a sentence, at most `max_dropped_share` of all sentences go, and no
sentence that stays refers back to one that goes. Otherwise the answer is refused and the teacher is asked again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dirtyjson

from train_iqa.curation.claims import read_claims
from train_iqa.curation.endpoint import Asker
from train_iqa.curation.hints import ImageHints
from train_iqa.curation.prompts import Prompts, ask_judge
from train_iqa.curation.thresholds import HintThresholds, shipped
from train_iqa.curation.written import DECISION, Written
from zoomiqa_reward.errors import ZoomIQAError

VERDICTS = ("match", "contradiction", "unclear")
WISHES = "Directions for Improvement"


@dataclass(frozen=True, kw_only=True)
class JudgeVerdict:
    """On one sentence."""

    verdict: str
    """One of `VERDICTS`; `unclear`: it says nothing that a hint speaks about."""
    why: str = ""


class JudgeError(ZoomIQAError, ValueError):
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
        thresholds, verdicts = self.thresholds or shipped(), []
        last = len(written.sections) + DECISION
        for index, sentence in written.sentences:
            is_wish = written.sections[index][0] == WISHES
            claims = read_claims(
                sentence, is_wish=is_wish, is_about_crop=is_crop and index != last, box=_whereabouts(written, hints)
            )
            wrong = [c for c in claims if thresholds.contradicts(c.state, c.is_present, hints, in_box=c.in_box)]
            if wrong:
                why = "; ".join(
                    f"{'' if c.is_present else 'not '}{c.state}, but the hints say otherwise" for c in wrong
                )
                verdicts.append(JudgeVerdict(verdict="contradiction", why=why))
            else:
                verdicts.append(JudgeVerdict(verdict="match" if claims else "unclear"))
        return verdicts


def _whereabouts(written: Written, hints: ImageHints) -> tuple[float, float, float, float] | None:
    """Return the box that the sentences may speak of; round 2 names none of its own, and looks at the whole crop."""
    if hints.box is None:
        return None
    return written.bbox or (0.0, 0.0, 1.0, 1.0)


ATTEMPTS = 3


class ModelJudge:
    """Decides by an OpenAI-compatible endpoint; it sees hints and text, never the image."""

    def __init__(
        self, asker: Asker, prompts: Prompts, *, thresholds: HintThresholds | None = None, seed: int = 0
    ) -> None:
        self.asker, self.prompts, self.seed = asker, prompts, seed
        self.thresholds = thresholds or shipped()
        self.name = f"model {asker.endpoint.model}"

    async def judge(
        self, written: Written, hints: ImageHints, *, key: str = "", is_crop: bool = False
    ) -> list[JudgeVerdict]:
        """Return a verdict a sentence. Raises JudgeError where no reply of `ATTEMPTS` can be used, EndpointError."""
        messages = ask_judge(self.prompts, self.thresholds, written, hints, is_crop=is_crop)
        reason = ""
        for attempt in range(ATTEMPTS):
            reply = await self.asker.ask(f"{key}/judge{attempt}", messages, seed=self.seed + attempt)
            try:
                return read_verdicts(reply.text, len(written.sentences))
            except JudgeError as error:
                reason = str(error)
        raise JudgeError(f"no usable reply in {ATTEMPTS}: {reason}")


def read_verdicts(text: str, count: int) -> list[JudgeVerdict]:
    """Return the verdicts on sentences 1..count. Raises JudgeError: no JSON, a sentence missing, an unknown verdict."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise JudgeError("the reply holds no JSON object")
    try:
        data = json.loads(text[start : end + 1])
    except ValueError:
        try:
            data = dirtyjson.loads(text[start : end + 1])
        except (ValueError, ArithmeticError, TypeError, LookupError, RecursionError) as error:
            raise JudgeError(f"the reply is not readable as JSON: {error}") from error
    rows = data.get("sentences") if isinstance(data, Mapping) else None
    if not isinstance(rows, list):
        raise JudgeError("the reply holds no list of sentences")
    results: dict[int, JudgeVerdict] = {}
    for row in rows:
        number, verdict = _entry(row)
        if verdict.verdict not in VERDICTS:
            raise JudgeError(f"sentence {number}: verdict {verdict.verdict!r} is none of {', '.join(VERDICTS)}")
        if number in results:
            raise JudgeError(f"sentence {number} is judged twice")
        results[number] = verdict
    if set(results) != set(range(1, count + 1)):
        raise JudgeError(f"sentences {sorted(results)} are judged, 1..{count} were asked for")
    return [results[number] for number in range(1, count + 1)]


def _entry(row: Any) -> tuple[int, JudgeVerdict]:
    if not isinstance(row, Mapping) or type(row.get("number")) is not int or not isinstance(row.get("verdict"), str):
        raise JudgeError(f"an entry without number and verdict: {str(row)[:80]}")
    return row["number"], JudgeVerdict(verdict=row["verdict"].strip().lower(), why=str(row.get("why") or ""))


_REFERS_BACK = re.compile(
    r"^\W*(?:this|these|that|those|it|its|they|their|such|both|there|here|so|also|too|similarly|likewise)\b", re.I
)


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """When an answer with dropped sentences is still an answer."""

    max_dropped_share: float = 0.34
    """Of all sentences; above it the teacher is asked again."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_dropped_share < 1:
            raise ValueError(f"max_dropped_share={self.max_dropped_share}: must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """What the filter decided."""

    written: Written | None
    """What is left; None: refused."""
    dropped: tuple[tuple[str, str], ...] = ()
    """(sentence, why) of each contradicted sentence, also where the whole answer was refused."""
    reason: str | None = None
    """Why it was refused."""


def check_consistency(written: Written, verdicts: Sequence[JudgeVerdict], config: ConsistencyConfig) -> Consistency:
    """Return what is left of an answer. Raises ValueError where verdicts and sentences differ in number."""
    sentences = written.sentences
    if len(verdicts) != len(sentences):
        raise ValueError(f"{len(verdicts)} verdicts for {len(sentences)} sentences")
    gone = [index for index, item in enumerate(verdicts) if item.verdict == "contradiction"]
    dropped = tuple((sentences[index][1], verdicts[index].why) for index in gone)
    if not gone:
        return Consistency(written=written)
    last = len(written.sections) + DECISION
    if any(sentences[index][0] == last for index in gone):
        return Consistency(written=None, dropped=dropped, reason="the decision is contradicted")
    if len(gone) > config.max_dropped_share * len(sentences):
        return Consistency(written=None, dropped=dropped, reason="too many sentences are contradicted")
    if any(_follows(sentences, index, gone) for index in gone):
        return Consistency(written=None, dropped=dropped, reason="a sentence refers to a contradicted one")
    try:
        return Consistency(written=written.without(gone), dropped=dropped)
    except ValueError:
        return Consistency(written=None, dropped=dropped, reason="a section would be empty")


def _follows(sentences: Sequence[tuple[int, str]], index: int, gone: Sequence[int]) -> bool:
    """Return whether the next sentence of the same section stays, and refers back."""
    after = index + 1
    if after >= len(sentences) or after in gone or sentences[after][0] != sentences[index][0]:
        return False
    return _REFERS_BACK.search(sentences[after][1]) is not None
