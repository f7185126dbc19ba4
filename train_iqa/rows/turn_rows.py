"""The rows of a conversation: one for each round, and one that rates without words.

A round's row asks exactly what inference asks (`zoomiqa_reward.model.turns`), round 2 with the crop that round 1's box
cuts. The wordless row is what `direct` reads: the protocol's `direct_prefix`, of which nothing is
learned, and the rating.
"""

from PIL import Image

from train_iqa.rows.completions import TrainingRow, complete
from train_iqa.rows.conversations import Conversation
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.pixels import factor_of, whole_size
from zoomiqa_reward.model.trie import RatingTrie
from zoomiqa_reward.model.turns import round1, round2
from zoomiqa_reward.protocol import read_route, zoom

ROUND1, ROUND2, DIRECT = "round1", "round2", "direct"
CHARACTERS_PER_TOKEN = 4
"""Of plain text, roughly; lengths are only compared, to put like ones together."""


def build_row(checkpoint: Checkpoint, trie: RatingTrie, conversation: Conversation, kind: str) -> TrainingRow:
    """Return the row of this kind: ROUND1, ROUND2 (the conversation must have one) or DIRECT.

    Raises ValueError for another kind, ImageError for an image that cannot be read.
    """
    image, question = load_image(conversation.image), conversation.question
    protocol = checkpoint.protocol
    if kind == ROUND1:
        return complete(checkpoint, round1(protocol, image, question), conversation.rounds[0])
    if kind == ROUND2 and len(conversation.rounds) == 2:
        first, second = conversation.rounds
        crop, _ = zoom(image, read_route(first).bbox, protocol.crop)
        return complete(checkpoint, round2(protocol, image, crop, first, question), second)
    if kind == DIRECT:
        text = f"{protocol.direct_prefix}{conversation.rating:.2f}"
        shared = len(trie.prefix_ids)  # what all ratings share is no choice, so it is not learned
        return complete(checkpoint, round1(protocol, image, question), text, first_target=shared, ends=False)
    raise ValueError(f"no row of kind {kind!r} for a conversation of {len(conversation.rounds)} rounds")


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
