"""What a reward of the user's promises is held to: orientation, one value each, no changed images, nothing hidden."""

import functools

import pytest
import torch
from known_rewards import photo
from tiny import make_image

from restoration import Restorer
from restoration.metrics.registry import as_reward
from restoration.selection.best_of_n import Cascade, best_of_n
from zoomiqa_reward import CachedReward, CompositeReward, MetricReward, RobustReward, Term, ZoomIQA, rank
from zoomiqa_reward.check import run_check
from zoomiqa_reward.errors import NoReward
from zoomiqa_reward.model.quality_map import quality_map
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import (
    GroupwiseError,
    Reward,
    ask,
    is_groupwise,
    modules_of,
    optimised_names,
    outside_range,
    require_reward,
)

IMAGES = [make_image(k, 40, 40) for k in range(3)]
ABOVE = CompositeReward([Term(MetricReward(lambda image: float(image.mean()), "mean", True, (0, 1)), 1.0, "z")])
"""Compares images within their group; read as a global below."""


def scores_of(values):
    value = torch.tensor(values)
    return Scores(value=value, valid=torch.ones(len(value), dtype=torch.bool), std=torch.zeros(len(value)))


class Bare:
    """A wrapper that subclasses nothing and declares no more than it must."""

    name, score_range, needs = "bare", (-9, 9), frozenset()
    differentiable, deterministic = False, True


class InClosure(Bare):
    def __init__(self, inner):
        self.call = lambda images, **given: inner(images, **given)

    def __call__(self, images, lq=None, hr=None, prompts=None):
        return self.call(images, lq=lq)


class InSlot(Bare):
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, images, lq=None, hr=None, prompts=None):
        return self.inner(images, lq=lq)


class InPartial(InClosure):
    def __init__(self, inner):
        self.call = functools.partial(inner)


class InMethod(InClosure):
    def __init__(self, inner):
        self.call = inner.__call__


class InGlobal(Bare):
    def __init__(self, inner):
        pass

    def __call__(self, images, lq=None, hr=None, prompts=None):
        return ABOVE(images, lq=lq)


def in_class(inner):
    class InClass(Bare):
        held = inner

        def __call__(self, images, lq=None, hr=None, prompts=None):
            return self.held(images, lq=lq)

    return InClass()


WRAPPERS = [InClosure, InSlot, InPartial, InMethod, InGlobal, in_class]


def three_levels():
    """Restorers whose images are darker and brighter; the third is the brightest."""
    return [
        Restorer.from_pretrained(lambda image, by=by: image * by, name=f"times {by}", scale=1) for by in (0.5, 0.7, 0.9)
    ]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_no_wrapper_hides_that_a_reward_compares(wrap, tmp_path):
    """Asked about one image at a time, such a reward gives every candidate the value 0, and the first one wins."""
    reward = wrap(ABOVE)
    assert is_groupwise(reward)
    assert best_of_n(three_levels(), IMAGES[0], reward, n=3, progress=False).best.index == 2
    flat = MetricReward(lambda image: 0.0, "flat", True, (0, 1))
    cascade = Cascade(reward=reward, top=3)
    assert best_of_n(three_levels(), IMAGES[0], flat, n=3, progress=False, cascade=cascade).best.index == 2
    for alone in (lambda: CachedReward(reward, tmp_path / "c.db"), lambda: RobustReward(reward)):
        with pytest.raises(GroupwiseError):
            alone()


@pytest.mark.parametrize("wrap", [InClosure, InSlot, InPartial, InMethod, in_class])
def test_no_wrapper_hides_a_network_or_the_metric_that_is_optimised(wrap):
    network = torch.nn.Linear(1, 1)
    inner = MetricReward(network, "niqe", False, (0, 100))
    assert modules_of(wrap(inner)) == [network]
    assert "niqe" in optimised_names(wrap(inner))


def test_a_metric_cannot_ask_a_reward_that_compares():
    with pytest.raises(GroupwiseError, match="one image at a time"):
        MetricReward(lambda image: float(ABOVE([image], groups=[0]).value[0]), "inside", True, (-9, 9))


@pytest.mark.parametrize("attributes", [{"checkpoint": "w.pt"}, {"rate": 0.5}, {"rate": len, "factor_px": 3}])
def test_a_reward_may_call_its_attributes_as_it_likes(attributes):
    """A model is told from a reward by what a reward has, and not by a name that a reward may use as well."""
    reward = MetricReward(lambda image: float(image.mean()), "mean", True, (0, 1))
    vars(reward).update(attributes)
    image = IMAGES[0]
    assert quality_map(reward, image).values.mean() == pytest.approx(float(image.mean()), abs=0.1)
    assert rank(reward, [0.5 * image, image]).order == (1, 0)


