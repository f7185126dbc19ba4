"""A rating judged together with the clean reference: laws of the form, failures, and what may judge it."""

import math
from functools import partial

import pytest
import torch
from photographs import photograph
from tiny import make_image, tiny_iqa

from restoration.metrics import ConditionedReward, ReferencedReward, haarpsi
from zoomiqa_reward import CompositeReward, MetricReward, Term, ZoomIQAReward, rank
from zoomiqa_reward.images.filters import gaussian_blur, resize_bicubic
from zoomiqa_reward.rewards.base import GroupwiseError, ask, optimised_names
from zoomiqa_reward.rewards.find import judged_together

PHOTO = photograph(0, 96, 96)


def brightness(low=1.0, high=5.0):
    """A quality on the scale of a rating."""
    return MetricReward(
        lambda image: low + (high - low) * image.mean(), "brightness", True, (low, high), differentiable=True,
        fingerprint="v1",
    )  # fmt: skip


def halved(image, other):
    return 0.5 * haarpsi(image, other)


@pytest.mark.parametrize(
    "fidelity", [haarpsi, halved, partial(haarpsi), lambda image, other: haarpsi(image, other), partial(halved)],
    ids=["itself", "called", "partial", "lambda", "called in a partial"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [ReferencedReward, ConditionedReward])
def test_a_fidelity_that_calls_a_metric_names_it_as_what_may_not_judge(kind, fidelity):
    assert "haarpsi" in kind(brightness(), fidelity).labels


@pytest.mark.parametrize(("kind", "other"), [(ReferencedReward, "hr"), (ConditionedReward, "lq")])
def test_another_image_that_cannot_be_read_fails_its_own_image_alone(kind, other):
    scores = kind(brightness())([PHOTO, PHOTO], **{other: [PHOTO, "no-such-file.png"]})
    assert scores.valid.tolist() == [True, False]
    assert "no such file" in scores.errors[1]


def test_the_form_by_hand():
    reward = ReferencedReward(brightness(), lambda image, reference: 0.25)
    found = reward(torch.full((1, 3, 8, 8), 0.5), hr=torch.zeros(1, 3, 8, 8))
    assert found.value.item() == pytest.approx(1 + 0.25 * (3 - 1))
    assert found.info["fidelity"] == [0.25]
    assert found.info["quality"] == pytest.approx([3.0])
    assert reward.score_range == (1, 5)
    assert reward.needs == {"hr"}
    for outside, clipped in ((7.0, 1.0), (-2.0, 0.0)):
        scores = ReferencedReward(brightness(), lambda *_, value=outside: value)(PHOTO, hr=PHOTO)
        assert scores.info["fidelity"] == [clipped]


def test_a_perfect_copy_keeps_its_rating_and_another_image_is_bad():
    quality = ZoomIQAReward(tiny_iqa())
    images = [PHOTO, gaussian_blur(PHOTO[None], 2.0)[0].clamp(0, 1), photograph(1, 96, 96)]
    scores = ReferencedReward(quality)(images, hr=[PHOTO] * 3)
    assert scores.value[0].item() == pytest.approx(quality(PHOTO).value.item(), abs=1e-5)
    similar = scores.info["fidelity"]
    assert similar == pytest.approx([haarpsi(image, PHOTO) for image in images], abs=1e-5)
    assert similar[0] > similar[1] > similar[2]
    assert scores.value[2] < scores.value[0]


def test_failures_are_named():
    nan = ReferencedReward(brightness(), lambda *_: math.nan)(PHOTO, hr=PHOTO)
    assert not nan.valid.any()
    assert "fidelity is not a number" in nan.errors[0]
    missing = ReferencedReward(brightness())([PHOTO, "no-such.png"], hr=[PHOTO, PHOTO])
    assert missing.valid.tolist() == [True, False]
    assert "no such file" in missing.errors[1]
    with pytest.raises(ValueError, match="needs hr="):
        ReferencedReward(brightness())(PHOTO)
    with pytest.raises(ValueError, match="hr holds 1 for 2"):
        ReferencedReward(brightness())([PHOTO, PHOTO], hr=[PHOTO])
    with pytest.raises(ValueError, match="sizes must be equal"):
        ReferencedReward(brightness())(PHOTO, hr=PHOTO[:, :48])


def test_what_it_takes_and_what_may_judge_it():
    with pytest.raises(ValueError, match="bottom must be finite"):
        ReferencedReward(MetricReward(lambda image: 0.0, "free", True, (-math.inf, 1)))
    with pytest.raises(ValueError, match="needs lq"):
        ReferencedReward(ConditionedReward(brightness()))
    with pytest.raises(GroupwiseError):
        ReferencedReward(CompositeReward([Term(brightness(), 1.0, "minmax")]))
    assert {"haarpsi", "brightness"} <= optimised_names(ReferencedReward(brightness()))
    assert "haarpsi" not in optimised_names(ReferencedReward(brightness(), lambda *_: 1.0))
    assert ReferencedReward(brightness()).fingerprint != ReferencedReward(brightness(), lambda *_: 1.0).fingerprint


def test_a_gradient_needs_a_fidelity_with_one():
    def likeness(image, reference):
        return 1 - (image - reference).abs().mean()

    reward = ReferencedReward(brightness(), likeness, fidelity_differentiable=True)
    image = (0.5 * PHOTO).clone().requires_grad_(True)
    ask(reward, [image], hr=[PHOTO], grad=True).value.sum().backward()
    assert torch.isfinite(image.grad).all()
    assert image.grad.any()
    with pytest.raises(ValueError, match="not differentiable"):
        ReferencedReward(brightness())([image], hr=[PHOTO], grad=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("kind", "other", "options"), [
    (ReferencedReward, "hr", {}), (ConditionedReward, "lq", {}), (ConditionedReward, "lq", {"form": "gain"}),
])  # fmt: skip
def test_an_image_without_fidelity_sends_no_gradient_to_the_others(kind, other, options, bad):
    def likeness(image, reference):
        factor = bad if reference.mean() < 0.1 else 1.0
        return factor * (2 - (image - reference).abs().mean()) / 2

    reward = kind(brightness(), likeness, fidelity_differentiable=True, **options)
    weight = torch.full((), 0.5, requires_grad=True)
    scores = reward([weight * PHOTO, weight * PHOTO], **{other: [PHOTO, 0.01 * PHOTO]}, grad=True)
    assert scores.valid.tolist() == [True, bad == math.inf]
    scores.value[:1].sum().backward()
    assert bool(weight.grad.isfinite())
    assert weight.grad != 0
    assert scores.info["quality" if kind is ReferencedReward else "quality_sr"][1] == pytest.approx(
        scores.info["quality" if kind is ReferencedReward else "quality_sr"][0]
    )


def test_rank_takes_the_input_or_the_reference():
    """A sharp image of something else wins alone, and loses beside the input and beside the reference."""
    lq = resize_bicubic(PHOTO, 48, 48).clamp(0, 1)
    images = [torch.full_like(PHOTO, 0.9) + 0.1 * make_image(2, 96, 96), PHOTO]
    quality = brightness()
    assert rank(quality, images).order == (0, 1)
    assert rank(judged_together(quality, "conditioned"), images, lq=lq).order == (1, 0)
    assert rank(judged_together(quality, "referenced"), images, hr=[PHOTO, PHOTO]).order == (1, 0)
    iqa = tiny_iqa()
    found = rank(iqa, [photograph(1, 96, 96), PHOTO], hr=PHOTO)
    expected = ReferencedReward(ZoomIQAReward(iqa))([photograph(1, 96, 96), PHOTO], hr=[PHOTO] * 2)
    assert torch.equal(found.ratings.value, expected.value)
    with pytest.raises(ValueError, match="ranked with one of them"):
        rank(iqa, images, lq=lq, hr=PHOTO)
    with pytest.raises(ValueError, match="must be one of conditioned, referenced"):
        judged_together(quality, "compared")
