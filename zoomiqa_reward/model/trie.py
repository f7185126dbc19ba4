"""All answers that state a rating as a trie of this tokenizer's tokens, so that one forward pass prices all of them.

The answers are the numbers 1.00 .. 5.00, or the level words of a protocol that has them, each with its value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

RATING_TEXTS = tuple(f"{hundredths // 100}.{hundredths % 100:02d}" for hundredths in range(100, 501))
NUMBERS = {text: float(text) for text in RATING_TEXTS}
"""The 401 ratings by their texts."""


@dataclass(frozen=True, kw_only=True)
class RatingTrie:
    """Nodes in one flat list: first the inner ones (parents before children), then one leaf for each answer.

    Only inner nodes are fed to the model: a leaf's probability stands in its parent's logits.
    """

    prefix_ids: tuple[int, ...]
    """Tokens that all ratings share: the answer's start, up to where the first of them differs."""
    tokens: tuple[int, ...]
    """Token of each node."""
    parents: tuple[int, ...]
    """Index of each node's parent; -1: the prefix."""
    depths: tuple[int, ...]
    """1 for a child of the prefix."""
    num_inner: int
    ratings: tuple[float, ...]
    """Rating of each leaf, in the order of the answers; leaf i is node `num_inner + i`."""

    @property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """Node indices from below the prefix to each leaf, the leaf included."""
        paths = []
        for node in range(self.num_inner, len(self.tokens)):
            path = [node]
            while (parent := self.parents[path[0]]) != -1:
                path.insert(0, parent)
            paths.append(tuple(path))
        return tuple(paths)

    def inner_mask(self) -> Tensor:
        """Return bool [inner, inner]: row attends to column, which is itself or an ancestor."""
        mask = torch.eye(self.num_inner, dtype=torch.bool)
        for node in range(self.num_inner):
            if self.parents[node] != -1:
                mask[node] |= mask[self.parents[node]]
        return mask

    def inner_depths(self) -> Tensor:
        """Return int64 [inner]: positions after the prefix's last token."""
        return torch.tensor(self.depths[: self.num_inner], dtype=torch.long)

    def on(self, device: torch.device) -> "TrieTensors":
        """Return the trie's tensors on a device, made once."""
        return _tensors(self, device)

    def leaf_logprobs(self, logits: Tensor) -> Tensor:
        """Return [batch, leaves] log-probabilities from logits [batch, 1 + inner, vocabulary] (prefix end first)."""
        logits, tensors = logits.float(), self.on(logits.device)
        normaliser = torch.logsumexp(logits, dim=-1)  # [batch, 1 + inner]
        edges = logits[:, tensors.rows, tensors.tokens] - normaliser[:, tensors.rows]  # [batch, nodes]
        edges = torch.cat([edges, edges.new_zeros(edges.shape[0], 1)], dim=1)  # last: an edge that costs nothing
        return edges[:, tensors.steps].sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class TrieTensors:
    """A trie on a device."""

    mask: Tensor
    """bool [inner, inner]: `inner_mask`."""
    rows: Tensor
    """int64 [nodes]: place of each node's parent among the logits, prefix end first."""
    tokens: Tensor
    """int64 [nodes]"""
    steps: Tensor
    """int64 [leaves, deepest]: the edges of each leaf; one past the last where a path is shorter."""


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # they outlive the call, and a later one may want a graph
def _tensors(trie: RatingTrie, device: torch.device) -> TrieTensors:
    deepest, past = max(trie.depths), len(trie.tokens)
    steps = [path + (past,) * (deepest - len(path)) for path in trie.paths]
    return TrieTensors(
        mask=trie.inner_mask().to(device), rows=torch.tensor(trie.parents, device=device) + 1,
        tokens=torch.tensor(trie.tokens, device=device), steps=torch.tensor(steps, device=device),
    )  # fmt: skip


def build_trie(
    encode: Callable[[str], Sequence[int]], prefix: str, answers: Mapping[str, float] = NUMBERS
) -> RatingTrie:
    """Return the trie of all answers after `prefix`, for a tokenizer's `encode` (text to ids, no special tokens).

    answers: the value of each text. Each whole text `prefix + answer` is tokenised; what all share is the prefix. So a
    token that merges the end of the prefix with the first character falls into the trie, and an answer may be tokens of
    any length. Raises ValueError if two answers cannot be told apart (a tokenizer that drops digits), or if one is the
    start of another.
    """
    encoded = [tuple(encode(prefix + text)) for text in answers]
    shortest = min(len(ids) for ids in encoded)
    common = 0
    while common < shortest and len({ids[common] for ids in encoded}) == 1:
        common += 1
    tails = [ids[common:] for ids in encoded]
    inner_paths = {tail[:end] for tail in tails for end in range(1, len(tail))}
    if len(set(tails)) < len(tails) or any(not tail or tail in inner_paths for tail in tails):
        first, *_, last = answers
        raise ValueError(
            f"this tokenizer cannot tell all answers {first} .. {last} apart: check the tokenizer and the protocol's "
            "direct_prefix and levels"
        )

    inner = sorted(inner_paths, key=lambda path: (len(path), path))
    index = {path: node for node, path in enumerate(inner)}
    nodes = [*inner, *tails]
    return RatingTrie(
        prefix_ids=encoded[0][:common],
        tokens=tuple(path[-1] for path in nodes),
        parents=tuple(index[path[:-1]] if len(path) > 1 else -1 for path in nodes),
        depths=tuple(len(path) for path in nodes),
        num_inner=len(inner),
        ratings=tuple(answers.values()),
    )
