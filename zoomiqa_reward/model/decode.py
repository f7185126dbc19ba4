"""Answers written step by step: one cache, few operators a step, and the host asks rarely how far they are.

Transformers' `generate` asks the device after every token whether all rows have ended, pads short prompts through all
layers, and keeps computing rows that ended until the last one has. Here rows are read without padding and stand
side by side in one cache, ending in the same column; equal rows (the samples of an image) are read once; every `BLOCK`
steps the host looks at what was written, and rows that ended leave. What a row writes does not depend on when it
leaves: its noise is its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.inputs import TokenRow
from zoomiqa_reward.model.language import ReadStates, angles, text_model
from zoomiqa_reward.model.layers import add_linear, linear, rms, side_by_side
from zoomiqa_reward.model.parts import QwenVL, TextLayer, has_norms
from zoomiqa_reward.model.reading import Shape, SharedReading, image_features, read_rows, shape_of

BLOCK = 8
"""Steps between two looks of the host at what was written."""
GROWTH = 128
"""Columns by which the cache grows."""


class TokenChoice:
    """How the next token of every row is chosen."""

    def scores(self, logits: Tensor) -> Tensor:
        """Return [rows, vocabulary] of float32 logits, which may be written over: the largest is chosen."""
        return logits

    def chosen(self, tokens: Tensor) -> None:
        """Take note of the tokens [rows] that were chosen."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""


@torch.no_grad()
def write_answers(
    checkpoint: Checkpoint,
    rows: Sequence[TokenRow],
    choice: TokenChoice,
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    shared: SharedReading | None = None,
) -> list[list[int]]:
    """Return the new tokens of each row, with the one that ended it unless it was cut short."""
    hidden, cache = _read_prompts(checkpoint, rows, SharedReading() if shared is None else shared)
    head = linear(checkpoint.model.get_output_embeddings())
    answers: list[list[int]] = [[] for _ in rows]
    alive, left = list(range(len(rows))), max_new_tokens
    while alive and left:
        steps = min(BLOCK, left)
        cache.prepare(steps)
        written = []
        for step in range(steps):
            tokens = choice.scores(head(hidden).float()).argmax(dim=-1)
            choice.chosen(tokens)
            written.append(tokens)
            if step + 1 < left:
                hidden = cache.step(tokens)
        left -= steps
        going = []
        for at, new in enumerate(torch.stack(written, dim=1).tolist()):
            end = next((k for k, token in enumerate(new) if token in ends), None)
            answers[alive[at]] += new if end is None else new[: end + 1]
            if end is None:
                going.append(at)
        if going and len(going) < len(alive):
            hidden = hidden[torch.tensor(going, device=hidden.device)]
            cache.keep(going)
            choice.keep(going)
        alive = [alive[at] for at in going]
    return answers


def _read_prompts(
    checkpoint: Checkpoint, rows: Sequence[TokenRow], shared: SharedReading
) -> tuple[Tensor, "AnswerCache"]:
    """Return the last hidden values [rows, width] and the cache. Equal rows are read once."""
    first: dict[Any, int] = {}
    same = [first.setdefault(_content(row), at) for at, row in enumerate(rows)]
    image_features(checkpoint, [rows[at] for at in first.values()], shared)
    groups: dict[Shape, list[int]] = {}
    for at in first.values():
        groups.setdefault(shape_of(checkpoint, rows[at]), []).append(at)
    lengths: dict[int, int] = {}
    following: dict[int, int] = {}
    hidden, states = [], []
    for shape, places in groups.items():
        result = read_rows(checkpoint, [rows[at] for at in places], shared, keep=True)
        assert result.states is not None
        hidden.append(result.hidden[:, -1])
        states.append(result.states)
        lengths |= dict.fromkeys(places, shape[0])
        following |= dict.fromkeys(places, result.following)
    order = {at: index for index, at in enumerate(at for places in groups.values() for at in places)}
    chosen = torch.tensor([order[at] for at in same], device=checkpoint.device)
    cache = AnswerCache(
        checkpoint.model, states, chosen, lengths=[lengths[at] for at in same],
        positions=[following[at] for at in same],
    )  # fmt: skip
    return torch.cat(hidden).index_select(0, chosen), cache


def _content(row: TokenRow) -> Any:
    return tuple(row.input_ids.tolist()), tuple(id(patches) for patches in row.patches)


