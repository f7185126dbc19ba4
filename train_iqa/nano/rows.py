"""Training rows of the two reasoning rounds: token ids, rotary positions, and which tokens are targets.

A number is not a text target: its digits are learned from a bell about the true value (`language.py`), so a row
only says where numbers stand and what they are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from train_iqa.nano.degradations import DamageRecord
from train_iqa.nano.rationale import answer1, answer2
from zoomiqa_reward.model.turns import Prompted, round1, round2
from zoomiqa_reward.protocol import Protocol

NO_IMAGE = torch.empty(0)  # rows hold only the request's texts; image tokens are put in later
RATING_SIGMA, BOX_SIGMA = 0.15, 0.02
GUESS_SIGMA = 0.5
"""Round 1, as round 2 quotes it, rates with an error of this size, or its number would simply be copied."""
FIRST_QUESTION_SHARE = 0.7
Grid = tuple[int, int]
IMAGE_TOKEN = "<|image_pad|>"


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number of two decimals inside a row."""

    at: int
    """Position of its first digit."""
    is_box: bool
    """An edge of a box, 0..1; else a rating, 1..5."""
    value: float
    hundredths: int
    """What stands in the row: drawn about `value`."""


@dataclass(frozen=True, kw_only=True)
class NanoRow:
    """One request and its answer."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    """(3, tokens): the rotary positions that the model itself would take."""
    texts: NDArray[np.int64]
    """Positions of the target tokens that are exact."""
    numbers: tuple[Number, ...]
    grids: tuple[Grid, ...]
    is_first: bool


def mrope_positions(ids: NDArray[np.int64], grids: Sequence[Grid], image_id: int) -> NDArray[np.int64]:
    """Return (3, tokens) positions in time, height and width of a row with one still image for each grid."""
    positions, current, at, waiting = np.zeros((3, len(ids)), dtype=np.int64), 0, 0, list(grids)
    while at < len(ids):
        if ids[at] == image_id:
            rows, columns = waiting.pop(0)
            span = slice(at, at + rows * columns)
            positions[0, span] = current
            positions[1, span] = current + np.repeat(np.arange(rows), columns)
            positions[2, span] = current + np.tile(np.arange(columns), rows)
            current, at = current + max(rows, columns), at + rows * columns
        else:
            positions[:, at] = current
            current, at = current + 1, at + 1
    return positions


class RowBuilder:
    """Writes rows with the very requests that inference sends."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, protocol: Protocol, *, box_sigma: float = BOX_SIGMA) -> None:
        self.tokenizer, self.protocol, self.box_sigma = tokenizer, protocol, box_sigma
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.digit_ids = [tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)]
        self._first_prompts: dict[tuple[str, Grid], list[int]] = {}

    def question(self, rng: np.random.Generator) -> str:
        """Return one of the protocol's questions, mostly the first."""
        questions = self.protocol.questions
        first = rng.random() < FIRST_QUESTION_SHARE
        return questions[0] if first else questions[int(rng.integers(0, len(questions)))]

    def prompt_ids(self, prompted: Prompted, grids: Sequence[Grid]) -> list[int]:
        """Return a request's tokens with room for the images."""
        text = self.tokenizer.apply_chat_template(list(prompted.messages), tokenize=False, add_generation_prompt=True)
        pieces = text.split(IMAGE_TOKEN)
        for k, (rows, columns) in enumerate(grids):
            pieces[k] += IMAGE_TOKEN * (rows * columns)
        return self.tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]

    def first_prompt(self, question: str, grid: Grid) -> list[int]:
        """Return the tokens of round 1's request about an image of `grid` tokens."""
        key = question, grid
        if key not in self._first_prompts:
            self._first_prompts[key] = self.prompt_ids(round1(self.protocol, NO_IMAGE, question), [grid])
        return self._first_prompts[key]

    def first(
        self, record: DamageRecord, grid: Grid, label: float, rng: np.random.Generator, *, short: bool = False
    ) -> NanoRow:
        """Return round 1's row; a `short` one is without its thoughts: only box, rating and decision."""
        prompt = self.first_prompt(self.question(rng), grid)
        text, drawn = self._first_answer(record, label, self.box_sigma, rng)
        row = self._row(prompt, text[text.index("<answer>") :] if short else text, drawn, [grid], is_first=True)
        # An answer begins with its thoughts, so a short row teaches its numbers and what follows, not its beginning.
        return replace(row, texts=row.texts[row.texts > row.numbers[0].at]) if short else row

    def second(
        self,
        record: DamageRecord,
        claimed: DamageRecord,
        grid: Grid,
        crop: Grid,
        label: float,
        rng: np.random.Generator,
    ) -> NanoRow:
        """Return round 2's row: `record` is the truth, and the quoted round 1 describes `claimed` and misjudges it."""
        guess = float(np.clip(label + rng.normal(0, GUESS_SIGMA), 1, 5))
        quoted, _ = self._first_answer(claimed, guess, BOX_SIGMA, rng)
        request = round2(self.protocol, NO_IMAGE, NO_IMAGE, quoted, self.question(rng))
        rating = _drawn(label, RATING_SIGMA, 100, 500, rng)
        text = answer2(record, label, f"{rating / 100:.2f}", guess)
        prompt = self.prompt_ids(request, [grid, crop])
        return self._row(prompt, text, [(False, label, rating)], [grid, crop], is_first=False)

    def _first_answer(
        self, record: DamageRecord, label: float, box_sigma: float, rng: np.random.Generator
    ) -> tuple[str, list[tuple[bool, float, int]]]:
        numbers, texts = [], None
        if record.box is not None:
            edges = [_drawn(edge, box_sigma, 0, 100, rng) for edge in record.box]
            texts = tuple(f"{edge / 100:.2f}" for edge in edges)
            numbers = [(True, value, edge) for value, edge in zip(record.box, edges, strict=True)]
        rating = _drawn(label, RATING_SIGMA, 100, 500, rng)
        return answer1(record, label, f"{rating / 100:.2f}", texts), [*numbers, (False, label, rating)]

    def _row(
        self,
        prompt: list[int],
        answer: str,
        drawn: list[tuple[bool, float, int]],
        grids: Sequence[Grid],
        *,
        is_first: bool,
    ) -> NanoRow:
        encoded = self.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
        starts = {offset[0]: len(prompt) + k for k, offset in enumerate(encoded["offset_mapping"])}
        begin = answer.index("<answer>")
        spans = [begin + match.start() for match in re.finditer(r"\d\.\d\d", answer[begin:])]
        numbers = tuple(
            Number(at=starts[span], is_box=is_box, value=value, hundredths=hundredths)
            for span, (is_box, value, hundredths) in zip(spans, drawn, strict=True)
        )
        digits = {number.at + offset for number in numbers for offset in (0, 2, 3)}
        ids = np.array([*prompt, *encoded["input_ids"], self.end_id])
        return NanoRow(
            ids=ids,
            positions=mrope_positions(ids, grids, self.image_id),
            texts=np.array([k for k in range(len(prompt), len(ids)) if k not in digits]),
            numbers=numbers,
            grids=tuple(grids),
            is_first=is_first,
        )


def _drawn(value: float, sigma: float, low: int, high: int, rng: np.random.Generator) -> int:
    return int(np.clip(round(100 * (value + rng.normal(0, sigma))), low, high))


def mirrored(record: DamageRecord) -> DamageRecord:
    """Return the record of the image flipped left to right."""
    if record.box is None:
        return record
    left, top, right, bottom = record.box
    return DamageRecord(steps=record.steps, box=(1 - right, top, 1 - left, bottom))
