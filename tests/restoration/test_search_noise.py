"""Search over noise: its rounds, its cost, its folder; never worse than its start."""

import json
import math

import pytest
import torch
from brightness_runs import LQ, brightness, prompted_brightness, same
from test_noise import grainy
from tiny_pipelines import convolutions, ldm

from restoration.restorer.noise import NoiseStep
from restoration.restorer.restorer import Restorer
from restoration.restorer.rng import candidate_seed
from restoration.search import search_noise
from restoration.selection.best_of_n import best_of_n
from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images import load_image, to_pil
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.rewards.metric import MetricReward


def search(restorer=None, reward=None, **options):
    restorer = restorer or Restorer.from_pretrained(grainy, fingerprint="grainy")
    return search_noise(restorer, LQ, reward or brightness(), progress=False, **({"n": 12, "seed": 3} | options))


def test_the_first_round_is_best_of_n_and_the_others_start_from_the_best():
    result = search()
    start = best_of_n(Restorer.from_pretrained(grainy), LQ, brightness(), n=4, seed=3, progress=False)
    assert [one.pixels for one in result.candidates[:4]] == [one.pixels for one in start.candidates]
    assert [one.parent for one in result.candidates[:4]] == [None] * 4
    for begin in (4, 8):
        best = max(result.candidates[:begin], key=lambda one: one.score)
        assert {one.parent for one in result.candidates[begin : begin + 4]} == {best.index}
    assert result.best.score >= start.best.score
    assert len({one.pixels for one in result.candidates}) == 12


def test_every_candidate_is_its_parents_noise_moved():
    result = search(keep=12)
    restorer = Restorer.from_pretrained(grainy)
    last = result.candidates[-1]
    chain = [last]
    while chain[0].parent is not None:
        chain.insert(0, result.candidates[chain[0].parent])
    assert len(chain) > 1
    steps = [NoiseStep(seed=candidate_seed(3, one.index), amount=0.5) for one in chain[1:]]
    again = next(iter(restorer.restore(LQ, [chain[0].seed], noise=steps))).image
    assert torch.equal(load_image(to_pil(again)), load_image(last.image))


@pytest.mark.integration
def test_it_never_ends_worse_than_it_started_and_climbs_further_than_chance():
    """The mean of the grain is what the reward sees: a direction in noise space that a climb finds."""
    pipeline = Restorer.from_pretrained(grainy)
    gains = []
    for seed in range(5):
        near = search(pipeline, n=40, seed=seed)
        plain = best_of_n(pipeline, LQ, brightness(), n=40, seed=seed, progress=False)
        assert near.best.score >= max(one.score for one in near.candidates[:4])
        gains.append(near.best.score - plain.best.score)
    assert sum(gains) / len(gains) > 0.0005


def test_equal_cost_is_counted():
    restored, scored = [], []

    def counted(image, seed):
        restored.append(seed)
        return grainy(image, seed)

    def score(image):
        scored.append(1)
        return image.mean()

    result = search(Restorer.from_pretrained(counted, fingerprint="c"), MetricReward(score, "mean", True, (0, 1)))
    assert len(restored) == len(scored) == 12
    assert result.report["cost"] == {"restorations": 12, "scores": 12}


def test_a_pipeline_climbs_too():
    result = search(Restorer.from_pretrained(ldm(), steps=1, eta=1.0), n=6, per_round=2)
    assert [one.parent is None for one in result.candidates] == [True, True, False, False, False, False]
    assert len({one.pixels for one in result.candidates}) == 6


def test_a_restorer_without_noise_takes_part_in_the_first_round_alone():
    bright = Restorer.from_pretrained(lambda image: torch.ones(3, 24, 32) - 0.1 * image.mean(), name="white", scale=2)
    pool = [bright, Restorer.from_pretrained(grainy)]
    result = search(pool, MetricReward(lambda image: image.std(), "contrast", True, (0, 1)), n=8)
    assert [one.restorer for one in result.candidates[:4]] == ["white", "grainy"] * 2
    assert {one.restorer for one in result.candidates[4:]} == {"grainy"}
    assert {one.parent for one in result.candidates[4:]} <= {1, 3}
    assert result.report["cost"] == {"restorations": 7, "scores": 7}
    with pytest.raises(ValueError, match="no noise to search"):
        search(Restorer.from_pretrained(convolutions(scale=2)))


def test_an_interrupt_loses_nothing_and_the_run_goes_on_with_more(tmp_path):
    calls = []

    def impatient(image):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return image.mean()

    reward = MetricReward(impatient, "mean", True, (0, 1), fingerprint="mean")
    with pytest.raises(KeyboardInterrupt):
        search(reward=reward, out=tmp_path, n=8)
    assert len((tmp_path / "candidates.jsonl").read_text().splitlines()) == 6
    result = search(reward=reward, out=tmp_path, n=12)
    assert len(calls) == 13
    assert same(result, search())
    assert [one.parent for one in result.candidates] == [one.parent for one in search().candidates]
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["finished"]
    assert report["settings"]["search"] == "noise"
    assert (tmp_path / "best.png").exists()
    with pytest.raises(ValueError, match=r"amount was 0\.5, now 0\.3"):
        search(reward=reward, out=tmp_path, amount=0.3)


def test_a_round_without_scores_draws_anew():
    seen = []

    def late(image):
        seen.append(1)
        return math.nan if len(seen) <= 4 else image.mean()

    result = search(reward=MetricReward(late, "late", True, (0, 1)), n=12)
    assert [one.parent is None for one in result.candidates] == [True] * 8 + [False] * 4


def test_wrong_arguments_are_named():
    for wrong in ({"n": 0}, {"per_round": 0}, {"amount": 0.0}, {"amount": 1.5}, {"seed": -1}, {"keep": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            search(**wrong)
    grouped = CompositeReward([Term(brightness(), 1.0, normalise="z"), Term(brightness(name="b"), 1.0)])
    with pytest.raises(ZoomIQAError, match="compares each image with its group"):
        search(reward=grouped)
    with pytest.raises(ValueError, match="needs hr="):
        search(reward=MetricReward(lambda image, hr: 0.0, "mse", True, (-1, 0), needs=("hr",)))


def test_a_reward_gets_the_prompt_also_in_later_rounds():
    seen = []
    with pytest.warns(UserWarning, match="takes no prompt"):
        search(reward=prompted_brightness(seen), n=6, prompts="a red house")
    assert seen == ["a red house"] * 6
    with pytest.raises(ValueError, match="reward 'text' needs prompts: pass prompts="):
        search(reward=prompted_brightness(seen), n=2)
