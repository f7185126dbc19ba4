"""The targets of the language side: the words and numbers of rows, and the whole distribution of ratings in `direct`.

A number is written digit by digit, and its digits have soft targets: with one-hot digits 3.49 and 3.50 would have
nothing in common. The text of a number is drawn from a bell around the true value. The target of each digit is the
exact distribution of the next digit given those before it, in the trie of all two-decimal numbers. Averaged over draws
this is the cross-entropy of the whole bell over the leaves.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss, one_hot
from transformers import Qwen2_5_VLForConditionalGeneration

from train_iqa.nano.build import TOKEN_PX
from train_iqa.nano.rows import RATING_SIGMA, NanoRow, RowBuilder, mrope_positions
from train_iqa.nano.tower import flat_tokens, pad_images, read_tokens
from zoomiqa_reward.model.devices import half_autocast
from zoomiqa_reward.model.parts import WindowTower
from zoomiqa_reward.model.trie import build_trie


def bell(values: Tensor, centres: Tensor, sigma: Tensor | float) -> Tensor:
    """Return (B, values): probabilities of `values` proportional to a Gaussian about each of the B centres.

    >>> bell(torch.tensor([1.0, 2.0]), torch.tensor([1.5]), 0.3).tolist()
    [[0.5, 0.5]]
    """
    return torch.softmax(-0.5 * ((values[None] - centres[:, None]) / sigma) ** 2, dim=1)


def digit_targets(centres: Tensor, hundredths: Tensor, is_box: Tensor, sigma: Tensor) -> Tensor:
    """Return (3, B, 10): for each digit of d.dd its distribution given the digits drawn before.

    centres (B,), sigma (B,): the bell; hundredths int64 (B,): the drawn number; is_box bool (B,): a share 0.00 .. 1.00
    instead of a rating 1.00 .. 5.00.
    """
    leaves = torch.arange(501, device=centres.device)
    allowed = torch.where(is_box[:, None], leaves[None] <= 100, leaves[None] >= 100)
    logits = -0.5 * ((leaves[None] / 100 - centres[:, None]) / sigma[:, None]) ** 2
    weights = torch.softmax(logits.masked_fill(~allowed, -torch.inf), dim=1)
    targets = []
    for unit, above in ((100, None), (10, 100), (1, 10)):
        alive = weights
        if above is not None:
            alive = weights * (leaves[None] // above == (hundredths // above)[:, None])
        sums = alive @ one_hot(leaves // unit % 10, 10).to(weights.dtype)
        targets.append(sums / sums.sum(1, keepdim=True).clamp_min(1e-12))
    return torch.stack(targets)


AUX_LAYER, EDGE_LAYER = 3, 4
AUX_WEIGHT, EDGE_WEIGHT = 0.5, 3.0
PAIR_SCALE = 0.3
"""Difference of two ratings, in ratings, at which one is clearly the better."""


class Readouts(nn.Module):
    """Linear read-outs of middle layers, thrown away afterwards.

    Rotary positions are relative: without them a small model needs far longer to learn coordinates.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(width, 3)
        """Of an image token: x, y, and whether damage covers it."""
        self.edge = nn.Linear(width, 1)
        """Before the first decimal of a box edge: that edge, 0..1. A number is learned sooner than its digits."""


class Padded(NamedTuple):
    """Rows of different lengths as one batch, padded at the right."""

    ids: Tensor
    mask: Tensor
    positions: Tensor
    """(3, rows, tokens)"""
    texts: Tensor
    """Flat positions of exact targets."""
    numbers: Tensor
    """Flat positions of the first digits."""
    values: Tensor
    hundredths: Tensor
    is_box: Tensor


