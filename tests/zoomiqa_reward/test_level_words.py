"""Protocols of level words: the same door as numbers, on three kinds of models, a recurrent one included."""

import json
import math

import pytest
import torch
from tiny import ARCHS, RECURRENT, make_image, make_tiny_checkpoint, tiny_protocol

from zoomiqa_reward import CachedReward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.cli.main import main
from zoomiqa_reward.model.direct import leaf_logprobs, summarise, trie_of
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.trie import build_trie
from zoomiqa_reward.model.turns import round1
from zoomiqa_reward.protocol import Protocol, ProtocolError, ViewPolicy, level_words

LEVELS = ("bad", "poor", "fair", "good", "excellent")
LESSONS = {"lessons": 24, "rate": 3e-3, "words": LEVELS}
"""Enough to say a level word, not enough to be sure which: the ratings must differ."""


pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*falling back to its reference PyTorch implementation"),
]


@pytest.fixture(scope="module", params=[*ARCHS, RECURRENT])
def iqa(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    make_tiny_checkpoint(folder, request.param, protocol=level_words(), **LESSONS)
    return ZoomIQA.from_pretrained(folder, device="cpu")


def by_hand(iqa, image):
    """The rating from transformers' own passes over each whole answer, word for word."""
    checkpoint = iqa.checkpoint
    row = make_row(checkpoint, round1(checkpoint.protocol, image))
    prefix = checkpoint.tokenizer(checkpoint.protocol.direct_prefix, add_special_tokens=False)["input_ids"]
    logprobs = []
    for word in LEVELS:
        text = checkpoint.protocol.direct_prefix + word
        ids = checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids[: len(prefix) - 1] == prefix[:-1]
        whole = torch.cat([row.input_ids, torch.tensor(ids)])[None]
        with torch.no_grad():
            logits = checkpoint.model(
                input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values=row.pixel_values,
                mm_token_type_ids=(whole == checkpoint.image_token_id).long(), image_grid_thw=row.image_grid_thw,
            ).logits[0].log_softmax(-1)  # fmt: skip
        start = len(row.input_ids)
        steps = range(len(iqa.trie.prefix_ids), len(ids))
        logprobs.append(sum(float(logits[start + k - 1, ids[k]]) for k in steps))
    return logprobs


def test_the_rating_is_the_words_mean_by_their_probabilities(iqa):
    image = make_image(3, 84, 84)
    logprobs = by_hand(iqa, image)
    shares = torch.tensor(logprobs).softmax(0)
    mean = float((shares * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum())
    ratings = iqa.rate([image], strict=True)
    assert bool(ratings.valid[0])
    assert float(ratings.mean[0]) == pytest.approx(mean, abs=2e-4)
    variance = float((shares * (torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) - mean) ** 2).sum())
    assert float(ratings.std[0]) == pytest.approx(math.sqrt(variance), abs=2e-4)


def test_batches_and_single_images_agree_and_strict_is_bit_equal(iqa):
    images = [make_image(k, *size) * (k + 1) / 3 for k, size in enumerate([(84, 84), (64, 96), (84, 84)])]
    together = iqa.rate(images)
    alone = torch.cat([iqa.rate([image], strict=True).mean for image in images])
    torch.testing.assert_close(together.mean, alone, atol=1e-4, rtol=0)
    assert torch.equal(iqa.rate(images[::-1], strict=True).mean.flip(0), alone)
    assert len(set(alone.tolist())) == 3


def test_the_rating_has_a_gradient_that_predicts_its_change(iqa):
    image = make_image(5, 64, 64).requires_grad_(True)
    ratings = iqa.rate([image], grad=True)
    ratings.mean.sum().backward()
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-3
    with torch.no_grad():
        up, down = (iqa.rate([(image + sign * step * direction).clamp(0, 1)]).mean[0] for sign in (1, -1))
        moved = (image + step * direction).clamp(0, 1) - (image - step * direction).clamp(0, 1)
    expected = float((image.grad * moved).sum())
    assert float(up - down) == pytest.approx(expected, rel=0.1, abs=2e-5)


def test_the_cache_tells_level_words_from_numbers(iqa, tmp_path):
    image = make_image(1, 64, 64)
    cached = CachedReward(ZoomIQAReward(iqa), tmp_path / "scores.db")
    first = cached([image])
    assert torch.equal(first.value, cached([image]).value)
    numbers = ZoomIQA.from_pretrained(iqa.checkpoint.source, device="cpu", protocol=tiny_protocol())
    assert numbers.fingerprint != iqa.fingerprint


def test_words_are_refused_where_the_model_only_names_a_level(iqa):
    with pytest.raises(ValueError, match=r"answers with one of bad, .* excellent, without reasons"):
        iqa.assess([make_image()])
    with pytest.raises(ValueError, match="without reasons"):
        iqa.rate([make_image()], mode="reason")


def test_the_name_stands_for_the_protocol_also_in_a_shell(tmp_path, capsys):
    folder = make_tiny_checkpoint(tmp_path / "model", protocol=level_words(), **LESSONS)
    (folder / "zoomiqa_protocol.json").unlink()
    iqa = ZoomIQA.from_pretrained(folder, device="cpu", protocol="level-words")
    assert iqa.protocol == level_words()
    from zoomiqa_reward.images import save_png

    image = save_png(make_image(2, 84, 84), tmp_path / "a.png")
    assert main(["score", str(image), "--json", "--model", str(folder), "--protocol", "level-words"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["rating"] == pytest.approx(float(iqa.rate([str(image)], strict=True).mean[0]), abs=1e-6)


def test_a_model_that_wants_to_say_something_else_gives_no_rating(tmp_path):
    iqa = ZoomIQA.from_pretrained(make_tiny_checkpoint(tmp_path, lessons=0), device="cpu", protocol="level-words")
    ratings = iqa.rate([make_image()])
    assert not bool(ratings.valid[0])
    assert bool(ratings.mean.isnan()[0])


def test_views_mix_the_distributions_of_level_words(tmp_path):
    protocol = level_words(views=ViewPolicy(scales=(1.0,), weights=(1.0,), tile_px=64))
    iqa = ZoomIQA.from_pretrained(make_tiny_checkpoint(tmp_path, protocol=protocol, **LESSONS), device="cpu")
    image = make_image(4, 56, 100)
    halves = [
        leaf_logprobs(iqa.checkpoint, iqa.trie, [make_row(iqa.checkpoint, round1(protocol, half), resize=False)])
        for half in (image[:, :, :56], image[:, :, 44:])
    ]
    mixed = summarise(torch.stack(halves).exp().mean(0).log(), iqa.trie.ratings)
    torch.testing.assert_close(iqa.rate([image]).mean, mixed.mean, atol=1e-5, rtol=0)


def test_words_of_several_tokens_are_read_through_the_tree(tmp_path):
    """Random weights: nothing is valid, but log-probabilities of whole words must be those of plain passes."""
    for arch in (*ARCHS, RECURRENT):
        iqa = ZoomIQA.from_pretrained(make_tiny_checkpoint(tmp_path / arch, arch), protocol="level-words", device="cpu")
        assert iqa.trie.num_inner > 5
        image = make_image(3, 84, 84)
        row = make_row(iqa.checkpoint, round1(iqa.protocol, image))
        read = leaf_logprobs(iqa.checkpoint, iqa.trie, [row, row])
        torch.testing.assert_close(read[0], torch.tensor(by_hand(iqa, image)), atol=2e-4, rtol=0)
        torch.testing.assert_close(read[0], read[1], atol=1e-5, rtol=0)


def test_single_token_words_take_one_pass_and_no_inner_node():
    words = {word: k for k, word in enumerate(LEVELS)}
    trie = build_trie(lambda text: [9, *(words[word] for word in text.split()[1:])], "is ", {w: 1.0 for w in LEVELS})
    assert trie.num_inner == 0
    assert trie.prefix_ids == (9,)
    assert len(trie.tokens) == 5


def test_files_and_fingerprints_of_protocols_with_numbers_stay_as_they_were():
    numbers = tiny_protocol()
    assert "levels" not in json.loads(numbers.to_json())
    assert "pair" not in json.loads(numbers.to_json())
    assert numbers.fingerprint != tiny_protocol(levels=LEVELS).fingerprint
    assert Protocol.from_dict(json.loads(level_words().to_json())) == level_words()
    assert level_words().level_ratings == dict(zip(LEVELS, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))
    with pytest.raises(ProtocolError, match="two or more different words"):
        tiny_protocol(levels=("good", "good"))
    with pytest.raises(ProtocolError, match="two or more different words"):
        tiny_protocol(levels=("good",))


def test_a_word_that_starts_another_is_refused(tmp_path):
    iqa = ZoomIQA.from_pretrained(
        make_tiny_checkpoint(tmp_path), device="cpu", protocol=tiny_protocol(levels=("good", "goods"))
    )
    with pytest.raises(ValueError, match=r"cannot tell all answers good \.\. goods apart"):
        trie_of(iqa.checkpoint)
