"""Hint-Augmented Consistency Filtering: sentences that the hints contradict are dropped, or the answer is refused.

Sentences are dropped where the text stays whole: none of them stands in the section that decides; every section keeps a
sentence; at most `max_dropped_share` of all sentences go; and no sentence that stays refers back to one that goes.
Otherwise the teacher is asked again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from train_iqa.curation.judges import JudgeVerdict
from train_iqa.curation.written import DECISION, Written

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
    gone = [place for place, one in enumerate(verdicts) if one.verdict == "contradiction"]
    dropped = tuple((sentences[place][1], verdicts[place].why) for place in gone)
    if not gone:
        return Consistency(written=written)
    last = len(written.sections) + DECISION
    if any(sentences[place][0] == last for place in gone):
        return Consistency(written=None, dropped=dropped, reason="the decision is contradicted")
    if len(gone) > config.max_dropped_share * len(sentences):
        return Consistency(written=None, dropped=dropped, reason="too many sentences are contradicted")
    if any(_follows(sentences, place, gone) for place in gone):
        return Consistency(written=None, dropped=dropped, reason="a sentence refers to a contradicted one")
    try:
        return Consistency(written=written.without(gone), dropped=dropped)
    except ValueError:
        return Consistency(written=None, dropped=dropped, reason="a section would be empty")


def _follows(sentences: Sequence[tuple[int, str]], place: int, gone: Sequence[int]) -> bool:
    """Return whether the next sentence of the same section stays, and refers back."""
    after = place + 1
    if after >= len(sentences) or after in gone or sentences[after][0] != sentences[place][0]:
        return False
    return _REFERS_BACK.search(sentences[after][1]) is not None
