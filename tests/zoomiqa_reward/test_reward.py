"""Rewards: oriented higher-is-better, and a failed measurement is NaN with its reason, never a low value."""

import functools
import math

import pytest
import torch
from tiny import ARCHS, make_image, tiny_iqa

from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward


def brightness(image):
    return image.mean()


def metric(fn=brightness, **options):
    fields = {"name": "m", "higher_is_better": True, "score_range": (0, 100)}
    return MetricReward(fn, **(fields | options))


@pytest.fixture(params=ARCHS)
def iqa(request):
    return tiny_iqa(request.param)


def test_both_kinds_are_rewards(iqa):
    for reward in (metric(), ZoomIQAReward(iqa)):
        assert isinstance(reward, Reward)
        assert reward.higher_is_better is True
        assert reward.score_range[0] < reward.score_range[1]
    assert not isinstance(iqa, Reward)


def test_a_lower_is_better_metric_is_negated_with_its_range():
    niqe = metric(higher_is_better=False, score_range=(0, 100))
    found = niqe([make_image() * 0 + 0.25, make_image() * 0 + 0.75])
    assert found.value.tolist() == pytest.approx([-0.25, -0.75])
    assert found.info["raw"] == pytest.approx([0.25, 0.75])
    assert niqe.score_range == (-100.0, 0.0)
    assert found.value.dtype == torch.float32
    assert found.std.isnan().all()


def test_each_image_is_measured_alone_with_what_it_needs():
    seen = []

    def fn(image, lq, hr, prompt):
        seen.append((tuple(image.shape), tuple(lq.shape), tuple(hr.shape), prompt))
        return 1.0

    reward = metric(fn, needs=("hr", "lq", "prompts"))
    images = [make_image(height=40, width=60), make_image(height=80, width=30)]
    found = reward(images, lq=torch.rand(2, 3, 10, 10), hr=[i.flip(1) for i in images], prompts=["a", "b"])
    assert seen == [((3, 40, 60), (3, 10, 10), (3, 40, 60), "a"), ((3, 80, 30), (3, 10, 10), (3, 80, 30), "b")]
    assert found.valid.all()


def test_missing_or_short_needs_are_refused():
    reward = metric(lambda image, hr: 1.0, needs=("hr",))
    with pytest.raises(ValueError, match="needs hr="):
        reward(make_image())
    with pytest.raises(ValueError, match="hr holds 1 for 2 images"):
        reward([make_image(), make_image()], hr=[make_image()])
    with pytest.raises(ValueError, match="needs='gt'"):
        metric(needs=("gt",))
    with pytest.raises(ValueError, match="below the second"):
        metric(score_range=(1, 1))


def test_infinitely_good_is_the_best_measurement():
    """PSNR of equal images is infinite: the best end of the range, not a failure."""
    best = metric(lambda image: math.inf if image.mean() < 0.5 else 2.0, score_range=(0, 100))
    found = best([make_image() * 0, make_image() * 0 + 1])
    assert (found.value.tolist(), found.valid.tolist()) == ([100.0, 2.0], [True, True])
    endless = metric(lambda image: math.inf, score_range=(0, math.inf))([make_image()])
    assert (endless.value.tolist(), endless.valid.tolist()) == ([math.inf], [True])
    lower = metric(lambda image: -math.inf, score_range=(0, 100), higher_is_better=False)([make_image()])
    assert (lower.value.tolist(), lower.valid.tolist()) == ([0.0], [True])


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_result_that_is_no_number_is_no_measurement(bad):
    found = metric(lambda image: bad if image.mean() < 0.5 else 2.0)([make_image() * 0, make_image() * 0 + 1])
    assert found.valid.tolist() == [False, True]
    assert found.value.tolist() == pytest.approx([math.nan, 2.0], nan_ok=True)
    assert "returned" in found.info["errors"][0]
    assert found.info["errors"][1] is None


