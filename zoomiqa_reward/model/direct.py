"""`direct`: the distribution over all ratings in one forward pass, without text.

The ratings are the numbers 1.00 .. 5.00, or the level words of a protocol that has them.

The prompt, the protocol's `direct_prefix` and the inner nodes of the rating trie go in as one sequence. Each node sees
the prompt, the prefix and its own ancestors. The text before the image is read once a call, whatever number of views
and images follow it. Deterministic, and differentiable to the pixels.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.model.budget import pass_pixels
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.gradients import refuse_dropout
from zoomiqa_reward.model.inputs import TokenRow, encode, make_row
from zoomiqa_reward.model.pixels import factor_of
from zoomiqa_reward.model.plain import (
    attends_to_all,
    plain_leaf_logprobs,
    rowwise_leaf_logprobs,
)
from zoomiqa_reward.model.reading import Shape, SharedReading, read_rows, reads_itself, shape_of
from zoomiqa_reward.model.trie import NUMBERS, RatingTrie, build_trie
from zoomiqa_reward.model.turns import Prompted, round1
from zoomiqa_reward.model.views import Task, ViewCutter, chunks, plan_views
from zoomiqa_reward.whole_numbers import batch_size_of

MIN_MASS = 0.5
"""Below this share of the probability on ratings, the model was about to say something else: no measurement."""
NO_RATING = "the ratings hold less than half of the probability of the model's next word"


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """What the model thinks of a batch of images."""

    mean: Tensor
    """[batch] float32 in 1..5; NaN where not valid."""
    std: Tensor
    """[batch] float32; NaN where not valid."""
    valid: Tensor
    """[batch] bool: the ratings hold at least half of the probability."""
    logprobs: Tensor
    """[batch, leaves] float32, not normalised over the leaves; NaN for an image without content."""
    errors: tuple[str | None, ...] = ()
    """One entry per image: why it has no rating, or None."""


def trie_of(checkpoint: Checkpoint) -> RatingTrie:
    """Return the trie of the protocol's answers in this checkpoint's tokenizer, after its `direct_prefix`.

    The prefix is tokenised apart from the prompt, as generation and training see it.
    """
    protocol = checkpoint.protocol
    return answers_after(checkpoint, protocol.direct_prefix, protocol.level_ratings or NUMBERS)


def answers_after(checkpoint: Checkpoint, prefix: str, answers: Mapping[str, float]) -> RatingTrie:
    """Return the trie of any answers, text to value, in this checkpoint's tokenizer."""
    tokenizer = checkpoint.tokenizer
    return build_trie(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], prefix, answers)


