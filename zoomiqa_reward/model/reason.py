"""`reason`: the protocol in words, one or two rounds, and what is read from the answers.

Round 1 sees the whole image. If it asks for a closer look, round 2 is a fresh conversation that quotes round 1's
whole answer and shows the image and the crop. A greedy answer that cannot be read is asked for again, sampled, as often
as the protocol says (`Protocol.retries`). What each failure means that is left:

- round 2 unreadable: no rating; both turns are kept, so round 1's number is there for who wants it.
- round 1 readable but not routable (no box, say, or a control token spelled out, which cannot be quoted): its rating
  stands, with a warning.
- round 1 without rating and without a wish to look closer: no rating.
- no answer at all (a server that failed): no rating; the turns before it are kept.
- a number outside 1..5 is no rating: 72 is no better image than 5, and 0 no worse one than 1. The turn keeps it.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.images.loading import hash_pixels
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.direct import MIN_MASS
from zoomiqa_reward.model.draws import row_seed, sample_seeds
from zoomiqa_reward.model.generate import Completion, Generate, Sampling, generate
from zoomiqa_reward.model.gradients import refuse_dropout
from zoomiqa_reward.model.inputs import TokenRow, make_row
from zoomiqa_reward.model.ratings import Assessment, RatingSpread
from zoomiqa_reward.model.reading import SharedReading
from zoomiqa_reward.model.turns import PixelBox, Prompted, Turn, round1, round2
from zoomiqa_reward.protocol.answers import (
    AnswerError,
    ratings_in,
    read_rating,
    read_route,
    read_sections,
    read_tool,
    require_quotable,
)
from zoomiqa_reward.protocol.crops import box_shares, zoom
from zoomiqa_reward.protocol.spec import Protocol
from zoomiqa_reward.whole_numbers import batch_size_of, whole_numbers

STRICT_ROWS = 8
"""Answers about one image that are written together where `strict`, whatever `batch_size` is: who writes together may
change the last bits, and with them a word."""
RETRY_TEMPERATURE = 1.0
"""Of an answer that is asked for again."""


def refuse_levels(protocol: Protocol) -> None:
    """Raise ValueError for a protocol whose answers are single level words: they hold no reasons and no region."""
    if protocol.levels:
        raise ValueError(
            f"protocol {protocol.name!r} answers with one of {', '.join(protocol.levels)}, without reasons: use "
            "mode='direct', or a model and a protocol that describe images"
        )


Respond = Callable[[Sequence[Prompted], Sampling], list[Completion]]
"""What turns requests into answers, one each, in order: a model in this process, or a text server."""


@dataclass(frozen=True, kw_only=True)
class _Read:
    """One turn as read, and what went wrong."""

    turn: Turn
    wants_zoom: bool
    bbox: object
    """As it stands in the answer; `zoom` copes with any."""
    rating_error: str | None
    route_error: str | None
    is_truncated: bool
    has_failed: bool
    spread: RatingSpread | None
    retries: int = 0
    """How often it was asked for again."""

    @property
    def is_unreadable(self) -> bool:
        """Whether it says neither a rating in 1..5 nor where to look closer."""
        return not (1 <= self.turn.rating <= 5 or self.wants_zoom or self.has_failed)


def assess_images(
    checkpoint: Checkpoint,
    images: Iterable[Tensor],
    *,
    question: str | None = None,
    rounds: int = 2,
    sampling: Sampling,
    num_samples: int = 1,
    strict: bool = False,
    batch_size: int = 8,
    skip_empty: bool = True,
    retries: int = 0,
    write: Generate = generate,
) -> list[list[Assessment]]:
    """Return for each float32 CHW image its `num_samples` assessments.

    With a seed, what an image's samples draw follows from the seed and its pixels alone: equal images get equal
    samples. strict: only answers about the same image share a batch, `STRICT_ROWS` at a time, so they are bit-equal in
    any company and for any `batch_size`. Otherwise `batch_size` answers are written together, with drafts from earlier
    answers of the call (`drafts`), which may change the last bits of the logits. skip_empty: images without content are
    not asked about, see `assess_batch`; so is retries. `write` is what turns rows into answers.
    Raises ValueError for a model in training mode with dropout.
    """
    check_rounds(rounds)
    refuse_levels(checkpoint.protocol)
    refuse_dropout(checkpoint.model)
    base_seed = sampling.seed
    if isinstance(base_seed, tuple):
        raise ValueError("seed: one number; each answer's own is made of it, the image and the sample")
    batch_size = batch_size_of(batch_size)
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: must be at least 1")
    assessments: list[list[Assessment]] = []
    window: list[Tensor] = []
    per_window = 1 if strict else max(1, batch_size // num_samples)

    respond = _Writing(checkpoint, write, strict=strict)

    def flush() -> None:
        rows = [image for image in window for _ in range(num_samples)]
        seeds: list[int] = []
        if sampling.temperature > 0:
            seeds = [seed for image in window for seed in sample_seeds(image, num_samples, base_seed)]
        step = STRICT_ROWS if strict else batch_size
        answers: list[Assessment] = []
        for start in range(0, len(rows), step):
            batch_sampling = replace(sampling, seed=tuple(seeds[start : start + step])) if seeds else sampling
            answers += assess_batch(
                checkpoint.protocol, rows[start : start + step], respond, question=question, rounds=rounds,
                sampling=batch_sampling, skip_empty=skip_empty, retries=retries,
            )  # fmt: skip
        assessments.extend(answers[i : i + num_samples] for i in range(0, len(answers), num_samples))
        window.clear()
        respond.forget()

    for image in images:
        window.append(image)
        if len(window) == per_window:
            flush()
    if window:
        flush()
    return assessments


class _Writing:
    """Answers requests about images; what they share is prepared and read once, until it is forgotten."""

    def __init__(self, checkpoint: Checkpoint, write: Generate, *, strict: bool) -> None:
        self.checkpoint, self.shared = checkpoint, SharedReading()
        if strict:  # other answers would decide how many tokens a pass checks, and so its last bits
            self.shared.drafts = None
        self.prepared: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.write = partial(generate, shared=self.shared) if write is generate else write

    def __call__(self, asked: Sequence[Prompted], sampling: Sampling) -> list[Completion]:
        rows: list[TokenRow] = []
        for index, prompted in enumerate(asked):
            is_same = index > 0 and _asks_the_same(asked[index - 1], prompted)  # as the samples of an image do
            rows.append(rows[-1] if is_same else make_row(self.checkpoint, prompted, prepared=self.prepared))
        written = self.write(self.checkpoint, rows, sampling)
        return [
            replace(answer, text=prompted.start + answer.text) for prompted, answer in zip(asked, written, strict=True)
        ]

    def forget(self) -> None:
        """Drop the images; the text before them stays."""
        self.prepared.clear()
        self.shared.forget_images()


def _asks_the_same(first: Prompted, second: Prompted) -> bool:
    same_images = all(a is b for a, b in zip(first.images, second.images, strict=False))
    same_text = first.messages == second.messages and first.start == second.start
    return len(first.images) == len(second.images) and same_images and same_text


def check_rounds(rounds: int) -> None:
    """Raise ValueError for a number of rounds that the protocol does not have, TypeError for one that is not whole."""
    if whole_numbers(rounds=rounds)[0] not in (1, 2):
        raise ValueError(f"rounds={rounds}: the protocol has 1 or 2")


def assess_batch(
    protocol: Protocol,
    images: Sequence[Tensor],
    respond: Respond,
    *,
    question: str | None,
    rounds: int,
    sampling: Sampling,
    skip_empty: bool = True,
    retries: int = 0,
) -> list[Assessment]:
    """Return one assessment for each float32 CHW image; all first rounds are asked in one call, then all seconds.

    The seed of a second round is one more than that of its first. skip_empty: an image without content is not asked
    about; its assessment is not valid and says why (`images.content`). retries: how often a greedy answer that cannot
    be read is asked for again. It is sampled then, with a seed that follows from the image, the round and the attempt.
    """
    check_rounds(rounds)
    seeds = sampling.seed if isinstance(sampling.seed, tuple) else None
    empty = [contentless(image) for image in images] if skip_empty else []
    if any(empty):
        shown = [index for index, why in enumerate(empty) if why is None]
        if seeds is not None:
            sampling = replace(sampling, seed=tuple(seeds[index] for index in shown))
        kept = [images[index] for index in shown]
        answers_of = partial(
            assess_batch, protocol, question=question, rounds=rounds, sampling=sampling, retries=retries
        )
        read = iter(answers_of(kept, respond) if shown else ())
        return [next(read) if why is None else _without_content(why) for why in empty]
    asked = [replace(round1(protocol, image, question), start=protocol.answer_start(1)) for image in images]
    ask = partial(_ask, protocol, respond, retries=retries if sampling.temperature == 0 else 0)
    firsts = ask(1, asked, [None] * len(asked), sampling)
    results = [_final([first]) for first in firsts]
    again = [index for index, first in enumerate(firsts) if rounds == 2 and first.wants_zoom]
    if not again:
        return results
    asked, boxes = [], []
    for index in again:
        crop, box = zoom(images[index], firsts[index].bbox, protocol.crop)
        request = round2(protocol, images[index], crop, firsts[index].turn.text, question)
        asked.append(replace(request, start=protocol.answer_start(2)))
        boxes.append(box)
    second: int | tuple[int, ...] | None = None
    if seeds is not None:
        second = tuple(seeds[index] + 1 for index in again)
    elif isinstance(sampling.seed, int):
        second = sampling.seed + 1
    for index, closer in zip(again, ask(2, asked, boxes, replace(sampling, seed=second)), strict=True):
        results[index] = _final([firsts[index], closer])
    return results


def _ask(
    protocol: Protocol, respond: Respond, number: int, asked: Sequence[Prompted], crop_boxes: Sequence[PixelBox | None],
    sampling: Sampling, *, retries: int,
) -> list[_Read]:  # fmt: skip
    """Return the answers of one round as read; those that cannot be read are asked for again."""
    answers = respond(asked, sampling)
    rounds = [_read(protocol, number, *each) for each in zip(asked, answers, crop_boxes, strict=True)]
    for attempt in range(1, retries + 1):
        unreadable = [index for index, read in enumerate(rounds) if read.is_unreadable]
        if not unreadable:
            break
        seeds = tuple(row_seed("retry", hash_pixels(asked[index].images[0]), number, attempt) for index in unreadable)
        answers = respond(
            [asked[index] for index in unreadable], replace(sampling, temperature=RETRY_TEMPERATURE, seed=seeds)
        )
        for index, answer in zip(unreadable, answers, strict=True):
            read = _read(protocol, number, asked[index], answer, crop_boxes[index])
            rounds[index] = rounds[index] if read.has_failed else replace(read, retries=attempt)
    return rounds


def _without_content(why: str) -> Assessment:
    return Assessment(rating=math.nan, std=math.nan, turns=(), valid=False, error=why)


def _read(protocol: Protocol, number: int, prompted: Prompted, answer: Completion, crop_box: PixelBox | None) -> _Read:
    rating, rating_error, route, route_error, tool = math.nan, None, None, None, None
    height, width = prompted.images[0].shape[1:]  # of the whole image, also in round 2
    try:
        rating = read_rating(answer.text)
    except AnswerError as error:
        rating_error = answer.failure or str(error)
    try:
        require_quotable(answer.text)
        route = read_route(answer.text)
        tool = read_tool(answer.text)
    except AnswerError as error:
        route_error = str(error)
    turn = Turn(
        prompt="".join(item.get("text", "") for item in prompted.messages[-1]["content"]),
        text=answer.text,
        sections=read_sections(answer.text, protocol.sections1 if number == 1 else protocol.sections2),
        bbox=None if route is None else box_shares(route.bbox, width, height, protocol.box_margin),
        crop_box=crop_box,
        tool=tool,
        rating=rating,
    )
    return _Read(
        turn=turn,
        wants_zoom=route is not None and route.zoom,
        bbox=None if route is None else route.bbox,
        rating_error=rating_error,
        route_error=route_error,
        is_truncated=answer.is_truncated,
        has_failed=answer.failure is not None,
        spread=answer.spread,
    )


_DIRECTIONS = {"rises": 1, "falls": -1}
_CLAIM = re.compile(rf"\brating ({'|'.join(_DIRECTIONS)})[.,;]")


def _contradictions(rounds: Sequence[_Read]) -> list[str]:
    """Return what is odd about rounds: answers with different ratings in one text, a change that was none."""
    named = {number: ratings_in(turn.turn.text) for number, turn in enumerate(rounds, 1)}
    odd = [
        f"round {number}: several answers with the ratings {', '.join(map('{:g}'.format, ratings))}; the first counts"
        for number, ratings in named.items()
        if len(set(ratings)) > 1
    ]
    before, after = rounds[0].turn.rating, rounds[-1].turn.rating
    claim = _CLAIM.search(rounds[-1].turn.text) if len(rounds) > 1 else None
    if claim is not None and _DIRECTIONS[claim[1]] * (after - before) <= 0:
        odd.append(f"round 2 says that the rating {claim[1]}, but it was {before:g} and is {after:g}")
    return odd


def _final(rounds: Sequence[_Read]) -> Assessment:
    """Return what the last round says; without a rating there, what is wrong."""
    last = rounds[-1]
    cut = [f"round {number}: Answer truncated" for number, turn in enumerate(rounds, 1) if turn.is_truncated]
    turns = tuple(turn.turn for turn in rounds if not turn.has_failed)
    if last.rating_error is not None:
        reason = "; ".join([f"round {len(rounds)}: {last.rating_error}", *cut])
        return Assessment(rating=math.nan, std=math.nan, turns=turns, valid=False, error=reason)
    rating = last.turn.rating
    if not 1 <= rating <= 5:
        reason = f"round {len(rounds)}: rating is off the scale: {rating:g}; expected 1 to 5"
        return Assessment(rating=math.nan, std=math.nan, turns=turns, valid=False, error="; ".join([reason, *cut]))
    again = [
        f"round {number}: asked {1 + turn.retries} times; what was written before cannot be read"
        for number, turn in enumerate(rounds, 1)
        if turn.retries
    ]
    odd = [*again, *_contradictions(rounds), *cut]
    if len(rounds) == 1 and last.route_error is not None:
        odd = [f"round 1 cannot be routed, its rating is final: {last.route_error}", *odd]
    spread = last.spread
    std = math.nan if spread is None or spread.mass < MIN_MASS else spread.std
    return Assessment(rating=rating, std=std, turns=turns, valid=True, warning="; ".join(odd) or None, spread=spread)
