"""Pairs: symmetry bit for bit, the same order as the ratings, the question in both orders, calibration."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_image, make_tiny_checkpoint, tiny_checkpoint, tiny_protocol

from zoomiqa_reward import MetricReward, Scores, ZoomIQA, rank
from zoomiqa_reward.model.direct import answers_after, leaf_logprobs
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.order_by_pairs import PairJudge, order_by_pairs
from zoomiqa_reward.model.pairs import (
    TEMPERATURE,
    fit_temperature,
    log_odds_of,
    pair_probabilities,
    probability_of,
)
from zoomiqa_reward.model.turns import pair_turn
from zoomiqa_reward.protocol import PairPrompt, Protocol, ProtocolError

PAIR = PairPrompt(text="Which image is better?", labels=("First: ", "Second: "), answers=("1", "2"))


@pytest.fixture(scope="module")
def iqa():
    return ZoomIQA.from_pretrained(tiny_checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A model that has learnt to answer 1 or 2, and prefers the first place."""
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("pair"), protocol=tiny_protocol(pair=PAIR))
    iqa = ZoomIQA.from_pretrained(folder, device="cpu")
    checkpoint = iqa.checkpoint
    trie = answers_after(checkpoint, PAIR.prefix, {"1": 0.0, "2": 1.0})
    rows = [make_row(checkpoint, pair_turn(PAIR, make_image(k), make_image(k + 1))) for k in range(2)]
    checkpoint.model.requires_grad_(True)
    optimizer = torch.optim.Adam(checkpoint.model.parameters(), lr=2e-3)
    for _ in range(12):
        loss = -torch.logsumexp(leaf_logprobs(checkpoint, trie, rows), dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    checkpoint.model.requires_grad_(False)
    return iqa


@given(st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=True))
def test_two_probabilities_of_one_pair_add_to_one_bit_for_bit(value):
    odds = torch.tensor([value, -value], dtype=torch.float64)
    first, second = probability_of(odds).tolist()
    assert first + second == 1.0
    assert (first > 0.5) <= (value > 0)
    assert math.isclose(first, 1 / (1 + math.exp(-value)) if value > -700 else 0.0, abs_tol=1e-15)


def test_equal_odds_are_a_half_and_nan_stays():
    assert probability_of(torch.tensor([0.0, -0.0])).tolist() == [0.5, 0.5]
    assert probability_of(torch.tensor([math.nan])).isnan().all()


def test_compare_follows_the_ratings_and_is_symmetric(iqa):
    images = [make_image(k, 84, 84) * (k + 1) / 4 for k in range(4)]
    ratings = iqa.rate(images, strict=True)
    firsts, seconds = [0, 1, 2, 3, 0], [1, 3, 0, 2, 0]
    there = iqa.compare([images[k] for k in firsts], [images[k] for k in seconds])
    back = iqa.compare([images[k] for k in seconds], [images[k] for k in firsts])
    assert torch.equal(there.probability + back.probability, torch.ones(5, dtype=torch.float64))
    assert there.probability[4] == 0.5
    assert len(there) == 5
    assert bool(there.valid.all())
    for index, (a, b) in enumerate(zip(firsts[:4], seconds[:4], strict=True)):
        difference = float(ratings.mean[a]) - float(ratings.mean[b])
        spread = math.hypot(float(ratings.std[a]), float(ratings.std[b]))
        expected = 1 / (1 + math.exp(-difference / spread / TEMPERATURE))
        assert float(there.probability[index]) == pytest.approx(expected, abs=1e-9)
        assert (there.probability[index] > 0.5) == (difference > 0)
    surer = iqa.compare(images[0], images[3], temperature=TEMPERATURE / 2).probability[0]
    less_sure = iqa.compare(images[0], images[3]).probability[0]
    assert abs(surer - 0.5) > abs(less_sure - 0.5)


def test_a_pair_with_an_empty_image_is_not_valid_and_says_which(iqa):
    result = iqa.compare([make_image(0), torch.zeros(3, 64, 64)], [torch.zeros(3, 64, 64), make_image(1)])
    assert not result.valid.any()
    assert result.probability.isnan().all()
    assert result.errors[0].startswith("b: the image has no content")
    assert result.errors[1].startswith("a: the image has no content")


