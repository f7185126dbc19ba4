"""The language model's layers over embeddings: what was read before is kept as states, and not read again.

Transformers' own forward passes read a prompt from its first token, mask everything with one dense matrix where a tree
of answers follows, and spend more of a single step on the host than on arithmetic. Here the same modules and weights
read on from any states (`ReadStates`), the rows of a tree stand on top of a causal pass, and one step of an answer is a
few operators a layer. Results are the library's up to the last bits of float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from zoomiqa_reward.model.layers import gated, linear, recomputable, rms
from zoomiqa_reward.model.parts import QwenVL, TextAttention, TextLayer, TextModel, has_norms
from zoomiqa_reward.model.repeatable import attention, builds_repeatable
from zoomiqa_reward.model.tower import ImageFeatures


@dataclass(frozen=True, kw_only=True)
class ReadStates:
    """Keys and values of tokens that were read: one tensor a layer, [rows, heads, tokens, head width]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """Tokens."""
        return self.keys[0].shape[2]


@dataclass(frozen=True, kw_only=True)
class ImageSpan:
    """Where an image's features stand among the tokens that are read."""

    start: int
    features: ImageFeatures


@dataclass(frozen=True, kw_only=True)
class ReadTokens:
    """What reading gave."""

    hidden: Tensor
    """[rows, tokens, width] behind the last norm."""
    states: ReadStates | None
    """Of what was read before and now; None where they were not asked for."""
    following: int = 0
    """Position of the token that comes next."""


def text_model(model: QwenVL) -> TextModel:
    """Return the part that reads embeddings, for a whole Qwen-VL model."""
    return model.model.language_model


def angles(model: QwenVL, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [rows, 1, tokens, head width] of int64 positions [3, rows, tokens].

    The sines are negative in their first half: they belong to halves that are swapped, not swapped and turned.
    """
    cos, sin = text_model(model).rotary_emb(like, positions)
    half = sin.shape[-1] // 2
    return cos[:, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, None]


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of values (i, i + half) of the last axis."""
    return torch.addcmul(x.roll(x.shape[-1] // 2, dims=-1) * sin, x, cos)


def read(
    model: QwenVL,
    ids: Tensor,
    positions: Tensor,
    *,
    spans: Sequence[ImageSpan] = (),
    before: ReadStates | None = None,
    tree: Tensor | None = None,
    keep: bool = False,
    last: int | None = None,
) -> ReadTokens:
    """Read tokens after what was read before.

    ids: int64 [1 or rows, tokens]; positions: int64 [3, 1 or rows, tokens]; spans: images of all rows, in place of
    their tokens. before: states of one row, or of as many rows. Causal, but the last tokens may be a tree: bool
    [nodes, nodes], True where a node sees a node; each sees all that stands before the tree. keep: return states.
    last: return hidden values of so many tokens only.
    """
    text = text_model(model)
    rows = max([ids.shape[0], positions.shape[1], *(span.features.tokens.shape[0] for span in spans)])
    hidden = _embedded(text.embed_tokens(ids), spans, rows)
    cos, sin = angles(model, hidden, positions)
    kept: list[tuple[Tensor, Tensor]] = []
    for number, layer in enumerate(text.layers):
        past = None if before is None else (before.keys[number], before.values[number])
        hidden = recomputable(layer, _layer(layer, cos, sin, past, tree, kept if keep else None), hidden)
        for span in spans:
            if number < len(span.features.deep):
                hidden = _added(hidden, span.start, span.features.deep[number])
    if last is not None:
        hidden = hidden[:, -last:]
    states = None
    if keep:
        states = ReadStates(keys=tuple(key for key, _ in kept), values=tuple(value for _, value in kept))
    return ReadTokens(hidden=rms(text.norm, hidden), states=states)


def _embedded(hidden: Tensor, spans: Sequence[ImageSpan], rows: int) -> Tensor:
    if hidden.shape[0] != rows:
        hidden = hidden.expand(rows, -1, -1)
    parts, start = [], 0
    for span in spans:
        tokens = span.features.tokens.to(hidden.dtype)
        parts += [hidden[:, start : span.start], tokens]
        start = span.start + tokens.shape[1]
    return torch.cat([*parts, hidden[:, start:]], dim=1) if parts else hidden


def _added(hidden: Tensor, start: int, more: Tensor) -> Tensor:
    end = start + more.shape[1]
    return torch.cat([hidden[:, :start], hidden[:, start:end] + more.to(hidden.dtype), hidden[:, end:]], dim=1)


def _layer(
    layer: TextLayer, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, tree: Tensor | None,
    kept: list[tuple[Tensor, Tensor]] | None,
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    def run(hidden: Tensor) -> Tensor:
        query, key, value = projected(layer.self_attn, rms(layer.input_layernorm, hidden))
        query, key = turned(query, cos, sin), turned(key, cos, sin)
        if past is not None:
            key, value = (torch.cat([old.expand(new.shape[0], -1, -1, -1), new], dim=2)
                          for old, new in zip(past, (key, value), strict=True))  # fmt: skip
        if kept is not None:
            kept.append((key, value))
        mixed = _attend(query, key, value, tree, layer.self_attn.scaling)
        hidden = hidden + linear(layer.self_attn.o_proj)(mixed.transpose(1, 2).flatten(2))
        return hidden + gated(layer.mlp, rms(layer.post_attention_layernorm, hidden))

    return run


def projected(attention: TextAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [rows, heads, tokens, head width] of [rows, tokens, width]."""
    shape = (*x.shape[:2], -1, attention.head_dim)
    query, key, value = (
        linear(projection)(x).view(shape) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if has_norms(attention):
        query, key = rms(attention.q_norm, query), rms(attention.k_norm, key)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, tree: Tensor | None, scale: float) -> Tensor:
    """Causal attention whose queries are the last of the keys' tokens, and a tree on top of it."""
    if tree is None:
        return _causal(query, key, value, scale)
    nodes, tokens = tree.shape[0], key.shape[2]
    mask = torch.nn.functional.pad(tree, (tokens - nodes, 0), value=True)
    on_top = _attention(query[:, :, -nodes:], key, value, scale, mask, attn_mask=mask)
    if query.shape[2] == nodes:
        return on_top
    under = tokens - nodes
    causal = _causal(query[:, :, :-nodes], key[:, :, :under], value[:, :, :under], scale)
    return torch.cat([causal, on_top], dim=2)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    asked, seen = query.shape[2], key.shape[2]
    if asked == 1:
        return _attention(query, key, value, scale)
    on_cpu = query.device.type == "cpu"
    mask = _lower_right(asked, seen, query.device) if builds_repeatable() or (on_cpu and asked != seen) else None
    if asked == seen:
        return _attention(query, key, value, scale, mask, is_causal=True)
    return _attention(query, key, value, scale, mask, attn_mask=mask if on_cpu else causal_lower_right(asked, seen))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None, **masked: Any
) -> Tensor:
    """Return attention. masked: PyTorch's arguments for the mask; mask: the same as a tensor, for the gradient."""
    group = query.shape[1] // key.shape[1]

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if "attn_mask" in masked and group > 1 and query.device.type != "cpu":
            # under a mask, only the slowest kernel of a GPU lets several heads share a key
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        return scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=True, **masked)

    return attention(fused, query, key, value, scale, mask)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # it outlives the call, and a later one may want a graph
def _lower_right(asked: int, seen: int, device: torch.device) -> Tensor:
    return torch.ones(asked, seen, dtype=torch.bool, device=device).tril(seen - asked)
