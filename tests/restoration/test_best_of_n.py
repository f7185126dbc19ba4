"""Best of N: the order, what each candidate is, failures, and what it says about identical images."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from brightness_runs import LQ, brightness, run, same, shifted
from tiny import tiny_iqa
from tiny_pipelines import controlnet, convolutions, ldm

from restoration.restorer.restorer import Restorer
from restoration.restorer.rng import candidate_seed
from restoration.selection.best_of_n import Cascade, best_of_n, measure_of
from restoration.selection.candidates import Candidate
from restoration.selection.early_stop import EarlyStop
from restoration.selection.sheet import words_of
from zoomiqa_reward import CompositeReward, ConsensusReward, RobustReward, Term, ZoomIQAReward
from zoomiqa_reward.images.sheet_entry import RATING_TIE
from zoomiqa_reward.rewards.metric import MetricReward


def test_the_best_is_the_best_and_scores_are_those_of_the_8_bit_images():
    result = run(keep=6)
    scores = [one.score for one in result.candidates]
    for one in result.candidates:
        assert one.score == pytest.approx(np.asarray(one.image).mean() / 255, abs=1e-6)
        assert one.image.size == (32, 24)
        assert one.seed == candidate_seed(0, one.index)
    assert result.best.score == max(scores)
    assert [one.rank for one in result.order] == [1, 2, 3, 4, 5, 6]
    assert [one.score for one in result.order] == sorted(scores, reverse=True)
    assert not result.identical
    assert result.notes == ()


def test_candidate_k_does_not_depend_on_n_batch_or_neighbours():
    pipeline = Restorer.from_pretrained(ldm(), steps=1, eta=1.0)
    options = {"progress": False, "keep": 4}
    reference = best_of_n(pipeline, LQ, brightness(), n=4, **options)
    one = best_of_n(pipeline, LQ, brightness(), n=1, **options)
    batched = best_of_n(pipeline, LQ, brightness(), n=4, batch_size=3, **options)
    assert one.candidates[0].pixels == reference.candidates[0].pixels
    assert same(reference, batched)
    assert len({c.pixels for c in reference.candidates}) > 1


def test_outside_strict_mode_batches_are_recorded():
    pipeline = Restorer.from_pretrained(controlnet(), scale=1, steps=1, strength=1.0)
    result = best_of_n(pipeline, LQ, brightness(), n=4, batch_size=3, strict=False, progress=False)
    assert [(c.batch_position, c.batch_size) for c in result.candidates] == [(0, 3), (1, 3), (2, 3), (0, 1)]
    assert result.best.prompt == ""


def test_only_the_best_images_are_held():
    result = run(n=8, keep=2)
    held = [one for one in result.candidates if one.held is not None]
    assert sorted(one.rank for one in held) == [1, 2]
    with pytest.raises(ValueError, match="was not kept"):
        _ = result.order[2].image


def test_failures_come_last_and_are_named(tmp_path):
    bad = {candidate_seed(0, 1), candidate_seed(0, 4)}

    def moody(image, seed):
        if seed in bad:
            raise RuntimeError("out of memory")
        return shifted(image, seed)

    def unsure(image):
        value = float(image.mean())
        return math.nan if value == max(seen) else value

    seen = [one.score for one in run(keep=6).candidates if one.seed not in bad]
    reward = MetricReward(unsure, "unsure", True, (0, 1))
    result = run(moody, reward, out=tmp_path)
    assert [one.rank for one in result.order] == [1, 2, 3, None, None, None]
    assert [one.index for one in result.order[3:]] == sorted(one.index for one in result.order[3:])
    assert all(math.isnan(one.score) and not one.valid for one in result.order[3:])
    assert {one.error for one in result.candidates if one.seed in bad} == {"moody: out of memory"}
    with pytest.raises(ValueError, match="has no image: moody"):
        _ = result.candidates[1].image
    assert len(result.notes) == 2
    assert result.notes[0].startswith("2 of 6 could not be made")
    assert result.notes[1].startswith("1 of 6 could not be measured; the first: unsure returned nan")
    assert same(run(moody, reward, out=tmp_path), result)
    nothing = run(moody, MetricReward(lambda image: math.nan, "nothing", True, (0, 1)))
    with pytest.raises(ValueError, match="none of 6 candidates"):
        _ = nothing.best


def test_a_deterministic_restorer_runs_once_and_says_that_nothing_was_chosen(tmp_path):
    calls = []

    def body(image):
        calls.append(1)
        return image

    fixed = Restorer.from_pretrained(body, fingerprint="fixed")  # its closure changes with every call
    with pytest.warns(UserWarning, match="all 6 candidates are the same image"):
        result = run(fixed, out=tmp_path)
    assert calls == [1]
    assert result.identical
    assert [one.rank for one in result.candidates] == [1] * 6
    assert [one.same_as for one in result.candidates] == [None, 0, 0, 0, 0, 0]
    assert len(list((tmp_path / "candidates").iterdir())) == 1
    assert json.loads((tmp_path / "run.json").read_text())["identical"]
    with pytest.warns(UserWarning, match="same image"):
        again = run(fixed, out=tmp_path)
    assert same(again, result)
    assert calls == [1]
    with pytest.warns(UserWarning, match="does not use its seed"):
        assert run(lambda image, seed: image).identical
    assert not run(fixed, n=1).identical


def test_equal_images_share_a_rank_also_where_another_ties_with_them():
    flat = MetricReward(lambda image: 1.0, "flat", True, (0, 1))
    fixed = [Restorer.from_pretrained(lambda image, by=by: image * by, name=str(by), scale=1) for by in (0.5, 0.9)]
    result = best_of_n(fixed, LQ, flat, n=5, progress=False)
    assert [one.rank for one in result.candidates] == [1, 4, 1, 4, 1]
    assert [one.index for one in result.order] == [0, 2, 4, 1, 3]


def test_a_mixed_pool_goes_round_restorers_then_prompts():
    def worded(image, seed, prompt):
        return shifted(image, seed) * (0.5 if prompt == "dark" else 1.0)

    pool = [Restorer.from_pretrained(worded), Restorer.from_pretrained(convolutions(scale=2))]
    with pytest.warns(UserWarning, match="Sequential takes no prompt"):
        result = run(pool, prompts=["dark", "light"], n=8, keep=8)
    assert [one.restorer for one in result.candidates] == ["worded", "Sequential"] * 4
    assert [one.prompt for one in result.candidates] == ["dark", None, "light", None] * 2
    assert [one.source for one in result.candidates] == [0, 1, 2, 3] * 2
    assert [one.same_as for one in result.candidates] == [None] * 5 + [1, None, 3]
    assert not result.identical
    shorter = run(pool, prompts=["dark", "light"], n=3)
    assert [one.pixels for one in shorter.candidates] == [one.pixels for one in result.candidates[:3]]


def test_rewards_get_what_they_need():
    seen = []

    def fn(image, lq, hr, prompt):
        seen.append((tuple(image.shape), torch.equal(lq, LQ), tuple(hr.shape), prompt))
        return float(-(image - hr).square().mean())

    reward = MetricReward(fn, "mse", True, (-1, 0), needs=("lq", "hr", "prompts"))
    hr = LQ.repeat_interleave(2, 1).repeat_interleave(2, 2)
    run(reward=reward, hr=hr, n=2, reward_prompt="a house")
    assert seen == [((3, 24, 32), True, (3, 24, 32), "a house")] * 2
    with pytest.raises(ValueError, match="reward 'mse' needs hr="):
        run(reward=reward)


def test_numbers_out_of_range_are_refused():
    for options in ({"n": 0}, {"keep": 0}, {"batch_size": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="seed must be at least 0, the others at least 1"):
            run(**options)
    with pytest.raises(ValueError, match="0 restorers"):
        run([])
    with pytest.raises(ValueError, match="top=0"):
        Cascade(reward=brightness(), top=0)
    with pytest.raises(ValueError, match="min_draws=2"):
        EarlyStop(min_draws=2)
    with pytest.raises(ValueError, match="min_gain=0"):
        EarlyStop(min_gain=0)


@pytest.mark.parametrize(
    ("wrap", "measure", "tie"),
    [
        (lambda rating: rating, "rating", RATING_TIE),
        (lambda rating: RobustReward(rating, copies=2), "rating", RATING_TIE),
        (ConsensusReward, "score", RATING_TIE),
        (lambda rating: CompositeReward([Term(rating), Term(brightness())]), "score", 0.0),
        (lambda rating: brightness(), "score", 0.0),
    ],
)
def test_only_ratings_of_1_to_5_are_called_ratings(wrap, measure, tie):
    reward = wrap(ZoomIQAReward(tiny_iqa()))
    assert measure_of(reward) == {"measure": measure, "tie": tie}
    words = words_of((), {"settings": {"reward": {"name": reward.name}}, "arguments": measure_of(reward)})
    assert words.measure == measure
    assert ("1 bad to 5 excellent" in words.title) == (measure == "rating")


def test_the_sheet_says_how_many_were_scored_again():
    rows = [Candidate(index=k, seed=k, restorer="r", source=0, prompt=None, batch_position=0, batch_size=1)
            for k in range(3)]  # fmt: skip
    report = {"settings": {"reward": {"name": "a"}}, "arguments": {"tie": 0.0, "cascade": {"reward": "b"}}}
    for again, words in ((1, "The first was scored again by b."), (2, "The first 2 were put in order by b.")):
        order = [replace(row, cascade_score=1.0) if k < again else row for k, row in enumerate(rows)]
        assert words in words_of(order, report).title


def texts_seen():
    """Return a reward that needs a text, and the list of the texts that it gets."""
    seen = []

    def fn(image, prompt):
        seen.append(prompt)
        return image.mean()

    return MetricReward(fn, "text", True, (0, 1), needs=("prompts",), fingerprint="text"), seen


def test_a_reward_gets_the_prompt_that_its_restorer_drops():
    reward, seen = texts_seen()
    with pytest.warns(UserWarning, match="takes no prompt"):
        result = run(shifted, reward, n=2, prompts="a red house")
    assert seen == ["a red house"] * 2
    assert [one.prompt for one in result.candidates] == [None, None]  # what the restorer used
    seen.clear()
    with pytest.warns(UserWarning, match="takes no prompt"):
        run(Restorer.from_pretrained(shifted, prompt=lambda image: f"{image.shape[2]} px"), reward, n=1)
    assert seen == [f"{LQ.shape[2]} px"]
    seen.clear()
    grouped = CompositeReward([Term(reward, 1.0, "z")])
    second = Cascade(reward=reward, top=1)
    with pytest.warns(UserWarning, match="takes no prompt"):
        run(shifted, grouped, n=2, prompts="a house", cascade=second)
    assert seen == ["a house"] * 3


def test_a_reward_that_needs_a_text_is_refused_without_one():
    reward, seen = texts_seen()
    with pytest.raises(ValueError, match="reward 'text' needs prompts: pass prompts="):
        run(shifted, reward, n=2)
    with pytest.raises(ValueError, match="reward 'text' needs prompts: pass prompts="):
        run(shifted, brightness(), n=2, cascade=Cascade(reward=reward, top=1))
    run(shifted, reward, n=1, reward_prompt="a red house")
    assert seen == ["a red house"]
