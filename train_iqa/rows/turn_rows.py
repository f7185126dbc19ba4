"""The rows of SFT, and their order.

A conversation gives one row per round, and one that rates without words. The row of a round has exactly the prompt of
inference (`zoomiqa_reward.model.turns`) with the protocol's beginning of the answer, round 2 with the crop of round 1's
box. The row without words is what `direct` reads: the protocol's `direct_prefix`, of which nothing is learned, and the
rating.

The order mixes several data sets by weight, each in shuffled epochs. It is a function of sizes, weights and the seed,
so a resumed run has the same rows at the same steps, with any number of processes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train_iqa.rows.completions import TrainingRow, complete
from train_iqa.rows.conversations import Conversation
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.pixels import factor_of, whole_size
from zoomiqa_reward.model.trie import RatingTrie
from zoomiqa_reward.model.turns import Prompted, round1, round2
from zoomiqa_reward.protocol import Protocol, read_route, zoom

ROUND1, ROUND2, DIRECT = "round1", "round2", "direct"
CHARACTERS_PER_TOKEN = 4
"""Of plain text, roughly; lengths are only compared, to put like ones together."""


def build_row(checkpoint: Checkpoint, trie: RatingTrie, conversation: Conversation, kind: str) -> TrainingRow:
    """Return the row of this kind: ROUND1, ROUND2 (the conversation must have one) or DIRECT.

    Raises ValueError for another kind, and for an answer that does not begin as the protocol begins it; ImageError for
    an image that cannot be read.
    """
    image, question = load_image(conversation.image), conversation.question
    protocol = checkpoint.protocol
    if kind == ROUND1:
        return _answered(checkpoint, round1(protocol, image, question), 1, conversation.rounds[0])
    if kind == ROUND2 and len(conversation.rounds) == 2:
        first, second = conversation.rounds
        crop, _ = zoom(image, read_route(first).bbox, protocol.crop)
        return _answered(checkpoint, round2(protocol, image, crop, first, question), 2, second)
    if kind == DIRECT:
        text = f"{protocol.direct_prefix}{conversation.rating:.2f}"
        shared = len(trie.prefix_ids)  # what all ratings share is no choice, so it is not learned
        return complete(checkpoint, round1(protocol, image, question), text, first_target=shared, ends=False)
    raise ValueError(f"no row of kind {kind!r} for a conversation of {len(conversation.rounds)} rounds")


def _answered(checkpoint: Checkpoint, prompted: Prompted, number: int, text: str) -> TrainingRow:
    """Return the row of a round; what the protocol writes for the model belongs to the request, as in inference."""
    start = checkpoint.protocol.answer_start(number)
    if not text.startswith(start):
        raise ValueError(f"round {number}: the answer must begin with {start!r}, as the protocol begins it")
    return complete(checkpoint, replace(prompted, start=start), text.removeprefix(start))


def fitting_protocol(protocol: Protocol, conversations: Iterable[Conversation]) -> Protocol:
    """Return the protocol, without the beginnings of its answers if any of the conversations begins otherwise.

    A beginning that is never learned would be forced on the model when it is asked.
    """
    begun = (
        text.startswith(protocol.answer_start(number))
        for conversation in conversations
        for number, text in enumerate(conversation.rounds, start=1)
    )
    return protocol if all(begun) else replace(protocol, answer_starts=())


def row_kinds(conversation: Conversation) -> tuple[str, ...]:
    """Return the kinds of its rows with words."""
    return (ROUND1, ROUND2)[: len(conversation.rounds)]


def estimate_length(checkpoint: Checkpoint, conversation: Conversation, kind: str) -> int:
    """Return roughly how many tokens the row will have, from the image's size alone (its pixels are not decoded)."""
    if isinstance(conversation.image, str) or hasattr(conversation.image, "__fspath__"):
        with Image.open(conversation.image) as image:
            width, height = image.size
    else:
        height, width = load_image(conversation.image).shape[1:]
    protocol, factor = checkpoint.protocol, factor_of(checkpoint.image_processor)
    sides = whole_size(height, width, factor=factor, min_pixels=protocol.min_pixels, max_pixels=protocol.max_pixels)
    features = sides[0] * sides[1] // factor**2
    if kind == DIRECT:
        return features
    if kind == ROUND1:
        return features + len(conversation.rounds[0]) // CHARACTERS_PER_TOKEN
    return 2 * features + sum(map(len, conversation.rounds)) // CHARACTERS_PER_TOKEN


def plan_rows(sizes: Sequence[int], weights: Sequence[float], total: int, seed: int) -> NDArray[np.int64]:
    """Return int64 [total, 2]: (data set, row) of each draw.

    A data set's share is proportional to size x weight: at weight 1 every row comes equally often, at weight 2 twice
    as often. After every draw each data set has had its share to within one row; none of its rows comes again before
    all have come. Raises ValueError for an empty data set, negative weights or no weight at all.

    >>> plan_rows([2, 4], [1.0, 0.5], 4, seed=0)[:, 0].tolist()
    [0, 1, 0, 1]
    """
    if len(sizes) != len(weights) or not sizes:
        raise ValueError(f"{len(sizes)} data sets and {len(weights)} weights: give one weight each")
    wanted = np.asarray(sizes, dtype=np.float64) * np.asarray(weights, dtype=np.float64)
    if min(sizes) < 1 or (wanted < 0).any() or wanted.sum() == 0:
        raise ValueError(f"sizes {list(sizes)} and weights {list(weights)}: sizes >= 1, weights >= 0, not all 0")
    shares = wanted / wanted.sum()
    drawn = np.zeros(len(sizes), dtype=np.int64)
    plan = np.empty((total, 2), dtype=np.int64)
    orders: dict[int, NDArray[np.int64]] = {}
    for position in range(total):
        source = int(np.argmax(np.round(shares * (position + 1) - drawn, 9)))  # rounded: equal debts go by order
        epoch, index = divmod(int(drawn[source]), sizes[source])
        if index == 0:
            orders[source] = np.random.default_rng([seed, source, epoch]).permutation(sizes[source])
        plan[position] = source, orders[source][index]
        drawn[source] += 1
    return plan
