"""Answers written step by step: one cache, few operators a step, and the host asks rarely how far they are.

Transformers' `generate` asks the device after every token whether all rows have ended, pads short prompts through all
layers, and keeps computing rows that ended until the last one has. Here rows are read without padding and stand
side by side in one cache, ending in the same column; equal rows (the samples of an image) are read once; every `BLOCK`
steps the host looks at what was written, and rows that ended leave. What a row writes does not depend on when it
leaves: its noise is its own. Where earlier answers tell what probably comes next (`drafts`), one pass checks several
tokens of each row.
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

    takes_likeliest = False
    """Whether `scores` alone says which token is chosen, whatever was chosen before: drafts need that."""

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
    """Return the new tokens of each row, with the one that ended it unless it was cut short.

    Drafts of `shared` are used where `choice` takes the likeliest token; without `shared` there are none.
    """
    hidden, cache = _read_prompts(checkpoint, rows, SharedReading(drafts=None) if shared is None else shared)
    drafts = shared.drafts if shared is not None and choice.takes_likeliest else None
    writer = _Writer(cache, linear(checkpoint.model.get_output_embeddings()), choice, hidden)
    answers: list[list[int]] = [[] for _ in rows]
    alive = list(range(len(rows)))
    while alive:
        left = max_new_tokens - min(len(answers[row]) for row in alive)
        drafted = drafts.after(answers[row] for row in alive) if drafts is not None and left > 1 else None
        if drafted is None or drafts is None:
            written = writer.write(min(BLOCK, left))
        else:
            written = writer.check(drafted)
            drafts.accepted(sum(map(len, written)) / len(written))
        going = []
        for at, new in enumerate(written):
            answer = answers[alive[at]]
            start, new = len(answer), new[: max_new_tokens - len(answer)]
            end = next((index for index, token in enumerate(new) if token in ends), None)
            answer += new if end is None else new[: end + 1]
            if drafts is not None:
                drafts.learn(answer, start)
            if end is None and len(answer) < max_new_tokens:
                going.append(at)
        if going and len(going) < len(alive):
            writer.keep(going)
        alive = [alive[at] for at in going]
    return answers


class _Writer:
    """Chooses tokens: some steps of one token each, or one pass that checks drafts."""

    def __init__(
        self, cache: "AnswerCache", head: Callable[[Tensor], Tensor], choice: TokenChoice, hidden: Tensor
    ) -> None:
        self.cache, self.head, self.choice = cache, head, choice
        self._hidden: Tensor | None = hidden  # of the prompts' last tokens, until the first token is chosen
        self._tokens = torch.empty(0)  # the last that were chosen, int64 [rows], which nothing has read yet

    def write(self, steps: int) -> list[list[int]]:
        """Return that many new tokens of each row."""
        written = []
        self.cache.prepare(steps if self._hidden is None else steps - 1)
        for _ in range(steps):
            hidden = self.cache.step(self._tokens) if self._hidden is None else self._hidden
            self._hidden, self._tokens = None, self.choice.scores(self.head(hidden).float()).argmax(dim=-1)
            self.choice.chosen(self._tokens)
            written.append(self._tokens)
        return torch.stack(written, dim=1).tolist()

    def check(self, drafted: list[list[int]]) -> list[list[int]]:
        """Return the new tokens of each row, one at least: as many as agree with its draft, and the one after them."""
        tokens = torch.cat([self._tokens[:, None], torch.tensor(drafted, device=self._tokens.device)], dim=1)
        hidden = self.cache.read(tokens)
        likeliest = self.choice.scores(self.head(hidden).float()).argmax(dim=-1).view_as(tokens)
        agree = (likeliest[:, :-1] == tokens[:, 1:]).long().cumprod(dim=1).sum(dim=1)
        self.cache.accept(agree + 1, tokens.shape[1])
        self._tokens = likeliest.gather(1, agree[:, None])[:, 0]
        rows = torch.cat([agree[:, None], likeliest], dim=1).tolist()
        return [row[1 : row[0] + 2] for row in rows]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._tokens = self._tokens[torch.tensor(rows, device=self._tokens.device)]
        self.cache.keep(rows)
        self.choice.keep(rows)


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
    both at once. Columns of drafted tokens that were not accepted stay, and are not seen.
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
        self._make_room(1)
        return self._through(tokens, *self._turns.pop(), self.seen)

    def read(self, tokens: Tensor) -> Tensor:
        """Read some more tokens of each row, int64 [rows, tokens]; return [rows x tokens, width], as `step` does.

        `accept` says afterwards how many of them each row keeps.
        """
        rows, count = tokens.shape
        places = self.positions[:, None] + torch.arange(count, device=tokens.device)
        cos, sin = angles(self.model, self.held[0], places.expand(3, -1, -1))
        if self.seen is None:
            self.seen = torch.ones(rows, 1, 1, self.held[0].shape[2], dtype=torch.bool, device=tokens.device)
        self._make_room(count)
        seen = self.seen.repeat(1, 1, count, 1)
        triangle = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()
        seen[..., self.column : self.column + count] = triangle
        return self._through(tokens.flatten(), cos.view(-1, 1, cos.shape[-1]), sin.view(-1, 1, sin.shape[-1]), seen)

    def accept(self, counts: Tensor, read: int) -> None:
        """Keep the first tokens of each row, int64 [rows], of the `read` ones that were read last."""
        assert self.seen is not None
        kept = torch.arange(read, device=counts.device) < counts[:, None]
        self.seen[:, 0, 0, self.column - read : self.column] = kept
        self.positions = self.positions + counts

    def _through(self, tokens: Tensor, cos: Tensor, sin: Tensor, seen: Tensor | None) -> Tensor:
        """Read int64 [rows x tokens] into the next columns. seen: bool [rows, 1, 1 or tokens, at least the columns]."""
        end = self.column + len(tokens) // len(self.held[0])
        if seen is not None:
            seen = seen.narrow(3, 0, end)
        hidden = self.text.embed_tokens(tokens)
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

    def _make_room(self, columns: int) -> None:
        if self.column + columns > self.held[0].shape[2]:
            self._grow()

    def _grow(self) -> None:
        self.held = [nn.functional.pad(held, (0, 0, 0, GROWTH)) for held in self.held]
        if self.seen is not None:
            self.seen = nn.functional.pad(self.seen, (0, GROWTH), value=True)


def _beside(parts: list[Tensor], columns: int, chosen: Tensor) -> Tensor:
    """Return the chosen rows of the parts, each ending in the last column."""
    padded = [nn.functional.pad(tensor, (0, 0, columns - tensor.shape[2], 0)) for tensor in parts]
    return (padded[0] if len(padded) == 1 else torch.cat(padded)).index_select(0, chosen)


def _step_layer(layer: TextLayer) -> Callable[..., Tensor]:
    """Return a layer for the next tokens of each row: [rows x tokens, width] and the columns, the last are theirs."""
    attention, mlp = layer.self_attn, layer.mlp
    project = side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
    add_mixed = add_linear(attention.o_proj)
    to_gate, to_up, add_down = linear(mlp.gate_proj), linear(mlp.up_proj), add_linear(mlp.down_proj)
    width, scale = attention.head_dim, attention.scaling
    norms = (attention.q_norm, attention.k_norm) if has_norms(attention) else None

    def run(hidden: Tensor, held: Tensor, cos: Tensor, sin: Tensor, seen: Tensor | None) -> Tensor:
        rows, heads = held.shape[0], held.shape[1] // 2
        projected = project(rms(layer.input_layernorm, hidden)).view(hidden.shape[0], -1, width)
        queries = projected.shape[1] - 2 * heads
        turning = projected.narrow(1, 0, queries + heads)
        if norms is not None:
            query, key = turning.split_with_sizes([queries, heads], dim=1)
            turning.copy_(torch.cat([rms(norms[0], query), rms(norms[1], key)], dim=1))
        torch.addcmul(turning.roll(width // 2, dims=2).mul_(sin), turning, cos, out=turning)
        query, new = projected.split_with_sizes([queries, 2 * heads], dim=1)
        keys, values = held.split_with_sizes([heads, heads], dim=1)
        # the heads that share a key stand where tokens stand, so keys are not copied
        if hidden.shape[0] == rows:
            held.select(2, -1).copy_(new)
            mixed = scaled_dot_product_attention(query.view(rows, heads, -1, width), keys, values, seen, scale=scale)
        else:
            assert seen is not None
            tokens, group = hidden.shape[0] // rows, queries // heads
            held.narrow(2, held.shape[2] - tokens, tokens).copy_(new.view(rows, tokens, -1, width).transpose(1, 2))
            query = query.view(rows, tokens, heads, group, width).permute(0, 2, 3, 1, 4).reshape(rows, heads, -1, width)
            mixed = scaled_dot_product_attention(query, keys, values, seen.repeat(1, 1, group, 1), scale=scale)
            mixed = mixed.view(rows, heads, group, tokens, width).permute(0, 3, 1, 2, 4)
        hidden = add_mixed(hidden, mixed.reshape(hidden.shape[0], -1))
        x = rms(layer.post_attention_layernorm, hidden)
        return add_down(hidden, mlp.act_fn(to_gate(x)).mul_(to_up(x)))

    return run