def test_wrong_arguments_are_named(iqa):
    with pytest.raises(ValueError, match="2 images against 1"):
        iqa.compare([make_image(0), make_image(1)], make_image(2))
    with pytest.raises(ValueError, match="must be 'ratings' or 'question'"):
        iqa.compare(make_image(0), make_image(1), how="both")
    with pytest.raises(ValueError, match="temperature=0"):
        iqa.compare(make_image(0), make_image(1), temperature=0)
    for temperature in (0, -1.0):
        with pytest.raises(ValueError, match="must be above 0"):
            iqa.compare(make_image(0), make_image(1), how="question", temperature=temperature)
    with pytest.raises(ValueError, match="leave one of them out"):
        iqa.compare(make_image(0), make_image(1), how="question", question="Which?")
    with pytest.raises(ValueError, match="has no pair question"):
        iqa.compare(make_image(0), make_image(1), how="question")
    plain = MetricReward(lambda image: image.mean(), name="mean", higher_is_better=True, score_range=(0, 1))
    with pytest.raises(ValueError, match="need a standard deviation"):
        pair_probabilities(plain([make_image(0), make_image(1)]))


def test_a_matrix_of_probabilities_is_the_pairs(iqa):
    images = [make_image(k, 84, 84) for k in range(3)] + [torch.zeros(3, 64, 64)]
    matrix = pair_probabilities(iqa.rate(images, strict=True))
    assert matrix.shape == (4, 4)
    assert torch.equal(matrix[:3, :3] + matrix[:3, :3].T, torch.ones(3, 3, dtype=torch.float64))
    assert matrix[3].isnan().all()
    assert matrix[:, 3].isnan().all()
    assert matrix[0, 2] == iqa.compare(images[0], images[2]).probability[0]


@pytest.mark.integration
def test_the_question_is_asked_in_both_orders(asked):
    images = [make_image(k, 64, 64) for k in range(3)]
    there = asked.compare([images[0], images[1], images[2]], [images[1], images[2], images[2]], how="question")
    back = asked.compare([images[1], images[2], images[2]], [images[0], images[1], images[2]], how="question")
    assert bool(there.valid.all())
    assert torch.equal(there.probability + back.probability, torch.ones(3, dtype=torch.float64))
    assert there.probability[2] == 0.5
    checkpoint = asked.checkpoint
    trie = answers_after(checkpoint, PAIR.prefix, {"1": 0.0, "2": 1.0})
    odds = []
    for shown in (images[:2], images[1::-1]):
        one = leaf_logprobs(checkpoint, trie, [make_row(checkpoint, pair_turn(PAIR, *shown))])[0]
        odds.append(float(one[0] - one[1]))
    expected = 1 / (1 + math.exp(-(odds[0] - odds[1]) / 2))
    assert float(there.probability[0]) == pytest.approx(expected, abs=1e-9)
    assert there.probability[0] != 0.5


def test_a_question_without_an_answer_is_not_valid(tmp_path):
    folder = make_tiny_checkpoint(tmp_path, protocol=tiny_protocol(pair=PAIR))
    iqa = ZoomIQA.from_pretrained(folder, device="cpu")
    result = iqa.compare([make_image(0), torch.zeros(3, 64, 64)], [make_image(1), make_image(1)], how="question")
    assert not result.valid.any()
    assert result.errors[0] == "the two answers hold less than half of the probability"
    assert result.errors[1].startswith("a: the image has no content")


def test_the_pair_question_lives_in_the_protocol_file():
    protocol = tiny_protocol(pair=PAIR)
    assert Protocol.from_dict(json.loads(protocol.to_json())) == protocol
    assert protocol.fingerprint != tiny_protocol().fingerprint
    with pytest.raises(ProtocolError, match="give two of each, and two different answers"):
        PairPrompt(text="?", labels=("a", "b"), answers=("1", "1"))


def test_the_fitted_temperature_is_the_one_that_made_the_outcomes():
    generator = torch.Generator().manual_seed(0)
    odds = torch.randn(20000, generator=generator, dtype=torch.float64)
    outcomes = torch.rand(20000, generator=generator, dtype=torch.float64) < probability_of(odds / 0.4)
    assert fit_temperature(odds.tolist(), outcomes.tolist()) == pytest.approx(0.4, rel=0.05)
    with pytest.raises(ValueError, match="0 log-odds and 1 outcomes"):
        fit_temperature([], [True])


def test_odds_grow_with_the_difference_and_fall_with_the_spread():
    scores = Scores(value=torch.tensor([1.0, 2.0, 4.0]), std=torch.full((3,), 0.5), valid=torch.ones(3).bool())
    matrix = pair_probabilities(scores, temperature=1.0)
    assert matrix[2, 0] > matrix[2, 1] > 0.5
    one = torch.tensor([1.0])
    narrow = log_odds_of(one * 3, one * 0.3, one, one * 0.4, 1.0)
    assert float(narrow) == pytest.approx(2 / 0.5)