class AnswerCache:
    """Keys and values of all rows; every prompt ends in the same column.

    A layer's keys and then its values stand in one tensor [rows, 2 x heads, columns, head width], so that a step writes
    both at once.
    """

    def __init__(
        self, model: QwenVL, states: list[ReadStates], chosen: Tensor, *, lengths: list[int], positions: list[int]
    ) -> None:
        self.model, self.text = model, text_model(model)
        self.column = max(lengths)
        layers = range(len(self.text.layers))
        self.held = [
            _beside([torch.cat([group.keys[k], group.values[k]], dim=1) for group in states], self.column, chosen)
            for k in layers
        ]
        device = chosen.device
        self.positions = torch.tensor(positions, device=device)
        self.seen: Tensor | None = None  # bool [rows, 1, 1, columns]: no padding; None where nothing is padded
        if min(lengths) < self.column:
            starts = self.column - torch.tensor(lengths, device=device)
            self.seen = (torch.arange(self.column, device=device) >= starts[:, None])[:, None, None]
        self._grow()
        self._layers = [_step_layer(layer) for layer in self.text.layers]
        self._turns: list[tuple[Tensor, Tensor]] = []

    def prepare(self, steps: int) -> None:
        """Get ready for so many steps."""
        places = self.positions[:, None] + torch.arange(steps, device=self.positions.device)
        cos, sin = angles(self.model, self.held[0], places.expand(3, -1, -1))
        self._turns = list(zip(cos.unbind(2), sin.unbind(2), strict=True))[::-1]
        self.positions = self.positions + steps

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each row, int64 [rows]; return [rows, width] behind the last norm."""
        if self.column == self.held[0].shape[2]:
            self._grow()
        hidden = self.text.embed_tokens(tokens)
        cos, sin = self._turns.pop()
        end = self.column + 1
        seen = None if self.seen is None else self.seen.narrow(3, 0, end)
        for layer, held in zip(self._layers, self.held, strict=True):
            hidden = layer(hidden, held.narrow(2, 0, end), cos, sin, seen)
        self.column = end
        return rms(self.text.norm, hidden)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        chosen = torch.tensor(rows, device=self.positions.device)
        self.held = [held.index_select(0, chosen) for held in self.held]
        self.positions = self.positions.index_select(0, chosen)
        if self.seen is not None:
            self.seen = self.seen.index_select(0, chosen)

    def _grow(self) -> None:
        self.held = [nn.functional.pad(held, (0, 0, 0, GROWTH)) for held in self.held]
        if self.seen is not None:
            self.seen = nn.functional.pad(self.seen, (0, GROWTH), value=True)


def _beside(parts: list[Tensor], columns: int, chosen: Tensor) -> Tensor:
    """Return the chosen rows of the parts, each ending in the last column."""
    padded = [nn.functional.pad(tensor, (0, 0, columns - tensor.shape[2], 0)) for tensor in parts]
    return (padded[0] if len(padded) == 1 else torch.cat(padded)).index_select(0, chosen)


def _step_layer(layer: TextLayer) -> Callable[..., Tensor]:
    """Return a layer for one token per row: [rows, width] and the columns so far, of which it fills the last."""
    attention, mlp = layer.self_attn, layer.mlp
    project = side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
    add_mixed = add_linear(attention.o_proj)
    to_gate, to_up, add_down = linear(mlp.gate_proj), linear(mlp.up_proj), add_linear(mlp.down_proj)
    width, scale = attention.head_dim, attention.scaling
    norms = (attention.q_norm, attention.k_norm) if has_norms(attention) else None

    def run(hidden: Tensor, held: Tensor, cos: Tensor, sin: Tensor, seen: Tensor | None) -> Tensor:
        rows, heads = held.shape[0], held.shape[1] // 2
        projected = project(rms(layer.input_layernorm, hidden)).view(rows, -1, width)
        queries = projected.shape[1] - 2 * heads
        turning = projected.narrow(1, 0, queries + heads)
        if norms is not None:
            query, key = turning.split_with_sizes([queries, heads], dim=1)
            turning.copy_(torch.cat([rms(norms[0], query), rms(norms[1], key)], dim=1))
        torch.addcmul(turning.roll(width // 2, dims=2).mul_(sin), turning, cos, out=turning)
        query, new = projected.split_with_sizes([queries, 2 * heads], dim=1)
        held.select(2, -1).copy_(new)
        keys, values = held.split_with_sizes([heads, heads], dim=1)
        # the heads that share a key stand where tokens stand: one query each, no copies of keys
        mixed = scaled_dot_product_attention(query.view(rows, heads, -1, width), keys, values, seen, scale=scale)
        hidden = add_mixed(hidden, mixed.reshape(rows, -1))
        x = rms(layer.post_attention_layernorm, hidden)
        return add_down(hidden, mlp.act_fn(to_gate(x)).mul_(to_up(x)))

    return run