def pad_rows(rows: Sequence[NanoRow], device: torch.device) -> Padded:
    """Return the rows as one batch on the device."""
    length = max(len(row.ids) for row in rows)
    ids, mask = (np.zeros((len(rows), length), dtype=np.int64) for _ in range(2))
    positions = np.zeros((3, len(rows), length), dtype=np.int64)
    for k, row in enumerate(rows):
        ids[k, : len(row.ids)], mask[k, : len(row.ids)], positions[:, k, : len(row.ids)] = row.ids, 1, row.positions
    numbers = [(k * length + n.at, n.value, n.hundredths, n.is_box) for k, row in enumerate(rows) for n in row.numbers]
    at, values, hundredths, is_box = (np.array(column) for column in zip(*numbers, strict=True))
    texts = np.concatenate([k * length + row.texts for k, row in enumerate(rows)])
    arrays = (ids, mask, positions, texts, at, values.astype(np.float32), hundredths, is_box)
    return Padded(*(torch.from_numpy(array).to(device) for array in arrays))


def rows_loss(
    model: Qwen2_5_VLForConditionalGeneration,
    builder: RowBuilder,
    rows: Sequence[NanoRow],
    tokens: Tensor,
    readouts: Readouts | None = None,
    truth: Tensor | None = None,
    box_weight: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of rows and its parts; `box_weight` is the weight of the digits of boxes.

    tokens: (image tokens of all rows in order, width); with `readouts`, truth is (image tokens, 3): x, y and cover.
    """
    device = tokens.device
    batch = pad_rows(rows, device)
    is_image = ((batch.ids == builder.image_id) & batch.mask.bool()).flatten()
    assert int(is_image.sum()) == len(tokens), "image tokens and rows differ"
    with half_autocast(device):
        embeds = model.get_input_embeddings()(batch.ids)
        flat = embeds.flatten(0, 1).index_copy(0, is_image.nonzero()[:, 0], tokens.to(embeds.dtype))
        out = model.model.language_model(
            inputs_embeds=flat.view_as(embeds),
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=readouts is not None,
        )
        hidden = out.last_hidden_state.flatten(0, 1)
        where = torch.cat([batch.texts - 1, *(batch.numbers + offset for offset in (-1, 1, 2))])
        logprobs = model.lm_head(hidden[where]).float().log_softmax(-1)
    count = len(batch.texts)
    targets = batch.ids.flatten()[batch.texts]
    parts = {"text": -logprobs[:count].gather(1, targets[:, None]).mean()}
    sigma = torch.where(batch.is_box, builder.box_sigma, RATING_SIGMA)
    wanted = digit_targets(batch.values, batch.hundredths, batch.is_box, sigma)
    digits = logprobs[count:, torch.tensor(builder.digit_ids, device=device)].view(3, -1, 10)
    entropies = -(wanted * digits).sum(-1).mean(0)
    parts["rating"] = entropies[~batch.is_box].mean()
    if batch.is_box.any():
        parts["box"] = box_weight * entropies[batch.is_box].mean()
    if readouts is not None and truth is not None:
        states = [out.hidden_states[layer].flatten(0, 1).float() for layer in (AUX_LAYER, EDGE_LAYER)]
        guess = readouts.tokens(states[0][is_image])
        cover = binary_cross_entropy_with_logits(guess[:, 2], truth[:, 2])
        parts["aux"] = AUX_WEIGHT * (2 * mse_loss(guess[:, :2], truth[:, :2]) + cover)
        if batch.is_box.any():
            edges = readouts.edge(states[1][batch.numbers[batch.is_box] + 1])[:, 0]
            parts["edge"] = EDGE_WEIGHT * l1_loss(edges, batch.values[batch.is_box])
    return torch.stack(list(parts.values())).sum(), {name: float(part.detach()) for name, part in parts.items()}


def row_tokens(tower: WindowTower, images: list[Tensor]) -> Tensor:
    """Return (tokens of all images, width) of CHW images of any sizes that are multiples of 28."""
    batch, grids = pad_images(images)
    with half_autocast(batch.device):
        return flat_tokens(read_tokens(tower, batch, grids), grids)


class RatingTree:
    """`direct` in training: the log-probabilities of all ratings in one pass, with the graph to the pixels."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, builder: RowBuilder) -> None:
        self.model, self.builder = model, builder

        def encode(text: str) -> list[int]:
            return builder.tokenizer(text, add_special_tokens=False)["input_ids"]

        self.trie = build_trie(encode, builder.protocol.direct_prefix)
        self.ratings = torch.tensor(self.trie.ratings)

    def logprobs(self, images: Tensor, question: str) -> Tensor:
        """Return (B, ratings) float32 of equally large images (B, 3, H, W), sides multiples of 28, in [0, 1]."""
        batch, grids = pad_images(list(images)) if images.shape[2] % 112 or images.shape[3] % 112 else (images, None)
        grid = images.shape[2] // TOKEN_PX, images.shape[3] // TOKEN_PX
        with half_autocast(images.device):
            tokens = read_tokens(self.model.model.visual, batch, grids)[:, : grid[0], : grid[1]]
        return self.read(tokens, question)

    def read(self, tokens: Tensor, question: str) -> Tensor:
        """Return (B, ratings) of the tower's tokens (B, rows, columns, width)."""
        trie, model, device = self.trie, self.model, tokens.device
        grid, batch = (tokens.shape[1], tokens.shape[2]), len(tokens)
        prompt = self.builder.first_prompt(question, grid)
        ids = np.array([*prompt, *trie.prefix_ids, *trie.tokens[: trie.num_inner]])
        start, length = len(ids) - trie.num_inner, len(ids)
        before = torch.from_numpy(mrope_positions(ids[:start], [grid], self.builder.image_id))
        positions = torch.cat([before, before[:, -1:] + trie.inner_depths()], dim=1).to(device)
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
        allowed[start:, start:] = trie.inner_mask()
        mask = torch.zeros(length, length).masked_fill(~allowed, torch.finfo(torch.bfloat16).min).to(device)
        with half_autocast(device):
            all_ids = torch.from_numpy(ids).to(device).expand(batch, length)
            embeds = model.get_input_embeddings()(all_ids)
            at = (all_ids == self.builder.image_id).flatten().nonzero()[:, 0]
            flat = embeds.flatten(0, 1).index_copy(0, at, tokens.flatten(0, 2).to(embeds.dtype))
            out = model.model.language_model(
                inputs_embeds=flat.view_as(embeds),
                attention_mask=mask.expand(batch, 1, length, length),
                position_ids=positions[:, None].expand(3, batch, length),
                use_cache=False,
            )
            logits = model.lm_head(out.last_hidden_state[:, start - 1 :])
        return trie.leaf_logprobs(logits)

    def means(self, logprobs: Tensor) -> Tensor:
        """Return (B,): the mean of each distribution, renormalised over the ratings."""
        return logprobs.softmax(1) @ self.ratings.to(logprobs)

    def loss(self, logprobs: Tensor, labels: Tensor, *, sigma: float, ranked: bool) -> tuple[Tensor, dict[str, float]]:
        """Return the divergence from bells about the labels (B,), and with `ranked` the loss of all pairs.

        A pair's target is the chance that a difference of that size is seen (Bradley-Terry with `PAIR_SCALE`); at
        ratings that differ as the labels do, its loss is 0.
        """
        wanted = bell(self.ratings.to(logprobs), labels, sigma)
        divergence = (wanted * (wanted.clamp_min(1e-12).log() - logprobs)).sum(1).mean()
        means, parts, loss = self.means(logprobs), {"divergence": float(divergence.detach())}, divergence
        parts["error"] = float((means.detach() - labels).abs().mean())
        if ranked:
            pairs = pair_loss(means, labels)
            loss, parts["pairs"] = loss + pairs, float(pairs.detach())
        return loss, parts


def pair_loss(means: Tensor, labels: Tensor) -> Tensor:
    """Return the mean excess of the pairwise logistic loss over its least value, given the labels' differences.

    >>> float(pair_loss(torch.tensor([2.0, 3.0]), torch.tensor([3.5, 4.5])))
    0.0
    """
    first, second = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
    asked, wanted = (means[first] - means[second]) / PAIR_SCALE, (labels[first] - labels[second]) / PAIR_SCALE
    chance = wanted.sigmoid()
    return binary_cross_entropy_with_logits(asked, chance) - binary_cross_entropy_with_logits(wanted, chance)
