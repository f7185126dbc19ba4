"""Text from rows: transformers' `generate`, batched with left padding, deterministic unless asked to sample."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from zoomiqa_reward.model.checkpoint import VISION_TOKENS, Checkpoint
from zoomiqa_reward.model.inputs import Row, collate
from zoomiqa_reward.model.ratings import RatingSpread


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is written."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 0.95
    top_k: int = 50
    max_new_tokens: int = 1024
    seed: int | None = None
    """None: the global random state decides. Without meaning for greedy."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature}: must be at least 0 (0 is greedy)")
        if not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"top_p={self.top_p} must be in (0, 1], top_k={self.top_k} at least 0 (0: all tokens), "
                f"max_new_tokens={self.max_new_tokens} at least 1"
            )


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


Generate = Callable[[Checkpoint, Sequence[Row], Sampling], list[Completion]]


@torch.no_grad()
def generate(checkpoint: Checkpoint, rows: Sequence[Row], sampling: Sampling) -> list[Completion]:
    """Return one answer for each row, in order, all written in one batch.

    Only `sampling` decides how: what the checkpoint's own generation config says of temperature or repetition
    penalty is overridden. Image and vision tokens are never written. The global random state is left as it was
    where a seed is given.
    """
    from transformers import GenerationConfig

    batch = collate(checkpoint, rows)
    ends = end_tokens(checkpoint)
    is_sampled = sampling.temperature > 0
    config = GenerationConfig(
        do_sample=is_sampled,
        temperature=sampling.temperature if is_sampled else 1.0,
        top_p=sampling.top_p if is_sampled else 1.0,
        top_k=sampling.top_k if is_sampled else 50,
        repetition_penalty=1.0,
        num_beams=1,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=checkpoint.tokenizer.pad_token_id,
        suppress_tokens=suppressed_tokens(checkpoint),
    )
    with _seeded(sampling.seed if is_sampled else None, checkpoint.device):
        ids = checkpoint.model.generate(**batch, generation_config=config)
    answers = []
    for new in ids[:, batch["input_ids"].shape[1] :].tolist():
        end = next((place for place, token in enumerate(new) if token in ends), len(new))
        text = checkpoint.tokenizer.decode(new[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        answers.append(Completion(text=text, is_truncated=end == len(new)))
    return answers


def end_tokens(checkpoint: Checkpoint) -> list[int]:
    """Return the ids that end an answer: the generation config's and the tokenizer's."""
    own = checkpoint.model.generation_config.eos_token_id
    ids = set(own if isinstance(own, list) else [own]) | {checkpoint.tokenizer.eos_token_id}
    return sorted(int(token) for token in ids if token is not None)


def suppressed_tokens(checkpoint: Checkpoint) -> list[int]:
    """Return the ids that no answer may hold: an image token without an image breaks the next prompt."""
    config, known = checkpoint.model.config, checkpoint.tokenizer.get_vocab()
    ids = {known[token] for token in VISION_TOKENS if token in known}
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        if (token := getattr(config, name, None)) is not None:
            ids.add(int(token))
    return sorted(ids)


@contextmanager
def _seeded(seed: int | None, device: torch.device):
    """`generate` takes no generator, so the global state is seeded and put back."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