def test_a_reward_may_hold_itself():
    reward = InSlot(None)
    reward.inner = InSlot(reward)
    assert not is_groupwise(reward)


def test_an_object_without_fingerprint_is_known_by_its_state(tmp_path):
    first = best_of_n(
        three_levels(), IMAGES[0], InClosure(as_reward("niqe")), n=3, out=tmp_path / "run", progress=False
    )
    again = best_of_n(
        three_levels(), IMAGES[0], InClosure(as_reward("niqe")), n=3, out=tmp_path / "run", progress=False
    )
    assert [item.pixels for item in first.candidates] == [item.pixels for item in again.candidates]
    with pytest.raises(ValueError, match="another run"):
        best_of_n(three_levels(), IMAGES[0], in_class(as_reward("niqe")), n=3, out=tmp_path / "run", progress=False)


class Broken(Reward):
    name, score_range = "broken", (0, 1)

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, images, lq=None, hr=None, prompts=None):
        return self.answer(images)


class Lower(Broken):
    higher_is_better = False


class Needy(Broken):
    needs = ("hr",)


def darkened(images):
    for image in images:
        image.mul_(0.5)
    return scores_of([0.5] * len(images))


BROKEN = {
    "returned list": Broken(lambda images: [0.5] * len(images)),
    "returned 1 values for 3 images": Broken(lambda images: scores_of([0.5])),
    "changes the images": Broken(darkened),
    "says higher_is_better=False": Lower(lambda images: scores_of([0.5] * len(images))),
    "must be a set of hr, lq, prompts": Needy(lambda images: scores_of([0.5] * len(images))),
    "is no reward: it lacks": lambda image: 0.5,
    "is a class": Broken,
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_promise_is_told(words, tmp_path):
    reward = BROKEN[words]
    for use in (
        lambda: ask(reward, [image.clone() for image in IMAGES]),
        lambda: rank(reward, [image.clone() for image in IMAGES]),
        lambda: CompositeReward([Term(reward, 1.0, "raw")])([image.clone() for image in IMAGES]),
        lambda: CachedReward(reward, tmp_path / "c.db")([image.clone() for image in IMAGES]),
    ):
        with pytest.raises(NoReward, match=words):
            use()


def test_a_model_in_the_place_of_a_reward_is_told_how_it_becomes_one():
    """`rank` and `refine` take the model itself, so best-of-N was asked with it too, and said MetricReward."""
    with pytest.raises(NoReward, match=r"ZoomIQAReward\(model\)$"):
        require_reward(ZoomIQA.from_pretrained("nano"))


@pytest.mark.parametrize("values", [lambda image: image.mean(dim=(1, 2)), lambda image: [0.5, 0.5], lambda image: []])
def test_a_function_that_returns_no_single_number_is_named(values):
    metric = MetricReward(values, "per channel", True, (0, 1))
    with pytest.raises(NoReward, match=r"'per channel': fn returned shape \([0-9]+,\) for one image"):
        metric(IMAGES)


def test_a_value_outside_the_declared_range_is_told_once():
    percent = MetricReward(lambda image: 100 * image.mean(), "percent", True, (0, 1))
    with pytest.warns(UserWarning, match=r"'percent' gave [0-9.]+, outside its score_range \(0, 1\)"):
        assert ask(percent, IMAGES).valid.all()
    ask(percent, IMAGES)  # a second warning would be an error
    assert outside_range(percent, [float("nan"), 1.0 + 1e-6, 0.0]) is None


def test_the_check_names_a_false_range():
    notes = {
        top: run_check(MetricReward(lambda image: 100 * image.mean(), f"to {top}", True, (0, top)), [photo()]).notes
        for top in (1, 100)
    }
    [note] = notes[1]
    assert "outside its score_range (0, 1)" in note
    assert notes[100] == ()


def test_a_reward_may_give_its_scores_in_the_same_place_each_time():
    place = torch.zeros(8)

    class InPlace(Bare):
        def __call__(self, images, lq=None, hr=None, prompts=None):
            place[: len(images)] = torch.tensor([float(image.mean()) for image in images])
            return Scores(value=place[: len(images)], valid=torch.ones(len(images), dtype=torch.bool), std=place[:1])

    reward = InPlace()
    first = ask(reward, IMAGES[:1])
    ask(reward, [0.5 * IMAGES[0]])
    assert float(first.value[0]) == pytest.approx(float(IMAGES[0].mean()))


def test_scores_are_float32_whatever_a_reward_makes():
    made = Scores(value=torch.tensor([1, 2]), valid=torch.tensor([1, 0]), std=torch.tensor([0.5, 0.5]).double())
    assert made.value.dtype == made.std.dtype == torch.float32
    assert made.valid.tolist() == [True, False]
    assert made.value.isnan().tolist() == [False, True]
