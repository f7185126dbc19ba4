"""Answers to one prompt as one sequence: the prompt is read once, and each answer sees the prompt and itself alone.

RL learns from several answers to the same image and text. In rows of their own, each would read the image and the
prompt again: 1194 of about 1400 tokens in Zoom-IQA's first round. Log-probabilities and gradients are those of rows of
their own, up to rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from train_iqa.rows.completions import Batch, TrainingRow, collate_completions
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.inputs import collate
from zoomiqa_reward.model.plain import attends_to_all

PADDING, PROMPT = -1, 0
"""Parts of a sequence; its answers are 1, 2, ..."""


def can_share(checkpoint: Checkpoint) -> bool:
    """Return whether the model's attention takes a mask that keeps answers apart.

    Recurrent layers, and those with a sliding window, take none.
    """
    attention = checkpoint.model.config.get_text_config()._attn_implementation
    return attention in ("sdpa", "eager") and attends_to_all(checkpoint)


def shared_batches(rows: Sequence[TrainingRow], size: int) -> list[list[int]]:
    """Return the places of rows in groups of at most `size`, the answers to one prompt beside each other.

    Groups of like lengths are together, so that little of a batch is padding. Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"micro-batches of {size} rows: at least 1 is needed")
    pieces = [group[start : start + size] for group in _by_prompt(rows) for start in range(0, len(group), size)]
    pieces.sort(key=lambda piece: (sum(rows[k].completion_ids.shape[0] for k in piece), piece))
    batches: list[list[int]] = []
    for piece in pieces:
        if batches and len(batches[-1]) + len(piece) <= size:
            batches[-1] += piece
        else:
            batches.append(list(piece))
    return batches


def collate_shared(checkpoint: Checkpoint, rows: Sequence[TrainingRow]) -> Batch:
    """Return the batch of the rows, on the model's device: one sequence per prompt, its answers one after the other."""
    groups = _by_prompt(rows)
    if len(groups) == len(rows):
        return collate_completions(checkpoint, rows)
    inputs = collate(checkpoint, [rows[group[0]].prompt for group in groups])
    prompts, width = inputs["input_ids"].shape[1], max(row.completion_ids.shape[0] for row in rows)
    longest = max(sum(rows[k].completion_ids.shape[0] for k in group) for group in groups)
    answers = torch.full((len(groups), longest), int(checkpoint.tokenizer.pad_token_id), dtype=torch.long)
    parts, steps = torch.full_like(answers, PADDING), torch.zeros_like(answers)
    ids = torch.full((len(rows), width), int(checkpoint.tokenizer.pad_token_id), dtype=torch.long)
    mask, targets = (torch.zeros(len(rows), width, dtype=torch.bool) for _ in range(2))
    places = torch.zeros(len(rows), width, dtype=torch.long)
    for sequence, group in enumerate(groups):
        start = 0
        for answer, k in enumerate(group, start=1):
            tokens, count = rows[k].completion_ids, rows[k].completion_ids.shape[0]
            answers[sequence, start : start + count] = tokens
            parts[sequence, start : start + count] = answer
            steps[sequence, start : start + count] = torch.arange(1, count + 1)
            ids[k, :count], mask[k, :count], targets[k, :count] = tokens, True, rows[k].targets
            # A first token follows the prompt, whose last place is the first that is kept.
            places[k, 1:count] = start + torch.arange(1, count)
            places[k, :count] += sequence * (longest + 1)
            start += count
    device = checkpoint.device
    ids, mask, targets, places = (tensor.to(device) for tensor in (ids, mask, targets, places))
    answers, parts, steps = (tensor.to(device) for tensor in (answers, parts, steps))
    positions, _ = checkpoint.model.model.get_rope_index(
        inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )  # fmt: skip
    prompt_parts = torch.where(inputs["attention_mask"].bool(), PROMPT, PADDING)
    inputs["attention_mask"] = _mask(checkpoint, torch.cat([prompt_parts, parts], dim=1))
    inputs["position_ids"] = torch.cat([positions, positions[:, :, prompts - 1 :] + steps], dim=-1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answers], dim=1)
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answers)], dim=1)
    return Batch(inputs=inputs, completion_ids=ids, mask=mask, targets=targets, places=places, kept=longest + 1)


def _by_prompt(rows: Sequence[TrainingRow]) -> list[list[int]]:
    """Return the places of rows by prompt: the same tokens, and the same pixels in memory."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for k, row in enumerate(rows):
        pixels = row.prompt.pixel_values
        key = (tuple(row.prompt.input_ids.tolist()), pixels.data_ptr(), tuple(pixels.shape))
        groups.setdefault(key, []).append(k)
    return list(groups.values())


def _mask(checkpoint: Checkpoint, parts: Tensor) -> Tensor:
    """Return the mask [sequences, 1, tokens, tokens] of a token's part of its sequence, as the attention takes it.

    A token sees the prompt and its own answer, up to itself.
    """
    length = parts.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=parts.device).tril()
    seen = causal & ((parts == PROMPT)[:, None, :] | (parts[:, :, None] == parts[:, None, :]))
    seen &= (parts != PADDING)[:, None, :]
    seen |= torch.eye(length, dtype=torch.bool, device=parts.device)  # padding sees itself, or it is NaN
    seen = seen[:, None]
    if checkpoint.model.config.get_text_config()._attn_implementation == "sdpa":
        return seen
    added = torch.zeros(seen.shape, dtype=checkpoint.dtype, device=parts.device)
    return added.masked_fill(~seen, torch.finfo(checkpoint.dtype).min)
