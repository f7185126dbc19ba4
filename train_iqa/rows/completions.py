"""A prompt with its answer as one training row, and the log-probabilities of the answers of a batch.

The layout is that of generation: prompts end at one column (padded on the left), answers start there (padded on the
right). So what was sampled and what is priced later see the same positions, and only the answers' logits are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.generate import suppressed_tokens
from zoomiqa_reward.model.inputs import TokenRow, collate, make_row
from zoomiqa_reward.model.turns import Prompted


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """One (prompt, answer) pair in tokens."""

    prompt: TokenRow
    completion_ids: Tensor
    """int64 [tokens], at least 1, on the CPU; with the end token, where the answer was not cut short."""
    targets: Tensor
    """bool [tokens]: the tokens that are learned."""

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt.input_ids.shape[0] + self.completion_ids.shape[0]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of any lengths as the model takes them."""

    inputs: dict[str, Tensor]
    """input_ids, attention_mask, mm_token_type_ids [batch, tokens]; pixel_values; image_grid_thw."""
    completion_ids: Tensor
    """int64 [batch, answer]: the last columns of input_ids, unless prompts are shared (`shared_prompts`)."""
    mask: Tensor
    """bool [batch, answer]: real tokens."""
    targets: Tensor
    """bool [batch, answer]: learned tokens; within `mask`."""
    places: Tensor | None = None
    """int64 [batch, answer], where prompts are shared: which of all kept logits are those of a token."""
    kept: int = 0
    """Where prompts are shared: last places of each sequence whose logits are made."""


def complete(
    checkpoint: Checkpoint, prompted: Prompted, text: str, *, first_target: int = 0, ends: bool = True
) -> TrainingRow:
    """Return the row of a prompt that is answered with `text`.

    The answer's tokens from `first_target` on are the targets, none of the prompt's ever is; ends=True adds the end
    token. Raises ValueError for an answer without tokens or with image tokens, PromptError as `make_row`.
    """
    ids = list(checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])
    if forbidden := set(ids) & set(suppressed_tokens(checkpoint)):
        names = ", ".join(map(str, checkpoint.tokenizer.convert_ids_to_tokens(sorted(forbidden))))
        raise ValueError(f"an answer holds {names}: only a prompt may; take them out of the text")
    if ends:
        ids.append(int(checkpoint.tokenizer.eos_token_id))
    if not ids:
        raise ValueError("an answer without tokens cannot be learned")
    targets = torch.arange(len(ids)) >= first_target
    return TrainingRow(
        prompt=make_row(checkpoint, prompted), completion_ids=torch.tensor(ids, dtype=torch.long), targets=targets
    )


def collate_completions(checkpoint: Checkpoint, rows: Sequence[TrainingRow]) -> Batch:
    """Return the batch of the rows, on the model's device.

    Answer columns get token type 0: without these, Qwen-VL falls back silently to text positions.
    """
    inputs = collate(checkpoint, [row.prompt for row in rows])
    longest = max(row.completion_ids.shape[0] for row in rows)
    ids = torch.full((len(rows), longest), int(checkpoint.tokenizer.pad_token_id), dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    targets = torch.zeros_like(mask)
    for index, row in enumerate(rows):
        count = row.completion_ids.shape[0]
        ids[index, :count] = row.completion_ids
        mask[index, :count] = True
        targets[index, :count] = row.targets
    ids, mask, targets = (tensor.to(checkpoint.device) for tensor in (ids, mask, targets))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask.long()], dim=1)
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
    return Batch(inputs=inputs, completion_ids=ids, mask=mask, targets=targets)


def answer_logprobs(
    model: Any, batch: Batch, *, temperature: float = 1.0, suppressed: Sequence[int] = (), entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return float32 [batch, answer] log-probabilities of the answers' tokens, and the entropy at each if asked for.

    The distribution is the one that is sampled from: logits over `temperature`, without the `suppressed` tokens;
    top-p and top-k never play a part. Padded places hold 0. Keeps autograd (not for the entropy, in nats).
    """
    kept = batch.completion_ids.shape[1] + 1 if batch.places is None else batch.kept
    logits = model(**batch.inputs, use_cache=False, logits_to_keep=kept).logits
    logits = logits[:, :-1] if batch.places is None else logits.flatten(0, 1)[batch.places]
    logits = logits.float() / temperature
    if suppressed:
        logits = logits.index_fill(-1, torch.tensor(list(suppressed), device=logits.device), -torch.inf)
    distribution = logits.log_softmax(dim=-1)
    logprobs = distribution.gather(-1, batch.completion_ids[..., None])[..., 0]
    # where, not a product: a padded place may hold -inf, and 0 times that is NaN
    logprobs = torch.where(batch.mask, logprobs, 0.0)
    if not entropy:
        return logprobs, None
    with torch.no_grad():
        spread = -(distribution.exp() * distribution.clamp_min(torch.finfo(torch.float32).min)).sum(dim=-1)
    return logprobs, torch.where(batch.mask, spread, 0.0)


def micro_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return the places of `lengths` in groups of `size`, like lengths together, so that little of a batch is padding.

    >>> micro_batches([5, 1, 4, 2, 3], 2)
    [[1, 3], [4, 2], [0]]
    """
    if size < 1:
        raise ValueError(f"micro-batches of {size} rows: at least 1 is needed")
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]
