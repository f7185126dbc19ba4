"""Drafts change how many passes an answer takes, and not a token of it."""

from dataclasses import replace

import pytest
import torch
from tiny import ARCHS, make_image, make_tiny_checkpoint

from zoomiqa_reward.model import decode, drafts
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.decode import AnswerCache, write_answers
from zoomiqa_reward.model.drafts import DRAFT, Drafts
from zoomiqa_reward.model.generate import SampledChoice, Sampling, generate
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.reading import SharedReading
from zoomiqa_reward.model.reason import assess_images
from zoomiqa_reward.model.turns import round1


@pytest.fixture(scope="module", params=ARCHS)
def checkpoint(request, tmp_path_factory):
    """Untaught, with large weights: every token shows in the next ones. One key serves several heads."""
    return load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("random"), request.param, 3), device="cpu")


@pytest.fixture
def read(monkeypatch):
    """Sizes of the passes that check drafts."""
    sizes, own = [], AnswerCache.read
    monkeypatch.setattr(AnswerCache, "read", lambda self, ids: sizes.append(tuple(ids.shape)) or own(self, ids))
    return sizes


def rows_of(checkpoint):
    return [make_row(checkpoint, round1(checkpoint.protocol, make_image(k, 64 + 30 * k, 90))) for k in range(3)]


def written(checkpoint, rows, *, learned=(), length=41, ends=()):
    """Write with drafts from `learned`."""
    shared = SharedReading()
    for answer in learned:
        shared.drafts.learn(answer, 0)
    choice = SampledChoice(checkpoint, Sampling(max_new_tokens=length), len(rows))
    return write_answers(checkpoint, rows, choice, max_new_tokens=length, ends=ends, shared=shared)


def plainly(checkpoint, rows, length=41, ends=()):
    choice = SampledChoice(checkpoint, Sampling(max_new_tokens=length), len(rows))
    return write_answers(checkpoint, rows, choice, max_new_tokens=length, ends=ends)


def test_right_wrong_and_half_right_drafts_give_the_same_tokens(checkpoint, read):
    rows = rows_of(checkpoint)
    expected = plainly(checkpoint, rows)
    assert not read
    assert written(checkpoint, rows, learned=expected) == expected
    assert sum(columns for _, columns in read) >= 24
    wrong = [[token + 1 if index % 5 == 3 else token for index, token in enumerate(answer)] for answer in expected]
    read.clear()
    assert written(checkpoint, rows, learned=wrong) == expected
    assert read
    read.clear()
    assert written(checkpoint, rows, learned=[expected[0], *wrong[1:]]) == expected
    assert read


def test_an_answer_ends_within_a_draft(checkpoint, read):
    rows = rows_of(checkpoint)
    expected = plainly(checkpoint, rows)
    ends = [expected[1][13]]
    cut = plainly(checkpoint, rows, ends=ends)
    assert len(cut[1]) <= 14
    assert written(checkpoint, rows, learned=expected, ends=ends) == cut
    assert read
    for length in (1, 2, 9, 10, 12):
        assert written(checkpoint, rows, learned=expected, length=length) == [one[:length] for one in expected]


def test_the_cache_grows_with_drafts(checkpoint, monkeypatch):
    rows = rows_of(checkpoint)
    expected = plainly(checkpoint, rows)
    monkeypatch.setattr(decode, "GROWTH", DRAFT + 2)
    assert written(checkpoint, rows, learned=expected) == expected
    wrong = [[token + 1 if index % 3 == 2 else token for index, token in enumerate(answer)] for answer in expected]
    assert written(checkpoint, rows, learned=wrong) == expected


def test_the_answers_of_a_call_are_drafts_for_the_next_ones(checkpoint, read):
    rows, shared, sampling = rows_of(checkpoint), SharedReading(), Sampling(max_new_tokens=24)
    first = generate(checkpoint, rows, sampling, shared=shared)
    read.clear()
    again = generate(checkpoint, rows, sampling, shared=shared)
    assert [one.text for one in again] == [one.text for one in first]
    assert read


def test_strict_and_sampled_answers_take_no_drafts(checkpoint, read):
    image = make_image(0, 64, 90)
    images = [image, image, image]
    greedy = Sampling(max_new_tokens=24)
    strict = assess_images(checkpoint, images, sampling=greedy, batch_size=1, rounds=1, strict=True)
    assert not read
    usual = assess_images(checkpoint, images, sampling=greedy, batch_size=1, rounds=1)
    assert read
    assert [one.turns[0].text for [one] in usual] == [one.turns[0].text for [one] in strict]
    read.clear()
    drawn = replace(greedy, temperature=1.0, seed=1)
    assess_images(checkpoint, images, sampling=drawn, batch_size=1, rounds=1)
    assert not read


def test_the_longest_context_counts_and_then_the_newest_answer():
    table = Drafts()
    table.learn([1, 2, 3, 4, 5], 0)
    table.learn([9, 3, 7, 7], 0)
    assert table.after([[8, 3]]) == [[7, 7]]
    assert table.after([[2, 3]]) == [[4, 5]]
    assert table.after([[8, 3], [2, 3], [6, 6]]) == [[7, 7], [4, 5], [0, 0]]
    assert table.after([[8, 3], [6, 6], [6, 6]]) is None, "fewer than half have a draft"
    long = list(range(10, 40))
    table.learn(long, 0)
    assert table.after([[10]]) == [long[1 : 1 + DRAFT]]


def test_drafts_that_are_not_accepted_pause():
    table = Drafts()
    table.learn([1, 2, 3], 0)
    while table.after([[1]]) is not None:
        table.accepted(1.0)
    asked = 1
    while table.after([[1]]) is None:
        asked += 1
        assert asked < 20
    assert asked == drafts.PAUSE


def test_old_contexts_are_dropped(monkeypatch):
    monkeypatch.setattr(drafts, "MOST_CONTEXTS", 10)
    table = Drafts()
    for start in range(0, 500, 5):
        table.learn(list(range(start, start + 5)), 0)
    assert table.after([[0, 1]]) is None
    assert table.after([[495, 496]]) == [[497, 498, 499]]
    assert len(table._next) + len(table._older) < 60


@torch.no_grad()
def test_one_pass_reads_what_steps_read(checkpoint):
    """Hidden values of five tokens, read at once and one by one, behind columns that are not seen."""
    rows = rows_of(checkpoint)
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5], [7, 7, 5, 5, 6]])
    _, steps = decode._read_prompts(checkpoint, rows, SharedReading())
    steps.prepare(5)
    one_by_one = torch.stack([steps.step(column) for column in ids.unbind(1)], dim=1)
    _, passes = decode._read_prompts(checkpoint, rows, SharedReading())
    passes.read(torch.full((3, 4), 11))
    passes.accept(torch.zeros(3, dtype=torch.int64), 4)
    together = passes.read(ids).view_as(one_by_one)
    torch.testing.assert_close(together, one_by_one, atol=1e-4, rtol=1e-4)
