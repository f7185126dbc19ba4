"""The library's own way: whole prompts, one dense mask, transformers' `generate`.

It reads for models that lie on several devices or bring another attention (`reading.reads_itself`), and it is what the
fast passes are tested and measured against. Models with recurrent layers (Qwen3.5's linear attention) take no mask over
a tree, because a state passes from each token to the next, and those with a sliding window that is shorter than the
prompt none of ours; they read one row per inner node. Five level words that are single tokens have no inner node, so
they cost one pass.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.inputs import TokenRow, collate
from zoomiqa_reward.model.trie import RatingTrie


def plain_leaf_logprobs(checkpoint: Checkpoint, trie: RatingTrie, rows: Sequence[TokenRow]) -> Tensor:
    """Return float32 [batch, leaves]: log-probability of each rating as the answer to each row, in one forward.

    Raises ValueError for an attention implementation that takes no mask of our own.
    """
    attention = checkpoint.model.config.get_text_config()._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"direct rating needs a tree mask, which {attention!r} attention cannot take: "
            f"load with attn_implementation='sdpa' or 'eager' (mode='reason' works as it is)"
        )
    num_inner = trie.num_inner
    batch = collate(checkpoint, rows, append=(*trie.prefix_ids, *trie.tokens[:num_inner]))
    length = batch["input_ids"].shape[1]
    start = length - num_inner  # left padding: prefix and nodes end every row
    batch["position_ids"] = _positions(checkpoint, trie, batch, start)
    padding = batch.pop("attention_mask").bool()
    allowed = torch.ones(length, length, dtype=torch.bool, device=padding.device).tril()
    allowed[start:, start:] = trie.inner_mask().to(padding.device)
    allowed = allowed[None] & padding[:, None, :]
    allowed |= torch.eye(length, dtype=torch.bool, device=padding.device)  # a padded row sees itself, or it is NaN
    lowest = torch.finfo(checkpoint.dtype).min
    mask = torch.zeros(allowed.shape, dtype=checkpoint.dtype, device=padding.device).masked_fill(~allowed, lowest)
    logits = checkpoint.model(
        **batch, attention_mask=mask[:, None], logits_to_keep=num_inner + 1, use_cache=False
    ).logits  # [batch, 1 + inner, vocabulary]
    return trie.leaf_logprobs(logits)


def attends_to_all(checkpoint: Checkpoint, tokens: float = math.inf) -> bool:
    """Return whether every layer attends to all of so many tokens, so that one mask keeps branches apart in all layers.

    Recurrent layers pass a state from token to token instead, and others look back as far as their window reaches.
    """
    config = checkpoint.model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return not kinds or (kinds == {"sliding_attention"} and tokens <= config.sliding_window)


def rowwise_leaf_logprobs(checkpoint: Checkpoint, trie: RatingTrie, rows: Sequence[TokenRow]) -> Tensor:
    """Return float32 [batch, leaves] for a model that takes no tree; rows of one length share passes, unpadded."""
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.input_ids.shape[0], []).append(index)
    results: dict[int, Tensor] = {}
    for members in groups.values():
        results |= zip(members, leaf_logprobs_one_by_one(checkpoint, trie, [rows[k] for k in members]), strict=True)
    return torch.stack([results[index] for index in range(len(rows))])


def leaf_logprobs_one_by_one(checkpoint: Checkpoint, trie: RatingTrie, rows: Sequence[TokenRow]) -> Tensor:
    """Return float32 [batch, leaves] from plain causal passes: one for the prefix and one for each inner node."""
    ends: list[list[int]] = [[]]
    for node in range(trie.num_inner):
        ends.append([*ends[trie.parents[node] + 1], trie.tokens[node]])
    logits = []
    for end in ends:
        batch = collate(checkpoint, rows, append=(*trie.prefix_ids, *end))
        logits.append(checkpoint.model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1])
    return trie.leaf_logprobs(torch.stack(logits, dim=1))


def _positions(checkpoint: Checkpoint, trie: RatingTrie, batch: dict[str, Tensor], start: int) -> Tensor:
    """Return int64 [3, batch, tokens]: the model's own up to the prefix's end, then one step for each depth."""
    positions, _ = checkpoint.model.model.get_rope_index(
        batch["input_ids"][:, :start],
        mm_token_type_ids=batch["mm_token_type_ids"][:, :start],
        image_grid_thw=batch["image_grid_thw"],
        attention_mask=batch["attention_mask"][:, :start],
    )
    depths = trie.inner_depths().to(positions.device)
    return torch.cat([positions, positions[:, :, -1:] + depths], dim=-1)
