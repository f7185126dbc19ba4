"""Text from rows, written together: deterministic unless asked to sample, and then each row draws for itself."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoomiqa_reward.model.checkpoint import VISION_TOKENS, Checkpoint
from zoomiqa_reward.model.decode import TokenChoice, write_answers
from zoomiqa_reward.model.inputs import TokenRow, collate
from zoomiqa_reward.model.ratings import RatingSpread
from zoomiqa_reward.model.reading import SharedReading, reads_itself
from zoomiqa_reward.model.shared_state import exclusive


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is written."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 0.95
    top_k: int = 50
    max_new_tokens: int = 1024
    seed: int | tuple[int, ...] | None = None
    """Of the noise of each row: a tuple has one per row, of an int and the row's place one is made. None: one draw from
    torch's own generator decides. Without meaning for greedy."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: must be at least 0 (0 is greedy)")
        if not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"top_p={self.top_p} must be in (0, 1], top_k={self.top_k} at least 0 (0: all tokens), "
                f"max_new_tokens={self.max_new_tokens} at least 1"
            )

    def row_seeds(self, count: int) -> list[int]:
        """Return a seed for each of `count` rows. Raises ValueError for a tuple of another length."""
        if isinstance(self.seed, tuple):
            if len(self.seed) != count:
                raise ValueError(f"seed holds {len(self.seed)} for {count} rows: one per row is needed")
            return list(self.seed)
        base = int(torch.randint(2**62, (), device="cpu")) if self.seed is None else self.seed
        states = [np.random.SeedSequence([base, index]).generate_state(1, np.uint64)[0] for index in range(count)]
        return [int(state >> np.uint64(1)) for state in states]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer."""

    text: str
    is_truncated: bool
    """It ran into `max_new_tokens` before it ended."""
    spread: RatingSpread | None = None
    """Distribution at the rating's tokens, where the writer tells it; `generate` does not."""
    failure: str | None = None
    """Why there is no answer at all (a server's error); `text` is then empty."""


Generate = Callable[[Checkpoint, Sequence[TokenRow], Sampling], list[Completion]]


@torch.no_grad()
def generate(
    checkpoint: Checkpoint, rows: Sequence[TokenRow], sampling: Sampling, *, shared: SharedReading | None = None
) -> list[Completion]:
    """Return one answer for each row, in order, all written together.

    Only `sampling` decides how: what the checkpoint's own generation config says of temperature or repetition
    penalty is overridden. Image and vision tokens are never written. Each row draws from a generator of its own.
    shared: what was read already for the call that the rows belong to.
    """
    ends = end_tokens(checkpoint)
    if reads_itself(checkpoint):
        choice, shared = SampledChoice(checkpoint, sampling, len(rows)), shared or SharedReading()
        new = write_answers(
            checkpoint, rows, choice, max_new_tokens=sampling.max_new_tokens, ends=ends, shared=shared
        )  # fmt: skip
    else:
        new = plain_new_ids(checkpoint, rows, sampling)
    answers = []
    for tokens in new:
        end = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
        text = checkpoint.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        answers.append(Completion(text=text, is_truncated=end == len(tokens)))
    return answers


def plain_new_ids(checkpoint: Checkpoint, rows: Sequence[TokenRow], sampling: Sampling) -> list[list[int]]:
    """Return the new tokens of each row as transformers' `generate` writes them, left-padded, until all have ended."""
    batch = collate(checkpoint, rows)
    ids = write_ids(
        checkpoint, batch, sampling, sampling_processors(sampling, len(rows)) if sampling.temperature > 0 else []
    )
    return ids[:, batch["input_ids"].shape[1] :].tolist()


class SampledChoice(TokenChoice):
    """The likeliest token, or a draw as `sampling` says; never an image or vision token."""

    def __init__(self, checkpoint: Checkpoint, sampling: Sampling, num_rows: int) -> None:
        self.never = torch.tensor(suppressed_tokens(checkpoint), device=checkpoint.device)
        self.processors = sampling_processors(sampling, num_rows) if sampling.temperature > 0 else []
        self.takes_likeliest = not self.processors

    def scores(self, logits: Tensor) -> Tensor:
        """Return [rows, vocabulary]."""
        scores = logits.index_fill_(1, self.never, -torch.inf)
        for processor in self.processors:
            scores = processor(None, scores)
        return scores

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows' noise."""
        if self.processors:
            self.processors[-1].keep(rows)


def end_tokens(checkpoint: Checkpoint) -> list[int]:
    """Return the ids that end an answer: the generation config's and the tokenizer's."""
    configured = checkpoint.model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {checkpoint.tokenizer.eos_token_id}
    return sorted(int(token) for token in ids if token is not None)


def suppressed_tokens(checkpoint: Checkpoint) -> list[int]:
    """Return the ids that no answer may hold: an image token without an image breaks the next prompt."""
    config, vocabulary = checkpoint.model.config, checkpoint.tokenizer.get_vocab()
    ids = {vocabulary[token] for token in VISION_TOKENS if token in vocabulary}
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        if (token := getattr(config, name, None)) is not None:
            ids.add(int(token))
    return sorted(ids)


def sampling_processors(sampling: Sampling, num_rows: int) -> list[Any]:
    """Return the processors that make a draw of the greedy choice: temperature, top-k, top-p, and each row's noise."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from zoomiqa_reward.model.draws import RowNoise

    processors: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return [*processors, RowNoise(sampling.row_seeds(num_rows))]


def write_ids(
    checkpoint: Checkpoint, batch: dict[str, torch.Tensor], sampling: Sampling, processors: Sequence[Any]
) -> torch.Tensor:
    """Return the prompts and answers as ids [rows, tokens]: the likeliest token each time, after the processors.

    Qwen-VL keeps the positions of the rows that it is answering on the model, so one thread at a time writes.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    config = GenerationConfig(
        do_sample=False, repetition_penalty=1.0, num_beams=1, max_new_tokens=sampling.max_new_tokens,
        eos_token_id=end_tokens(checkpoint), pad_token_id=checkpoint.tokenizer.pad_token_id,
        suppress_tokens=suppressed_tokens(checkpoint),
    )  # fmt: skip
    writer = copy.copy(checkpoint.model)  # the same weights
    writer.generation_config = config  # `generate` takes what `config` leaves open from the checkpoint's own
    with exclusive(checkpoint.model):
        ids: torch.Tensor = writer.generate(
            **batch, generation_config=config, logits_processor=LogitsProcessorList(processors)
        )
    return ids
