"""`direct`: the distribution over all ratings 1.00 .. 5.00 in one forward pass, without text.

The prompt, the protocol's `direct_prefix` and the inner nodes of the rating trie go in as one sequence; a tree mask
lets each node see the prompt, the prefix and its own ancestors. Deterministic, and differentiable to the pixels.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.inputs import TokenRow, collate, encode, make_row
from zoomiqa_reward.model.pixels import factor_of
from zoomiqa_reward.model.trie import RatingTrie, build_trie
from zoomiqa_reward.model.turns import Prompted, round1
from zoomiqa_reward.model.views import CHUNK_PIXELS, Task, ViewCutter, chunks, plan_views

MIN_MASS = 0.5
"""Below this share of the probability on ratings, the model was about to say something else: no measurement."""


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
    """One entry per image: why it was not looked at (`images.content`), or None."""


def trie_of(checkpoint: Checkpoint) -> RatingTrie:
    """Return the rating trie of this checkpoint's tokenizer and `direct_prefix`.

    The prefix is tokenised apart from the prompt, as generation and training see it.
    """
    tokenizer = checkpoint.tokenizer
    return build_trie(
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], checkpoint.protocol.direct_prefix
    )


def leaf_logprobs(checkpoint: Checkpoint, trie: RatingTrie, rows: Sequence[TokenRow]) -> Tensor:
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


def leaf_logprobs_expanded(checkpoint: Checkpoint, trie: RatingTrie, row: TokenRow) -> Tensor:
    """Return float32 [1, leaves] as `leaf_logprobs` does, from one plain causal row for each prefix of a rating.

    Slow and without mask or positions of our own: an independent check of the tree.
    """
    ends: list[list[int]] = [[]]
    for node in range(trie.num_inner):
        ends.append([*ends[trie.parents[node] + 1], trie.tokens[node]])
    logits = []
    for end in ends:
        batch = collate(checkpoint, [row], append=(*trie.prefix_ids, *end))
        logits.append(checkpoint.model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1])
    return trie.leaf_logprobs(torch.stack(logits, dim=1))


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
    chunk_pixels: int = CHUNK_PIXELS,
) -> Distribution:
    """Return the distribution of each float32 CHW image: the mixture of its views'.

    strict: each image in its own forward passes, so that its rating is bit-equal in any company. Otherwise views of
    equal size of up to `batch_size` images share a pass. Tiles are cut and read `chunk_pixels` at a time. An image
    without content is not looked at: not valid, with the reason in `errors`.
    """
    mixtures: list[Tensor] = []
    errors: list[str | None] = []
    for window in _windows(images, 1 if strict else batch_size):
        empty = [contentless(image) for image in window]
        shown = [image for image, why in zip(window, empty, strict=True) if why is None]
        read = iter(_read_window(checkpoint, trie, shown, question, chunk_pixels) if shown else ())
        nothing = torch.full((len(trie.ratings),), math.nan, device=checkpoint.device)
        mixtures += [next(read) if why is None else nothing for why in empty]
        errors += empty
    if not mixtures:
        return summarise(torch.zeros(0, len(trie.ratings)), trie.ratings)
    return replace(summarise(torch.stack(mixtures), trie.ratings), errors=tuple(errors))


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
    checkpoint: Checkpoint, trie: RatingTrie, images: list[Tensor], question: str | None, chunk_pixels: int
) -> list[Tensor]:
    protocol = checkpoint.protocol
    tasks: list[Task] = []
    for index, image in enumerate(images):
        _, height, width = image.shape
        plan = plan_views(
            height, width, protocol.views, factor=factor_of(checkpoint.image_processor),
            min_pixels=protocol.min_pixels, max_pixels=protocol.max_pixels,
        )  # fmt: skip
        tasks += [(index, view) for view in plan]
    ids = encode(checkpoint, round1(protocol, images[0], question))  # the same text for every view
    cutters = [ViewCutter(image) for image in images]
    read: list[list[tuple[float, Tensor]]] = [[] for _ in images]
    for chunk in chunks(tasks, chunk_pixels):
        rows = []
        for index, view in chunk:
            asked = Prompted(messages=(), images=(cutters[index].cut(view),))  # `ids` are its messages
            rows.append(make_row(checkpoint, asked, resize=view.scale is None, ids=ids))
        for (index, view), logprobs in zip(chunk, leaf_logprobs(checkpoint, trie, rows), strict=True):
            read[index].append((view.weight, logprobs))
    return [
        mix(torch.stack([logprobs for _, logprobs in views]), torch.tensor([weight for weight, _ in views]))
        for views in read
    ]