def ratings_of(*means, std=0.5):
    value = torch.tensor(means)
    return Scores(value=value, std=torch.full_like(value, std), valid=~value.isnan())


def test_an_order_asks_only_about_unsure_neighbours():
    by_rating = pair_probabilities(ratings_of(4.0, 3.99, 3.0, 2.0, 1.99))
    shown = []

    def question(first, second):
        shown.append((first, second))
        return 0.97 if first > second else 0.03  # of each unsure pair the later image is better

    judge = PairJudge(by_rating=by_rating, question=question)
    result = order_by_pairs(judge, range(5), confidence=0.9)
    assert result.order == (1, 0, 2, 4, 3)
    assert result.questions == len(shown) == 2  # of 10 pairs
    assert result.ties == ()
    assert all(value >= 0.9 for value in result.sureness)


def test_without_a_question_unsure_neighbours_are_ties():
    judge = PairJudge(by_rating=pair_probabilities(ratings_of(4.0, 3.99, 3.0, 2.0, 1.99)))
    result = order_by_pairs(judge, range(5), confidence=0.9)
    assert result.order == (0, 1, 2, 3, 4)
    assert result.ties == ((0, 1), (3, 4))
    assert result.questions == 0


def test_a_question_without_answer_leaves_the_rating():
    judge = PairJudge(by_rating=pair_probabilities(ratings_of(4.0, 3.99)), question=lambda *_: math.nan)
    result = order_by_pairs(judge, range(2), confidence=0.9)
    assert result.order == (0, 1)
    assert result.sureness[0] == judge.by_rating[0, 1]


def test_rank_with_confidence_keeps_the_order_and_names_what_is_unsure(iqa):
    images = [make_image(0, 84, 84) * share for share in (0.3, 1.0, 0.301)] + [torch.zeros(3, 64, 64)]
    plain, sure = rank(iqa, images), rank(iqa, images, confidence=0.9)
    assert sure.order == plain.order
    assert sure.order[0] == 1
    assert sure.invalid == (3,)
    matrix = pair_probabilities(iqa.rate(images, strict=True))
    assert sure.sureness == tuple(float(matrix[a, b]) for a, b in zip(sure.order[:2], sure.order[1:3], strict=True))
    expected = [[sure.order[0]]]
    for index, probability in zip(sure.order[1:3], sure.sureness, strict=True):
        expected[-1].append(index) if probability < 0.9 else expected.append([index])
    assert sure.ties == tuple(tuple(group) for group in expected if len(group) > 1)
    for wrong in ({"confidence": 0.5}, {"confidence": 0.9, "kappa": 1.0}, {"confidence": 0.9, "mode": "reason"}):
        with pytest.raises(ValueError, match=r"above 0\.5 and below 1"):
            rank(iqa, images, **wrong)


def test_rank_asks_a_model_that_can_compare(iqa):
    """The taught model says digits after its prefix, whatever it is asked: two of them serve as answers here."""
    prefix = iqa.protocol.direct_prefix
    digits = answers_after(iqa.checkpoint, prefix, {digit: float(digit) for digit in "12345"})
    images = [make_image(k, 64, 64) * share for k, share in enumerate((0.5, 0.6, 1.0))]
    row = make_row(iqa.checkpoint, pair_turn(PAIR, images[0], images[1]))
    answers = leaf_logprobs(iqa.checkpoint, digits, [row])[0].topk(2).indices.tolist()
    pair = replace(PAIR, prefix=prefix, answers=tuple("12345"[k] for k in answers))
    comparing = ZoomIQA(replace(iqa.checkpoint, protocol=replace(iqa.protocol, pair=pair)))
    confidence = 0.999999
    ranking = rank(comparing, images, confidence=confidence)
    matrix = pair_probabilities(iqa.rate(images, strict=True))
    assert 0 < ranking.questions <= 3
    for better, worse, sureness in zip(ranking.order, ranking.order[1:], ranking.sureness, strict=False):
        rated = float(matrix[better, worse])
        answer = comparing.compare(images[better], images[worse], how="question").probability
        is_asked = max(rated, 1 - rated) < confidence and not bool(answer.isnan()[0])
        assert sureness == (float(answer[0]) if is_asked else rated)
    assert rank(iqa, images, confidence=confidence).questions == 0
