"""A model as the judge: it reads the hints in words and the numbered sentences, and gives a JSON verdict on each.

A reply that cannot be used is never a verdict: the judge is asked again, and then the answer is not judged at all.
"""

import json
from collections.abc import Mapping
from typing import Any

import dirtyjson

from train_iqa.curation.endpoint import Asker
from train_iqa.curation.hints import ImageHints
from train_iqa.curation.judges import VERDICTS, JudgeError, JudgeVerdict
from train_iqa.curation.prompts import Prompts, ask_judge
from train_iqa.curation.thresholds import HintThresholds, shipped
from train_iqa.curation.written import Written

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
    found: dict[int, JudgeVerdict] = {}
    for row in rows:
        number, verdict = _entry(row)
        if verdict.verdict not in VERDICTS:
            raise JudgeError(f"sentence {number}: verdict {verdict.verdict!r} is none of {', '.join(VERDICTS)}")
        if number in found:
            raise JudgeError(f"sentence {number} is judged twice")
        found[number] = verdict
    if set(found) != set(range(1, count + 1)):
        raise JudgeError(f"sentences {sorted(found)} are judged, 1..{count} were asked for")
    return [found[number] for number in range(1, count + 1)]


def _entry(row: Any) -> tuple[int, JudgeVerdict]:
    if not isinstance(row, Mapping) or type(row.get("number")) is not int or not isinstance(row.get("verdict"), str):
        raise JudgeError(f"an entry without number and verdict: {str(row)[:80]}")
    return row["number"], JudgeVerdict(verdict=row["verdict"].strip().lower(), why=str(row.get("why") or ""))