def test_an_unreadable_image_is_named_and_the_others_measured():
    found = metric()(["no-such-file.png", make_image()])
    assert found.valid.tolist() == [False, True]
    assert "no-such-file.png" in found.info["errors"][0]


def test_a_bug_in_the_metric_is_raised():
    with pytest.raises(ZeroDivisionError) as raised:
        metric(lambda image: 1 / 0)(make_image())
    assert raised.value.__notes__ == ["raised by the reward 'm'"]


def test_an_image_without_a_value_sends_no_gradient_to_the_others():
    """0 times NaN is NaN: one such image would spoil all weights that are learned through the reward."""
    weight = torch.ones((), requires_grad=True)
    reward = metric(lambda image: image.mean() * (math.nan if image.shape[1] == 8 else 1.0), differentiable=True)
    scores = reward([weight * make_image(k, side, 16) for k, side in ((0, 16), (1, 8))], grad=True)
    assert scores.valid.tolist() == [True, False]
    scores.value[scores.valid].sum().backward()
    assert bool(weight.grad.isfinite())


def test_a_differentiable_metric_keeps_its_graph_and_another_does_not():
    image = make_image().requires_grad_(True)
    metric(differentiable=True, higher_is_better=False)(image).value.sum().backward()
    torch.testing.assert_close(image.grad, torch.full_like(image, -1 / image.numel()))
    assert not metric()(image).value.requires_grad


def test_fingerprint_follows_name_direction_and_code():
    def other(image):
        return image.std()

    base = metric().fingerprint
    assert metric().fingerprint == base
    prints = {
        base, metric(name="n").fingerprint, metric(higher_is_better=False).fingerprint, metric(other).fingerprint,
        metric(functools.partial(other, correction=0)).fingerprint, metric(fingerprint="weights-1").fingerprint,
        metric(max).fingerprint, metric(score_range=(0, 50)).fingerprint, metric(needs=("lq",)).fingerprint,
    }  # fmt: skip
    assert len(prints) == 9


def test_zoomiqa_reward_is_the_strict_rating(iqa):
    images = [make_image(i, 70, 90) for i in range(3)]
    found = ZoomIQAReward(iqa)(images)
    expected = iqa.rate(images, strict=True)
    assert torch.equal(found.value, expected.mean)
    assert torch.equal(found.std, expected.std)
    assert found.valid.all()
    assert found.info["errors"] == [None] * 3
    torch.testing.assert_close(ZoomIQAReward(iqa, strict=False)(images).value, expected.mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("strict", [True, False])
def test_zoomiqa_reward_names_what_it_could_not_measure(strict):
    images = [make_image(), "no-such-file.png", (torch.arange(2100) // 80 % 2 * 0.5).expand(3, 10, 2100), make_image(1)]
    found = ZoomIQAReward(tiny_iqa(), strict=strict)(images)
    assert found.valid.tolist() == [True, False, False, True]
    assert found.value.isnan().tolist() == [False, True, True, False]
    assert "no such file" in found.info["errors"][1]
    assert "cannot be resized" in found.info["errors"][2]


def test_reason_reward_gives_nan_for_answers_that_cannot_be_read(iqa):
    found = ZoomIQAReward(iqa, mode="reason")(make_image())
    assert found.valid.tolist() == [False]
    assert found.errors[0] == found.answers[0][0].error


def test_zoomiqa_reward_keys_and_refusals(iqa):
    reward = ZoomIQAReward(iqa)
    assert reward.fingerprint == ZoomIQAReward(iqa, batch_size=3).fingerprint  # strict: batches do not matter
    assert reward.fingerprint != ZoomIQAReward(iqa, strict=False).fingerprint
    assert reward.fingerprint != ZoomIQAReward(iqa, mode="reason").fingerprint
    assert reward.deterministic
    assert reward.needs == frozenset()
    with pytest.raises(ValueError, match="does not require a gradient"):
        reward(make_image(), grad=True)
    with pytest.raises(ValueError, match="mode='x'"):
        ZoomIQAReward(iqa, mode="x")
