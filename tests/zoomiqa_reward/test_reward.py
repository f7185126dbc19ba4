"""Rewards: oriented higher-is-better, and a failed measurement is NaN with its reason, never a low value."""

import functools
import math

import pytest
import torch
from tiny import ARCHS, make_image, tiny_iqa
from torch import nn

from zoomiqa_reward.rewards.base import NoReward, Reward
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


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("higher_is_better", [False, True])
def test_an_infinite_value_sends_no_gradient_to_the_others(batched, higher_is_better):
    """PSNR of an image that equals its reference: its slope is infinite, and 0 times that is NaN."""

    def psnr(shown, hr):
        return -10 * (shown - hr).square().mean(dim=(-3, -2, -1)).log10()

    weight = torch.zeros((), requires_grad=True)
    reward = metric(psnr, needs=("hr",), differentiable=True, batched=batched, higher_is_better=higher_is_better)
    hr = torch.stack([make_image(0), make_image(1)])
    images = hr - torch.tensor([0.0, 0.1]).view(2, 1, 1, 1) * hr * (1 + weight)
    scores = reward(images, hr=hr, grad=True)
    assert scores.valid.tolist() == [higher_is_better, True]
    scores.value[scores.valid].sum().backward()
    assert abs(float(weight.grad)) == pytest.approx(20 / math.log(10), rel=1e-4)
    if higher_is_better:
        perfect = hr[:1].clone().requires_grad_(True)
        reward(perfect, hr=hr[:1], grad=True).value.sum().backward()
        assert not perfect.grad.any()


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


def batch_means(calls, **options):
    """A batched reward that notes the shapes that it gets."""

    def fn(images, **others):
        calls.append((tuple(images.shape), {key: getattr(given, "shape", given) for key, given in others.items()}))
        return images.mean(dim=(1, 2, 3))

    return MetricReward(fn, "means", True, (0, 1), batched=True, fingerprint="means", **options)


def test_a_batched_metric_gets_images_of_one_size_and_the_order_is_kept():
    calls = []
    images = [torch.full((3, 8, side), level) for level, side in ((0.1, 8), (0.2, 9), (0.3, 8), (0.4, 8), (0.5, 9))]
    scores = batch_means(calls)([*images, "no-such-file.png"])
    assert scores.value[:5].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert sorted(calls) == [((2, 3, 8, 9), {}), ((3, 3, 8, 8), {})]
    assert scores.valid.tolist() == [True] * 5 + [False]
    assert "no-such-file.png" in scores.errors[5]
    calls.clear()
    batch_means(calls, batch_size=2)(images)
    assert sorted(shape[0] for shape, _ in calls) == [1, 2, 2]
    calls.clear()
    small = [torch.zeros(3, side, 4) for side in (4, 4, 5, 4, 4)]
    needy = batch_means(calls, needs=("lq", "prompts"))
    needy(images, lq=small, prompts=list("abcde"))
    assert [given["prompts"] for _, given in calls] == [["a", "d"], ["b", "e"], ["c"]]
    assert [tuple(given["lq"]) for _, given in calls] == [(2, 3, 4, 4), (2, 3, 4, 4), (1, 3, 5, 4)]
    assert len(batch_means([])([])) == 0


def test_a_bad_image_does_not_fail_its_batch():
    def fn(images):
        if bool((images.flatten(1).mean(1) > 0.8).any()):
            raise RuntimeError("too bright")
        return images.mean(dim=(1, 2, 3)).tolist()

    reward = MetricReward(fn, "means", True, (0, 1), batched=True)
    images = [torch.full((3, 8, 8), level) for level in (0.2, 0.9, 0.4)]
    scores = reward(images)
    assert scores.value.tolist() == pytest.approx([0.2, math.nan, 0.4], nan_ok=True)
    assert scores.errors == (None, "RuntimeError: too bright", None)
    with pytest.raises(RuntimeError, match="too bright") as caught:  # a bug is no measurement
        reward(images[1:2])
    assert "reward 'means'" in caught.value.__notes__[0]
    with pytest.raises(NoReward, match=r"fn returned shape \(\) for 2 images"):
        MetricReward(lambda images: images.mean(), "mean", True, (0, 1), batched=True)(images[:2])
    with pytest.raises(ValueError, match="batch_size=0"):
        MetricReward(fn, "means", True, (0, 1), batched=True, batch_size=0)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_a_function_may_give_its_results_in_the_same_place_each_time(batched, size):
    place = torch.zeros(size)

    def fn(images):
        place.copy_(images.mean(dim=(-3, -2, -1)))
        return place if batched else place[:1]

    images = [torch.full((3, 8, 8), level) for level in (0.1, 0.2, 0.4, 0.8)]
    reward = MetricReward(fn, "mean", True, (0, 1), batched=batched, batch_size=size)
    assert reward(images).value.tolist() == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_a_batched_metric_keeps_its_graph_and_nan_spoils_no_gradient():
    def fn(images):
        values = images.mean(dim=(1, 2, 3))
        return values + 0 * (0.8 - values).sqrt()  # of a bright one NaN, and its slope too

    reward = MetricReward(fn, "means", True, (0, 1), batched=True, differentiable=True)
    images = torch.stack([torch.full((3, 8, 8), level) for level in (0.2, 0.9, 0.4)]).requires_grad_(True)
    scores = reward(images, grad=True)
    scores.value[scores.valid].sum().backward()
    assert images.grad.sum(dim=(1, 2, 3)).tolist() == pytest.approx([1, 0, 1])


def test_a_batched_metric_is_another_metric():
    assert metric(torch.mean).fingerprint != metric(torch.mean, batched=True).fingerprint


def test_a_direction_that_is_a_text_is_refused():
    with pytest.raises(TypeError, match="higher_is_better='lower': must be True or False"):
        MetricReward(torch.mean, "mine", "lower", (0, 1))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(3)])
def test_a_metric_network_in_training_mode_is_refused(layer):
    """Its values would be random, or follow from the other images, in a reward that says it is deterministic."""
    network = nn.Sequential(layer, nn.Flatten(), nn.AdaptiveAvgPool1d(1))
    images = [make_image(seed, 16, 16) for seed in range(2)]

    def reward(fn, **options):
        return MetricReward(fn, "mine", True, (-9, 9), batched=True, **options)

    for fn in (network, nn.DataParallel(network), lambda batch: network(batch).flatten()):
        with pytest.raises(ValueError, match=r"^reward 'mine': .*training mode.*call model.eval\(\) first, or wrap it"):
            reward(fn)(images)
    assert reward(lambda batch: network(batch).flatten(), deterministic=False)(images).valid.all()
    assert reward(lambda batch: network.eval()(batch).flatten())(images).valid.all()
