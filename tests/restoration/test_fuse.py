"""Fusion of candidates: the ratings decide what comes from where, and the input decides what must stay."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from brightness_runs import LQ, brightness, prompted_brightness
from tiny import make_image

from restoration.metrics.fidelity import lr_consistency
from restoration.restorer.restorer import Restorer
from restoration.search import fuse, fuse_candidates
from restoration.search.blending import blended, pixel_weights, view_weights
from restoration.selection.best_of_n import best_of_n
from zoomiqa_reward.images import load_image
from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.model.quality_map import plan_boxes
from zoomiqa_reward.rewards.metric import MetricReward


def doubled(image):
    return 0.2 + 0.5 * torch.nn.functional.interpolate(image[None], scale_factor=2, mode="bicubic")[0].clamp(0, 1)


def bright_left(image):
    made = doubled(image)
    made[:, :, : made.shape[2] // 2] += 0.12
    return made


def bright_right(image):
    made = doubled(image)
    made[:, :, made.shape[2] // 2 :] += 0.1
    return made


def pool():
    return [Restorer.from_pretrained(make, scale=2) for make in (bright_left, bright_right)]


def darkness():
    return MetricReward(lambda image: 1 - image.mean(), "darkness", True, (0, 1))


def fused(reward=None, **options):
    given = {"n": 2, "view_px": 16, "softness": 0.005, "progress": False} | options
    return fuse(pool(), LQ, reward or brightness(), **given)


def left_of(weights):
    return float(weights[:, : weights.shape[1] // 4].mean())


def test_each_region_comes_from_the_candidate_that_is_rated_best_there():
    result = fused()
    assert result.sources == (0, 1)
    assert left_of(result.weights[0]) > 0.99
    assert float(result.weights[1][:, -8:].mean()) > 0.99
    assert torch.allclose(result.weights.sum(dim=0), torch.ones(24, 32), atol=1e-6)
    assert float(result.weights.min()) >= 0


def test_the_fused_image_follows_the_ratings():
    """The same candidates in the same order: only what rates the views differs."""
    bright, dark = fused(), fused(rater=darkness())
    assert [one.pixels for one in bright.start.candidates] == [one.pixels for one in dark.start.candidates]
    assert left_of(dark.weights[0]) < 0.01
    assert not np.array_equal(np.asarray(bright.fused), np.asarray(dark.fused))


def test_what_was_done_to_the_input_is_told(tmp_path):
    glass = to_pil(LQ).convert("RGBA")
    glass.putalpha(200)
    glass.save(tmp_path / "lq.png")
    assert fused().report["notes"] == []
    [note] = fuse(pool(), tmp_path / "lq.png", brightness(), n=2, view_px=16, progress=False).report["notes"]
    assert "transparency" in note


def test_weights_have_no_steps():
    weights = fused().weights
    steps = (weights[:, :, 1:] - weights[:, :, :-1]).abs().max()
    assert float(steps) < 0.2  # a cut would be 1


def test_a_large_softness_averages():
    weights = fused(softness=1e6).weights
    assert torch.allclose(weights, torch.full_like(weights, 0.5), atol=1e-4)


@pytest.mark.parametrize("reward", [brightness, darkness])
def test_the_result_is_neither_worse_rated_nor_less_true_than_the_best_candidate(reward):
    result = fused(reward())
    floor = lr_consistency(load_image(result.start.best.image), LQ)
    assert result.agrees
    assert result.lr_consistency >= floor
    assert result.lr_consistency == lr_consistency(load_image(result.fused), LQ)
    assert result.best_score >= result.start.best.score
    assert result.is_chosen == (result.score > result.start.best.score)
    shown = load_image(result.image)
    assert result.best_score == pytest.approx(float(reward()([shown]).value[0]), abs=1e-6)


def test_back_projection_is_what_makes_it_agree():
    lq = make_image(1, 16, 16)
    large = torch.nn.functional.interpolate(lq[None], scale_factor=2, mode="bicubic")[0].clamp(0, 1)
    wrong = (large * 0.7 + 0.1).clamp(0, 1)
    weights = torch.full((2, 32, 32), 0.5)
    plain = blended([wrong, wrong], weights, lq, floor_db=0.0)
    assert plain.back_projections == 0
    floor = lr_consistency(load_image(large), lq)
    assert plain.lr_consistency < floor
    better = blended([wrong, wrong], weights, lq, floor_db=floor)
    assert better.agrees
    assert better.back_projections >= 1
    assert better.lr_consistency >= floor
    never = blended([wrong, wrong], weights, lq, floor_db=60.0)  # the measure ends at 50
    assert not never.agrees


def test_views_without_a_rating():
    ratings = torch.tensor([[3.0, torch.nan, torch.nan], [1.0, 2.0, torch.nan]])
    weights = view_weights(ratings, scores=[1.0, 3.0], softness=0.1)
    assert weights[:, 0].tolist() == pytest.approx([1, 0], abs=1e-6)
    assert weights[:, 1].tolist() == [0, 1]  # the first has lost what is there
    assert weights[:, 2].tolist() == pytest.approx([0, 1], abs=1e-6)  # nobody has it: the whole images decide
    boxes = plan_boxes(16, 32, 16)
    maps = pixel_weights(weights, boxes, 16, 32)
    assert torch.allclose(maps.sum(dim=0), torch.ones(16, 32), atol=1e-6)


def test_equal_cost_is_counted():
    result = fused()
    views = len(plan_boxes(24, 32, 16))
    assert result.report["cost"] == {"restorations": 2, "scores": 3, "view_ratings": 2 * views}


def test_an_interrupt_loses_no_map_and_the_run_goes_on(tmp_path):
    calls = []

    def impatient(image):
        calls.append(tuple(image.shape[1:]))
        if len(calls) == 2 + 6 + 3:  # two candidates, the views of the first one, half of those of the second one
            raise KeyboardInterrupt
        return image.mean()

    def run(fn, out):
        reward = MetricReward(fn, "mean", True, (0, 1), fingerprint="mean")
        return fused(reward, out=out)

    views = len(plan_boxes(24, 32, 16))
    assert views == 6
    with pytest.raises(KeyboardInterrupt):
        run(impatient, tmp_path)
    assert len((tmp_path / "views.jsonl").read_text().splitlines()) == 1
    result = run(impatient, tmp_path)
    assert len(calls) == 2 + 6 + 3 + 6 + 1
    assert np.array_equal(np.asarray(result.fused), np.asarray(fused().fused))
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["finished"]
    assert report["is_chosen"] == result.is_chosen
    assert {"fused.png", "best.png"} <= {file.name for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="softness"):
        fused(MetricReward(impatient, "mean", True, (0, 1), fingerprint="mean"), out=tmp_path, softness=0.1)


def test_candidates_that_are_drawn_already_can_be_fused():
    start = best_of_n(pool(), LQ, brightness(), n=2, progress=False)
    result = fuse_candidates(start.candidates, LQ, brightness(), view_px=16, softness=0.005)
    assert np.array_equal(np.asarray(result.fused), np.asarray(fused().fused))
    broken = [replace(one, valid=False, error="torn") for one in start.candidates]
    with pytest.raises(ValueError, match="none of 2 candidates could be measured; the first: torn"):
        fuse_candidates(broken, LQ, brightness(), view_px=16)


def test_one_different_candidate_is_nothing_to_fuse():
    with pytest.warns(UserWarning, match="same image"):
        result = fuse(bright_left, LQ, brightness(), n=2, view_px=16, progress=False)
    assert result.reason.startswith("one different candidate")
    assert not result.is_chosen


def test_wrong_arguments_are_named():
    for wrong, word in (({"top": 0}, "top"), ({"softness": 0.0}, "softness"), ({"n": 0}, "n=0")):
        with pytest.raises(ValueError, match=word):
            fused(**wrong)
    endless = MetricReward(lambda image: image.mean(), "endless", True, (0, float("inf")))
    with pytest.raises(ValueError, match="softness=None"):
        fuse(pool(), LQ, endless, n=2, progress=False)
    with pytest.raises(ValueError, match="5 px on each side"):
        fuse(pool(), LQ[:, :4], brightness(), n=2, progress=False)
    needy = MetricReward(lambda image, lq: image.mean(), "needy", True, (0, 1), needs=("lq",))
    with pytest.raises(ValueError, match="a map is made of one image"):
        fused(needy)
    one = Restorer.from_pretrained(lambda image: image, name="as it is", fingerprint="i")
    with pytest.raises(ValueError, match="different sizes"):
        fuse([*pool(), one], LQ, brightness(), n=3, progress=False)


def test_a_refused_call_leaves_no_run(tmp_path):
    """Else the corrected call would be another run than the one that its folder holds."""
    truth, text = (MetricReward(lambda image, **given: 0.5, "far", True, (0, 1), needs=(need,))
                   for need in ("hr", "prompts"))  # fmt: skip
    for reward, options, words in (
        (brightness(), {"n": 0}, "n=0"), (brightness(), {"seed": -1}, "seed=-1"), (truth, {}, "needs hr="),
        (text, {}, "needs prompts"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            fuse(pool(), LQ, reward, rater=brightness(), out=tmp_path / "run", progress=False, **({"n": 2} | options))
        assert not (tmp_path / "run").exists()


def test_a_reward_that_needs_a_text_gets_it_for_the_fused_image_too():
    seen = []
    reward = prompted_brightness(seen)
    with pytest.warns(UserWarning, match="takes no prompt"):
        fused(reward, prompts="a red house", rater=brightness())
    assert seen == ["a red house"] * 3
    start = best_of_n(pool(), LQ, brightness(), n=2, progress=False)
    with pytest.raises(ValueError, match="reward 'text' needs prompts: pass prompt="):
        fuse_candidates(start.candidates, LQ, reward, view_px=16, rater=brightness())
    fuse_candidates(start.candidates, LQ, reward, view_px=16, rater=brightness(), prompt="a house")
    assert seen[3:] == ["a house"]
