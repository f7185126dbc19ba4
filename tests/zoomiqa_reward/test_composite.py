"""Sums of rewards, normalised within groups, by hand; and the reward that is conditioned on the source."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_image, tiny_iqa

from restoration.metrics.conditioned import ConditionedReward, fidelity_from_db
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.rewards.normalise import group_index, group_keys, hash_pixels, normalised, variance_shares
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

nan = math.nan


def flat(*values):
    """One grey image a value."""
    return [torch.full((3, 8, 8), float(value)) for value in values]


def metric(fn=lambda image: image.mean(), name="mean", differentiable=True, score_range=(0, 1), **options):
    return MetricReward(fn, name, True, score_range, differentiable=differentiable, **options)


def constant(values, name):
    """Return a reward that answers with these, in order."""
    answers = iter(values)
    return metric(lambda image: next(answers), name, differentiable=False, score_range=(0, 9))


def test_normalised_by_hand():
    values = torch.tensor([1.0, 3.0, nan, 10.0, 10.0, 7.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    assert normalised(values, groups, "z").tolist() == pytest.approx([-1, 1, nan, 0, 0, 0], nan_ok=True)
    assert normalised(values, groups, "minmax").tolist() == pytest.approx([0, 1, nan, 0.5, 0.5, 0.5], nan_ok=True)
    assert normalised(values, groups, "quantile").tolist() == pytest.approx(
        [0.25, 0.75, nan, 0.5, 0.5, 0.5], nan_ok=True
    )
    assert normalised(values, groups, "raw").tolist() == pytest.approx(values.tolist(), nan_ok=True)
    assert normalised(torch.tensor([math.inf, 1.0]), torch.tensor([0, 0]), "z").tolist() == pytest.approx(
        [nan, 0], nan_ok=True
    )


def test_ties_within_rounding_stay_ties():
    near = torch.tensor([3.3, 3.3 + 2.4e-7, 3.3])
    assert normalised(near, torch.zeros(3, dtype=torch.long), "z").abs().max() == 0
    assert normalised(near, torch.zeros(3, dtype=torch.long), "minmax").tolist() == [0.5] * 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=12), st.data())
def test_laws_of_normalising(values, data):
    groups = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values))))
    tensor = torch.tensor(values, dtype=torch.float32)
    z, quantile = normalised(tensor, groups, "z"), normalised(tensor, groups, "quantile")
    for number in groups.unique():
        own = groups == number
        spread = float(z[own].std(correction=0))
        assert float(z[own].mean()) == pytest.approx(0, abs=1e-4)
        assert spread == pytest.approx(1, abs=1e-3) or spread == 0
        assert float(quantile[own].mean()) == pytest.approx(0.5)
    order = torch.randperm(len(values))
    torch.testing.assert_close(normalised(tensor[order], groups[order], "z"), z[order])


def test_statistics_are_constants_of_the_graph():
    values = torch.tensor([1.0, 3.0, nan, 5.0], requires_grad=True)
    groups = torch.tensor([0, 0, 0, 1])
    found = normalised(values, groups, "z")
    [gradient] = torch.autograd.grad(found[found.isfinite()].sum(), values)
    assert gradient.tolist() == [1.0, 1.0, 0.0, 0.0]  # 1 / std; a group of one cannot be improved within itself
    [gradient] = torch.autograd.grad(normalised(values, groups, "minmax")[:2].sum(), values)
    assert gradient.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert not normalised(values, groups, "quantile").requires_grad


def test_shares_by_hand_and_their_sum():
    """a = (-1, 1), b = (2, -2): A = (1, -1), so a has -2 / 2 and b 4 / 2."""
    groups = torch.tensor([0, 0])
    assert variance_shares(torch.tensor([[4.0, 6.0], [2.0, -2.0]]), groups) == pytest.approx([-1, 2])
    parts = torch.randn(4, 30)
    assert sum(variance_shares(parts, torch.arange(30) % 7)) == pytest.approx(1)
    # between groups nothing counts: part 0 is constant within each
    between = torch.tensor([[0.0, 0.0, 9.0, 9.0], [1.0, 2.0, 1.0, 2.0]])
    assert variance_shares(between, torch.tensor([0, 0, 1, 1])) == pytest.approx([0, 1])
    assert all(math.isnan(share) for share in variance_shares(torch.ones(2, 3), torch.zeros(3, dtype=torch.long)))


def test_groups_follow_pixels_and_prompt():
    a, b = flat(0.2, 0.4)
    keys = group_keys([a, b, a.clone(), a], ["x", "x", "x", "y"])
    assert group_index(keys).tolist() == [0, 1, 0, 2]
    assert hash_pixels(torch.zeros(3, 4, 6)) != hash_pixels(torch.zeros(3, 6, 4))
    assert hash_pixels(a.permute(0, 2, 1)) == hash_pixels(a)  # equal pixels, other strides
    with pytest.raises(ValueError, match="prompts holds 1 for 2"):
        group_keys([a, b], ["x"])


def test_sum_of_normalised_terms_by_hand():
    terms = [Term(constant([1, 3, 5, 5], "a"), 2.0), Term(constant([0.9, 0.1, 0.2, 0.6], "b"), 0.5, "minmax")]
    reward = CompositeReward(terms)
    a, b = flat(0.2, 0.4)
    found = reward(flat(0.1, 0.2, 0.3, 0.4), lq=[a, a, b, b])
    assert found.value.tolist() == pytest.approx([-2 + 0.5, 2 + 0, 0 + 0, 0 + 0.5])
    assert found.valid.all()
    assert found.std.isnan().all()
    assert found.info["groups"] == [0, 0, 1, 1]
    first, second = found.info["terms"]
    assert first["raw"] == [1, 3, 5, 5]
    assert first["normalised"] == pytest.approx([-1, 1, 0, 0])
    assert second["normalised"] == pytest.approx([1, 0, 0, 1])
    # centred parts: a (-2, 2, 0, 0), b (.25, -.25, -.25, .25): A (-1.75, 1.75, -.25, .25), sum of squares 6.25
    assert first["share"] == pytest.approx(7 / 6.25)
    assert second["share"] == pytest.approx((-0.875 + 0.125) / 6.25)
    assert first["share"] + second["share"] == pytest.approx(1)
    assert reward.needs == {"lq"}
    assert isinstance(reward, Reward)


@pytest.mark.parametrize("groups", [
    [torch.tensor(4), torch.tensor(9), torch.tensor(4)], np.array([4, 9, 4]), torch.tensor([4, 9, 4]), ("a", "b", "a"),
])  # fmt: skip
def test_groups_are_told_by_value(groups):
    """Tensors hash by identity, so each image was a group of its own, and every z-value was 0."""
    assert group_index(groups).tolist() == [0, 1, 0]


@pytest.mark.parametrize("groups", [torch.tensor([[0], [1]]), [torch.tensor([0]), torch.tensor([1])], [[0], [1]]])
def test_what_cannot_tell_groups_is_refused(groups):
    with pytest.raises(ValueError, match="one number or text per image"):
        group_index(groups)


def test_groups_may_be_given_and_must_be_known():
    reward = CompositeReward([Term(metric())])
    images = flat(0.1, 0.3, 0.5)
    assert reward(images, groups=["u", "u", "v"]).value.tolist() == pytest.approx([-1, 1, 0])
    assert reward(images, groups=torch.tensor([4, 9, 4])).info["groups"] == [0, 1, 0]
    with pytest.raises(ValueError, match="give lq="):
        reward(images)
    with pytest.raises(ValueError, match="holds 2 for 3 images"):
        reward(images, groups=[0, 1])
    assert len(reward([], groups=[])) == 0


def test_a_failed_term_fails_the_sum_but_not_its_group():
    bad = metric(lambda image: nan if image.mean() > 0.8 else image.mean(), "bad", differentiable=False)
    images = flat(0.1, 0.9, 0.3)
    found = CompositeReward([Term(metric(), normalise="raw"), Term(bad)])(images, groups=[0, 0, 0])
    assert found.valid.tolist() == [True, False, True]
    assert found.value.tolist() == pytest.approx([0.1 - 1, nan, 0.3 + 1], nan_ok=True)
    assert "bad: bad returned nan" in found.info["errors"][1]
    assert found.info["errors"][0] is None
    watched = CompositeReward([Term(metric(), normalise="raw"), Term(bad, 0.0)])(images, groups=[0, 0, 0])
    assert watched.valid.all()  # weight 0: reported, not used
    assert watched.info["terms"][1]["raw"] == pytest.approx([0.1, nan, 0.3], nan_ok=True)
    assert [term["share"] for term in watched.info["terms"]] == pytest.approx([1, 0])


def test_the_graph_is_kept_where_all_terms_have_one():
    images = [image.requires_grad_(True) for image in flat(0.1, 0.3)]
    two = CompositeReward([Term(metric(), 2.0), Term(metric(lambda i: i.square().mean(), "sq"), 1.0, "raw")])
    assert two.differentiable
    two(images, groups=[0, 0], grad=True).value.sum().backward()
    # d/dp of 2 (m - mean)/std + m^2 in each of the 192 pixels: 2 / 0.1 / 192 + 2 * 0.1 / 192
    torch.testing.assert_close(images[0].grad, torch.full((3, 8, 8), (20 + 0.2) / 192))
    assert not two(images, groups=[0, 0]).value.requires_grad
    steps = CompositeReward([Term(metric(), normalise="quantile")])
    fixed = CompositeReward([Term(metric()), Term(metric(name="fixed", differentiable=False))])
    for reward, match in ((steps, "which has steps"), (fixed, "'fixed', which is not differentiable")):
        assert not reward.differentiable
        with pytest.raises(ValueError, match=match):
            reward(images, groups=[0, 0], grad=True)


def test_the_graph_reaches_the_model():
    image = make_image(1, 64, 64).requires_grad_(True)
    reward = CompositeReward([Term(ZoomIQAReward(tiny_iqa()), normalise="raw"), Term(metric(), 0.1, "raw")])
    reward(image, grad=True).value.sum().backward()
    alone = image.detach().clone().requires_grad_(True)
    ZoomIQAReward(tiny_iqa())(alone, grad=True).value.sum().backward()
    torch.testing.assert_close(image.grad, alone.grad + 0.1 / image.numel())


def test_ranges_names_and_refusals():
    rating = metric(score_range=(1, 5))
    assert CompositeReward([Term(rating, 2, "raw"), Term(metric(), 1, "minmax")]).score_range == (2, 11)
    assert CompositeReward([Term(rating)]).score_range == (-math.inf, math.inf)
    prints = {CompositeReward([Term(rating, *rest)]).fingerprint for rest in ((1,), (2,), (1, "raw"))}
    assert len(prints) == 3
    assert CompositeReward([Term(rating, 1, "raw")]).needs == frozenset()
    with pytest.raises(ValueError, match="normalise='rank'"):
        Term(metric(), 1, "rank")
    with pytest.raises(ValueError, match=r"weight=-1.*higher_is_better=False"):
        Term(metric(), -1)
    with pytest.raises(ValueError, match="none has a weight above 0"):
        CompositeReward([Term(metric(), 0)])


# ---- the conditioned form: R = F Q_LR + F^(Q_LR / gamma) (Q_SR - Q_LR)

LQ, SR = 0.25, 0.75
Q = metric(lambda image: 1 + 4 * image.mean(), "q", score_range=(1, 5))  # Q_LR 2, Q_SR 4


def test_forms_by_hand():
    f, q_lq, q_sr = 0.5, 2.0, 4.0
    gain = f ** (q_lq / 7) * (q_sr - q_lq)
    expected = {"whole": f * q_lq + gain, "gain": gain, "base": f * q_lq, "quality": q_sr}
    for form, value in expected.items():
        reward = ConditionedReward(Q, lambda sr, lq: f, form=form)
        found = reward(flat(SR), lq=flat(LQ))
        assert found.value.tolist() == pytest.approx([value]), form
        assert reward.score_range[0] <= value <= reward.score_range[1]
    assert ConditionedReward(Q, lambda sr, lq: f, gamma=2.0)(flat(SR), lq=flat(LQ)).value.item() == pytest.approx(
        1 + 0.5 * 2
    )
    assert found.info["fidelity"] == pytest.approx([nan], nan_ok=True)  # `quality` looks at no source


def test_faithful_images_get_their_quality_and_unfaithful_ones_lose_it():
    faithful = ConditionedReward(Q, lambda sr, lq: 1.0)(flat(SR), lq=flat(LQ))
    assert faithful.value.item() == pytest.approx(4.0)
    unfaithful = ConditionedReward(Q, lambda sr, lq: 0.0)(flat(SR), lq=flat(LQ))
    assert unfaithful.info["fidelity"] == pytest.approx([0.01])
    assert unfaithful.value.item() == pytest.approx(0.02 + 0.01 ** (2 / 7) * 2)


def test_default_fidelity_is_lr_consistency():
    assert [fidelity_from_db(db) for db in (0, 15, 20, 40, 50)] == pytest.approx([0.01, 0.01, 0.2, 1, 1])
    assert math.isnan(fidelity_from_db(nan))
    lq = make_image(2, 24, 32)
    sr = torch.nn.functional.interpolate(lq[None], scale_factor=2, mode="bicubic", antialias=True)[0].clamp(0, 1)
    found = ConditionedReward(Q)([sr, 1 - sr], lq=[lq, lq])
    good, bad = found.info["fidelity"]
    assert good > 0.8
    assert bad < 0.2
    assert found.value[0] > found.value[1]


def test_each_source_is_rated_once():
    seen = []
    quality = metric(
        lambda image: seen.append(tuple(image.shape)) or 2.0, "q", differentiable=False, score_range=(1, 5)
    )
    lq = [*flat(0.5), *flat(0.5), *flat(0.25)]
    ConditionedReward(quality, lambda sr, lq: 1.0)([torch.rand(3, 16, 16) for _ in lq], lq=lq)
    assert seen.count((3, 8, 8)) == 2
    assert seen.count((3, 16, 16)) == 3


def test_any_part_that_fails_is_named():
    quality = metric(lambda image: nan if image.mean() > 0.9 else 2.0, "q", differentiable=False, score_range=(1, 5))
    reward = ConditionedReward(quality, lambda sr, lq: nan if lq.mean() < 0.1 else 1.0)
    found = reward([*flat(0.5, 1.0, 0.5, 0.5), "no-such.png"], lq=flat(0.5, 0.5, 1.0, 0.0, 0.5))
    assert found.valid.tolist() == [True, False, False, False, False]
    assert found.value.isnan().tolist() == [False, True, True, True, True]
    for place, part in ((1, "quality: "), (2, "quality of lq: "), (3, "fidelity: "), (4, "no-such.png")):
        assert part in found.info["errors"][place]


def test_gradient_of_the_whole_form():
    """F a constant 0.5: dR/dQ_SR = 0.5^(2/7), and dQ/dpixel = 4 / 192."""
    image = flat(SR)[0].requires_grad_(True)
    reward = ConditionedReward(Q, lambda sr, lq: torch.tensor(0.5), fidelity_differentiable=True)
    reward(image, lq=flat(LQ), grad=True).value.sum().backward()
    torch.testing.assert_close(image.grad, torch.full((3, 8, 8), 0.5 ** (2 / 7) * 4 / 192))
    assert not ConditionedReward(Q).differentiable
    with pytest.raises(ValueError, match="fidelity_differentiable=True"):
        ConditionedReward(Q)(image, lq=flat(LQ), grad=True)


def test_conditioned_refusals():
    with pytest.raises(ValueError, match="form='sum'"):
        ConditionedReward(Q, form="sum")
    with pytest.raises(ValueError, match="gamma=0"):
        ConditionedReward(Q, gamma=0)
    with pytest.raises(ValueError, match="at least 0"):
        ConditionedReward(metric(score_range=(-1, 1)))
    with pytest.raises(ValueError, match="needs hr"):
        ConditionedReward(metric(lambda image, hr: 1.0, score_range=(1, 5), needs=("hr",)))
    with pytest.raises(ValueError, match="pass a fidelity of tensors"):
        ConditionedReward(Q, fidelity_differentiable=True)
    with pytest.raises(ValueError, match="needs lq="):
        ConditionedReward(Q)(flat(0.5))
    with pytest.raises(ValueError, match="lq holds 1 for 2"):
        ConditionedReward(Q)(flat(0.5, 0.6), lq=flat(0.5))
    prints = {ConditionedReward(Q, **o).fingerprint for o in ({}, {"gamma": 5.0}, {"form": "gain"}, {"blur_px": 0.0})}
    assert len(prints) == 4
