"""The rating trie under tokenizers of every kind: digits alone, merged digits, whole numbers, a merged boundary."""

import math
from itertools import pairwise

import pytest
import torch
from tiny import make_tokenizer

from zoomiqa_reward.model.trie import RATING_TEXTS, build_trie

PREFIX = '{"rating": '


def by_longest(words):
    """Return an `encode` that always takes the longest of `words`, or else one character."""
    ids = {word: 1000 + index for index, word in enumerate(sorted(words))}
    longest = max(map(len, words), default=1)

    def encode(text):
        found, place = [], 0
        while place < len(text):
            size = next((n for n in range(longest, 0, -1) if text[place : place + n] in ids), 0)
            found.append(ids[text[place : place + size]] if size else ord(text[place]))
            place += max(size, 1)
        return found

    return encode


ENCODERS = {
    "digits": by_longest([]),
    "two_digits": by_longest([f"{n:02d}" for n in range(100)]),
    "some_pairs": by_longest(["25", "50", "4.", "3.7", "2.50"]),
    "whole_numbers": by_longest(RATING_TEXTS),
    "boundary": by_longest([" 1", " 2", ": 3", "00"]),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_path_spells_the_tokens_of_its_rating(kind):
    encode = ENCODERS[kind]
    trie = build_trie(encode, PREFIX)
    assert trie.ratings == tuple(float(text) for text in RATING_TEXTS)
    assert len(trie.paths) == 401
    for text, path in zip(RATING_TEXTS, trie.paths, strict=True):
        assert [*trie.prefix_ids, *(trie.tokens[node] for node in path)] == encode(PREFIX + text)
        assert [trie.depths[node] for node in path] == list(range(1, len(path) + 1))
        assert trie.parents[path[0]] == -1
        assert all(trie.parents[child] == node for node, child in pairwise(path))
        assert all(node < trie.num_inner for node in path[:-1])
        assert path[-1] >= trie.num_inner


@pytest.mark.parametrize(("kind", "inner"), [("digits", 51), ("whole_numbers", 0)])
def test_only_inner_nodes_are_fed_to_the_model(kind, inner):
    assert build_trie(ENCODERS[kind], PREFIX).num_inner == inner


def test_the_boundary_token_is_no_part_of_the_prefix():
    trie = build_trie(ENCODERS["boundary"], PREFIX)
    assert trie.prefix_ids == tuple(map(ord, '{"rating"'))  # ": 3" and " 1" reach back over ": "


def test_real_tokenizers_with_and_without_merged_numbers():
    plain, merged = make_tokenizer(), make_tokenizer(merged_numbers=("3.2", "4.75"))
    tries = [
        build_trie(lambda text, t=tokenizer: t(text, add_special_tokens=False)["input_ids"], PREFIX)
        for tokenizer in (plain, merged)
    ]
    assert [max(trie.depths) for trie in tries] == [4, 4]
    assert min(len(path) for path in tries[1].paths) == 1
    assert plain.decode(list(tries[0].prefix_ids)) == PREFIX


def test_mask_lets_a_node_see_itself_and_its_ancestors_only():
    trie = build_trie(ENCODERS["some_pairs"], PREFIX)
    mask = trie.inner_mask()
    for node in range(trie.num_inner):
        seen, at = set(), node
        while at != -1:
            seen.add(at)
            at = trie.parents[at]
        assert set(mask[node].nonzero().flatten().tolist()) == seen


@pytest.mark.parametrize("kind", ENCODERS)
def test_uniform_logits_give_each_leaf_one_over_vocabulary_to_its_depth(kind):
    trie = build_trie(ENCODERS[kind], PREFIX)
    vocabulary = 2000
    found = trie.leaf_logprobs(torch.zeros(2, trie.num_inner + 1, vocabulary))
    depths = torch.tensor([float(len(path)) for path in trie.paths])
    torch.testing.assert_close(found, (-depths * math.log(vocabulary)).expand(2, -1))


def test_a_tokenizer_that_drops_digits_is_refused():
    with pytest.raises(ValueError, match="cannot tell all answers"):
        build_trie(lambda text: [ord(c) for c in text if c != "0"][:-1], PREFIX)
