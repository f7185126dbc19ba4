"""Conversations: an image, the answers that a teacher gave about it in one or two rounds, and its rating.

A file holds one JSON object a line: `{"image": "images/a.png", "rating": 3.2, "rounds": ["<think>...", ...]}`, and
optionally `"question"`. Paths are relative to the file's folder. Everything that is wrong with a file is reported in
one error before anything trains.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from train_iqa.nano.labels import LabelScale
from train_iqa.nano.rationale import answer1, answer2
from train_iqa.nano.synthetic import Sample
from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images.loading import load_image, save_png
from zoomiqa_reward.protocol import AnswerError, read_rating, read_route
from zoomiqa_reward.protocol.answers import ratings_in, require_quotable
from zoomiqa_reward.runs.outputs import part_folder, replacing

_KEYS = {"image", "rating", "rounds", "question"}
_MAX_SHOWN = 20


class ConversationError(ZoomIQAError, ValueError):
    """Conversations that cannot be trained on; the message lists every problem with its line."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One image with the answers to learn."""

    image: Any
    """Whatever `zoomiqa_reward.images.loading.load_image` takes; a path is read when its row is built."""
    rounds: tuple[str, ...]
    """The assistant's text of round 1 and, where it asks for a closer look, of round 2."""
    rating: float
    """1 bad .. 5 excellent; the target of rows that rate without words."""
    question: str | None = None
    """None: the protocol's first question."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rating) and 1 <= self.rating <= 5):
            raise ConversationError(f"rating={self.rating}: must be a number in 1..5")
        if len(self.rounds) not in (1, 2):
            raise ConversationError(f"{len(self.rounds)} rounds: the protocol has 1 or 2")
        for number, text in enumerate(self.rounds, start=1):
            if (count := len(ratings_in(text))) > 1:
                raise ConversationError(f"round {number} holds {count} answers: leave one, the first would count")
            try:
                rating = read_rating(text)
                wants_zoom = read_route(text).zoom
                require_quotable(text)
            except AnswerError as error:
                raise ConversationError(f"round {number} cannot be read, so it must not be learned: {error}") from error
            if not 1 <= rating <= 5:
                raise ConversationError(f"round {number} holds the rating {rating:g}: must be a number in 1..5")
            if number == 1 and len(self.rounds) == 2 and not wants_zoom:
                raise ConversationError("there is a round 2, but round 1 asks for no closer look")


def read_conversations(path: Path) -> list[Conversation]:
    """Return the conversations of a JSONL file, in order.

    Raises ConversationError with all problems: unreadable lines, unknown or missing keys, images that are not there
    or lie outside the file's folder, answers that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # `splitlines` also splits at U+2028 inside a text
    except (OSError, UnicodeDecodeError) as error:
        raise ConversationError(f"{path}: cannot be read: {error}") from error
    conversations, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            conversations.append(_parse(line, path.parent))
        except (ValueError, ArithmeticError, RecursionError, OSError) as error:
            problems.append(f"line {number}: {error}")
    if not conversations and not problems:
        problems.append("holds no conversation")
    if problems:
        shown = "\n  ".join(problems[:_MAX_SHOWN])
        more = f"\n  and {len(problems) - _MAX_SHOWN} more" if len(problems) > _MAX_SHOWN else ""
        raise ConversationError(f"{path}: {len(problems)} problems; nothing was started\n  {shown}{more}")
    return conversations


def _parse(line: str, root: Path) -> Conversation:
    data = json.loads(line)
    if not isinstance(data, dict) or not {"image", "rating", "rounds"} <= set(data) <= _KEYS:
        keys = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ConversationError(f"needs image, rating and rounds, may hold question; found {keys}")
    name, rating, rounds, question = data["image"], data["rating"], data["rounds"], data.get("question")
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ConversationError(f"image {name!r}: must be a path relative to the file's folder, without '..'")
    if not (root / name).is_file():
        raise ConversationError(f"image {name!r}: no such file in {root}")
    if not isinstance(rating, int | float) or isinstance(rating, bool):
        raise ConversationError(f"rating {rating!r}: must be a number in 1..5")
    if not isinstance(rounds, list) or not all(isinstance(text, str) for text in rounds):
        raise ConversationError(f"rounds {rounds!r:.80}: must be a list of one or two texts")
    if question is not None and not isinstance(question, str):
        raise ConversationError(f"question {question!r}: must be a text")
    return Conversation(image=root / name, rounds=tuple(rounds), rating=float(rating), question=question)


def write_conversations(path: Path, conversations: Iterable[Conversation], *, overwrite: bool = False) -> int:
    """Write the file and, in `images/` beside it, every image as PNG; return how many.

    Pixels are kept to 8 bits. A file that is there is only replaced with `overwrite`. Raises OutputError.
    """
    part_folder(path.parent / "images")
    count = 0
    with replacing(path, overwrite=overwrite) as half, open(half, "w", encoding="utf-8") as file:
        for count, conversation in enumerate(conversations, start=1):
            name = f"images/{count - 1:06d}.png"
            save_png(load_image(conversation.image), path.parent / name, overwrite=overwrite)
            row = {"image": name, "rating": round(conversation.rating, 4), "rounds": list(conversation.rounds)}
            if conversation.question is not None:
                row["question"] = conversation.question
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def synthetic_conversations(samples: Sequence[Sample], scale: LabelScale) -> list[Conversation]:
    """Return conversations about synthetic samples: rationales from the record of the damage, boxes that are true.

    Rounds 1 and 2 name the pseudo-MOS; round 2 exists exactly where the damage is confined to a region.
    """
    scores = np.stack([sample.scores for sample in samples]).astype(np.float64)
    conversations = []
    for sample, rating in zip(samples, scale.pseudo_mos(scores).tolist(), strict=True):
        text, box = f"{rating:.2f}", sample.record.box
        edges = None if box is None else tuple(f"{side:.2f}" for side in box)
        rounds = [answer1(sample.record, rating, text, edges)]
        if box is not None:
            rounds.append(answer2(sample.record, rating, text, first=rating))
        conversations.append(Conversation(image=sample.image, rounds=tuple(rounds), rating=rating))
    return conversations