def leaf_logprobs(
    checkpoint: Checkpoint, trie: RatingTrie, rows: Sequence[TokenRow], shared: SharedReading | None = None
) -> Tensor:
    """Return float32 [batch, leaves]: log-probability of each rating as the answer to each row.

    Rows of one shape share a forward pass: no row is padded. shared: of the call that they belong to. Raises ValueError
    for an attention implementation that takes no mask of our own.
    """
    longest = max(row.input_ids.shape[0] for row in rows) + len(trie.prefix_ids) + max(trie.depths)
    if not attends_to_all(checkpoint, longest):
        return rowwise_leaf_logprobs(checkpoint, trie, rows)
    if not reads_itself(checkpoint):
        return plain_leaf_logprobs(checkpoint, trie, rows)
    shared = SharedReading() if shared is None else shared
    groups: dict[Shape, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(shape_of(checkpoint, row), []).append(index)
    # Answers of one token each are read where the prefix ends: there is no tree to add.
    tree = trie.on(checkpoint.device).mask if trie.num_inner else None
    depths = trie.inner_depths() if trie.num_inner else None
    head = checkpoint.model.get_output_embeddings()
    results: dict[int, Tensor] = {}
    for places in groups.values():
        hidden = read_rows(
            checkpoint, [rows[at] for at in places], shared, tree=tree, depths=depths,
            append=(*trie.prefix_ids, *trie.tokens[: trie.num_inner]), last=trie.num_inner + 1,
        ).hidden  # fmt: skip
        results |= zip(places, trie.leaf_logprobs(head(hidden)), strict=True)
    return torch.stack([results[index] for index in range(len(rows))])


def mix(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Return [leaves]: the views' [views, leaves] log-probabilities as one mixture; mass is kept, not normalised."""
    return torch.logsumexp(logprobs + weights.to(logprobs).log()[:, None], dim=0)


def summarise(logprobs: Tensor, ratings: Sequence[float]) -> Distribution:
    """Return mean and spread of the renormalised leaves of [batch, leaves]; NaN where they hold too little mass."""
    values = torch.tensor(ratings, dtype=logprobs.dtype, device=logprobs.device)
    valid = torch.logsumexp(logprobs, dim=-1) >= math.log(MIN_MASS)
    share = torch.softmax(logprobs, dim=-1)
    mean = (share * values).sum(dim=-1)
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=-1)
    std = variance.clamp_min(1e-12).sqrt()  # the clamp keeps the gradient finite where one leaf holds everything
    nan = torch.full_like(mean, math.nan)
    return Distribution(
        mean=torch.where(valid, mean, nan), std=torch.where(valid, std, nan), valid=valid, logprobs=logprobs
    )


def rate_direct(
    checkpoint: Checkpoint,
    trie: RatingTrie,
    images: Iterable[Tensor],
    *,
    question: str | None = None,
    strict: bool = False,
    batch_size: int = 8,
    chunk_pixels: int | None = None,
) -> Distribution:
    """Return the distribution of each float32 CHW image: the mixture of its views'.

    strict: each image in its own forward passes, so that its rating is bit-equal in any company. Otherwise views of
    equal size of up to `batch_size` images share a pass. Tiles are cut and read `chunk_pixels` at a time. An image
    without content is not looked at. `errors` holds why one is not valid. Raises ValueError for a model in training
    mode with dropout.
    """
    refuse_dropout(checkpoint.model)
    mixtures: list[Tensor] = []
    errors: list[str | None] = []
    shared = SharedReading()
    chunk_pixels = pass_pixels(checkpoint) if chunk_pixels is None else chunk_pixels
    batch_size = batch_size_of(batch_size)
    for window in _windows(images, 1 if strict else batch_size):
        empty = [contentless(image) for image in window]
        shown = [image for image, why in zip(window, empty, strict=True) if why is None]
        read = iter(_read_window(checkpoint, trie, shown, question, chunk_pixels, shared) if shown else ())
        nothing = torch.full((len(trie.ratings),), math.nan, device=checkpoint.device)
        mixtures += [next(read) if why is None else nothing for why in empty]
        errors += empty
    if not mixtures:
        return summarise(torch.zeros(0, len(trie.ratings)), trie.ratings)
    if strict:  # row by row: a GPU's sums may depend on a row's place in the batch
        alone = [summarise(mixture[None], trie.ratings) for mixture in mixtures]
        mean, std, valid, logprobs = (
            torch.cat([getattr(summary, name) for summary in alone]) for name in ("mean", "std", "valid", "logprobs")
        )
        result = Distribution(mean=mean, std=std, valid=valid, logprobs=logprobs)
    else:
        result = summarise(torch.stack(mixtures), trie.ratings)
    reasons = [why or (None if is_valid else NO_RATING) for why, is_valid in
               zip(errors, result.valid.tolist(), strict=True)]  # fmt: skip
    return replace(result, errors=tuple(reasons))


def _windows(images: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    window: list[Tensor] = []
    for image in images:
        window.append(image)
        if len(window) == size:
            yield window
            window = []  # drops this reference before the next image is loaded
    if window:
        yield window


def _read_window(
    checkpoint: Checkpoint, trie: RatingTrie, images: list[Tensor], question: str | None, chunk_pixels: int,
    shared: SharedReading,
) -> list[Tensor]:  # fmt: skip
    protocol = checkpoint.protocol
    tasks: list[Task] = []
    factor = factor_of(checkpoint.image_processor)
    for index, image in enumerate(images):
        _, height, width = image.shape
        plan = plan_views(
            height, width, protocol.views, factor=factor, min_pixels=protocol.min_pixels,
            max_pixels=protocol.max_pixels,
        )  # fmt: skip
        tasks += [(index, view) for view in plan]
    ids = encode(checkpoint, round1(protocol, images[0], question))  # the same text for every view
    cutters = [ViewCutter(image, factor) for image in images]
    read: list[list[tuple[float, Tensor]]] = [[] for _ in images]
    for chunk in chunks(tasks, chunk_pixels):
        rows = []
        for index, view in chunk:
            asked = Prompted(messages=(), images=(cutters[index].cut(view),))  # `ids` are its messages
            rows.append(make_row(checkpoint, asked, resize=view.scale is None, ids=ids))
        results = leaf_logprobs(checkpoint, trie, rows, shared)
        shared.forget_images()
        for (index, view), logprobs in zip(chunk, results, strict=True):
            read[index].append((view.weight, logprobs))
    return [
        mix(torch.stack([logprobs for _, logprobs in views]), torch.tensor([weight for weight, _ in views]))
        for views in read
    ]
