"""One image's way through the curation: ask, check the form, filter, ask again, in one or two rounds.

What comes out depends on nothing but the settings and the endpoints' answers, so a run that is started again after a
kill takes the same way with the answers in its journal.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from train_iqa.curation.config import CurateConfig
from train_iqa.curation.endpoint import Asker, EndpointReply
from train_iqa.curation.hints import Box, Hints, ImageHints, measure_hints
from train_iqa.curation.judges import Judge, JudgeError, check_consistency
from train_iqa.curation.prompts import (
    Messages,
    ask_continuation,
    ask_protocol,
    ask_protocol2,
    ask_round1,
    ask_round2,
    begun,
    without_images,
)
from train_iqa.curation.reliance import Continuation, compare
from train_iqa.curation.written import FormError, Written, read_written
from train_iqa.data import LabelledImage
from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.protocol import CropPolicy, Protocol, zoom
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS, ROUND2_SECTIONS

FILTERS = ("form", "rating", "consistency", "reliance")
_SHOWN = 400
"""Characters of a refused answer that its line keeps; the whole stands in the journal of calls."""


class _RefusedError(ZoomIQAError):
    def __init__(self, by: str, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.by, self.reason, self.detail = by, reason, detail


@dataclass(kw_only=True)
class _Work:
    """An image in work, with the log that its line will hold."""

    labelled: LabelledImage
    image: Tensor
    mos: float
    whole: Hints | None = None
    rejections: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"{self.labelled.dataset}/{self.labelled.id}"


@dataclass(frozen=True, kw_only=True)
class Curator:
    """Writes and filters the answers about one image at a time."""

    config: CurateConfig
    teacher: Asker
    judge: Judge
    protocol: Protocol | None = None
    """Of a teacher that is a Zoom-IQA model; None: it is asked with `config.prompts`."""

    async def curate(self, labelled: LabelledImage) -> dict[str, Any]:
        """Return the image's outcome: `status` kept or rejected, its `rounds`, and what was refused on the way.

        A refused round 2 leaves a kept round 1 in place. Raises EndpointError, ImageError, ValueError (too small).
        """
        image = await asyncio.to_thread(load_image, labelled.path)
        work = _Work(labelled=labelled, image=image, mos=min(5.0, max(1.0, labelled.mos)))
        first = await self._round(work, 1, (image,), lambda: self._ask1(work))
        rounds = [] if first is None else [first.render()]
        if first is not None and first.bbox is not None and self.config.rounds == 2:
            kept, policy = first, CropPolicy() if self.protocol is None else self.protocol.crop
            crop, shown = await asyncio.to_thread(zoom, image, first.bbox, policy)
            height, width = image.shape[1:]
            region = (shown[0] / width, shown[1] / height, shown[2] / width, shown[3] / height)
            ask = partial(self._ask2, work, crop, kept.render())
            second = await self._round(work, 2, (image, crop), ask, box=region)
            rounds += [] if second is None else [second.render()]
        return {
            "dataset": labelled.dataset, "id": labelled.id, "status": "kept" if rounds else "rejected",
            "rating": round(work.mos, 4), "rounds": rounds,
            "is_zooming": first is not None and first.bbox is not None,
            "rejections": work.rejections, "dropped": work.dropped,
        }  # fmt: skip

    def _ask1(self, work: _Work) -> Messages:
        if self.protocol is not None:
            return ask_protocol(self.protocol, work.image, self.config.max_pixels)
        return ask_round1(self.config.prompts, work.image, work.mos, self.config.max_pixels)

    def _ask2(self, work: _Work, crop: Tensor, answer: str) -> Messages:
        if self.protocol is not None:
            return ask_protocol2(self.protocol, work.image, crop, answer, self.config.max_pixels)
        return ask_round2(self.config.prompts, work.image, crop, answer, work.mos, self.config.max_pixels)

    async def _round(
        self, work: _Work, number: int, images: tuple[Tensor, ...], make: Callable[[], Messages],
        box: Box | None = None,
    ) -> Written | None:  # fmt: skip
        """Return the first answer of `attempts` that passes; `images`: what it is about; `box`: the crop's place."""
        messages = await asyncio.to_thread(make)
        for attempt in range(self.config.attempts):
            call = f"{work.key}#round{number}/attempt{attempt}"
            start = "" if self.protocol is None else self.protocol.answer_start(number)
            reply = await self.teacher.ask(f"{call}/teacher", messages, seed=self._seed(call), start=start)
            try:
                written = self._read(reply, number, work.mos)
                written, dropped = await self._consistent(work, written, number, call, box)
                await self._reliant(written, number, call, images, messages)
            except _RefusedError as refused:
                work.rejections.append(
                    {
                        "call": call, "round": number, "filter": refused.by, "reason": refused.reason,
                        "detail": refused.detail, "text": reply.text[:_SHOWN],
                    }
                )  # fmt: skip
            else:
                work.dropped += [{"round": number, "sentence": sentence, "why": why} for sentence, why in dropped]
                return written
        return None

    def _read(self, reply: EndpointReply, number: int, mos: float) -> Written:
        labels = ROUND1_SECTIONS if number == 1 else ROUND2_SECTIONS
        try:
            written = read_written(reply.text, labels, is_last=number == 2)
        except FormError as error:
            reason, _, detail = str(error).partition(": ")
            raise _RefusedError("form", "cut at max_tokens" if reply.is_cut else reason, detail) from error
        if abs(written.rating - mos) > self.config.rating_tolerance:
            raise _RefusedError("rating", "too far from people's", f"{written.rating:.2f} for {mos:.2f}")
        return written

    async def _consistent(
        self, work: _Work, written: Written, number: int, call: str, box: Box | None
    ) -> tuple[Written, tuple[tuple[str, str], ...]]:
        """Return what is left of an answer, and what was cut."""
        if self.config.consistency is None:
            return written, ()
        if work.whole is None:
            work.whole = await asyncio.to_thread(measure_hints, work.image)
        looked_at = written.bbox if number == 1 else box
        inside = None if looked_at is None else await asyncio.to_thread(measure_hints, work.image, looked_at)
        hints = ImageHints(whole=work.whole, box=inside)
        try:
            verdicts = await self.judge.judge(written, hints, key=call, is_crop=number == 2)
        except JudgeError as error:
            raise _RefusedError("consistency", "not judged", str(error)) from error
        consistency = check_consistency(written, verdicts, self.config.consistency)
        if consistency.written is None:
            detail = " | ".join(f"{sentence} ({why})" for sentence, why in consistency.dropped)
            raise _RefusedError("consistency", str(consistency.reason), detail)
        return consistency.written, consistency.dropped

    async def _reliant(
        self, written: Written, number: int, call: str, images: tuple[Tensor, ...], asked: Messages
    ) -> None:
        """Raise _RefusedError for an answer whose continuations are the same with and without the image."""
        config = self.config.reliance
        if config is None or number not in config.rounds:
            return
        if self.protocol is None:
            pixels = self.config.max_pixels
            seeing = await asyncio.to_thread(ask_continuation, self.config.prompts, written, images, pixels)
        else:  # it was never told the score
            seeing = begun(asked, written)
        kinds = []
        for kind, messages in (("blind", without_images(seeing)), ("seen", seeing)):
            kinds.append([await self._continue(f"{call}/{kind}{k}", messages) for k in range(config.samples)])
        reliance = compare(written, seen=kinds[1], blind=kinds[0], config=config)
        if not reliance.relied:
            raise _RefusedError("reliance", "the same without the image", reliance.describe())

    async def _continue(self, name: str, messages: Messages) -> Continuation:
        assert self.config.reliance is not None
        reason = ""
        for attempt in range(self.config.reliance.attempts):
            call = name if attempt == 0 else f"{name}/again{attempt}"
            answer = await self.teacher.ask(call, messages, seed=self._seed(call))
            try:
                return Continuation(written=read_written(answer.text, ()), entropy=answer.entropy)
            except FormError as error:
                reason = str(error)
        raise _RefusedError("reliance", "no readable continuation", reason)

    def _seed(self, call: str) -> int:
        digest = hashlib.sha256(f"{self.config.seed} {call}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1
