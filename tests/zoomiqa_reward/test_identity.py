"""Identity by state: what a value depends on is in the fingerprint, and what cannot be read is refused."""

import functools
import threading
from dataclasses import replace
from types import MethodType

import numpy as np
import pytest
import torch
from tiny import make_image, tiny_checkpoint
from torch import nn

from restoration.metrics import ReferencedReward
from restoration.metrics.conditioned import ConditionedReward
from zoomiqa_reward import CachedReward, ConsensusReward, MetricReward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.errors import UnknownState
from zoomiqa_reward.protocol.spec import ViewPolicy
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.rewards.identity import state_digest
from zoomiqa_reward.rewards.robust import RobustReward

FACTOR = 1.0


def scaled(factor):
    return lambda image: image.mean() * factor


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, image):
        return image.mean() * self.factor


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor


class Net(nn.Module):
    def __init__(self, gain=1.0, power=1):
        super().__init__()
        self.power = power
        self.gain = nn.Parameter(torch.tensor(gain))
        self.register_buffer("shift", torch.zeros(1), persistent=False)

    def forward(self, image):
        return self.gain * image.mean() ** self.power + self.shift.sum()


def against(reference, image):
    return (image - reference).abs().mean()


def uses_global(image):
    return image.mean() * FACTOR


def moved(net):
    net.shift += 1
    return net


PAIRS = {
    "closures": (scaled(1.0), scaled(5.0)),
    "attributes": (Scaled(1.0), Scaled(5.0)),
    "slots": (Slotted(1.0), Slotted(5.0)),
    "weights": (Net(1.0), Net(5.0)),
    "buffers that no checkpoint holds": (Net(), moved(Net())),
    "attributes of a network": (Net(power=1), Net(power=2)),
    "training mode": (Net().train(), Net().eval()),
    "tensors in partials": (functools.partial(against, torch.zeros(3, 400, 400)),
                            functools.partial(against, torch.zeros(3, 400, 400).index_fill(1, torch.tensor(200), 1.0))),
    "arrays in partials": (functools.partial(against, np.zeros(10_000)),
                           functools.partial(against, np.r_[np.zeros(5_000), 1, np.zeros(4_999)])),
    "bound methods": (Scaled(1.0).__call__, Scaled(5.0).__call__),
    "defaults": (lambda image, by=1.0: image.mean() * by, lambda image, by=5.0: image.mean() * by),
    "dtype": (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    "negative zero": (0.0, -0.0),
    "type": (1, True),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAIRS)
def test_another_state_is_another_identity(kind):
    left, right = PAIRS[kind]
    assert state_digest(left) != state_digest(right)
    assert state_digest(left) == state_digest(left)


def test_equal_state_is_the_same_identity():
    assert state_digest(scaled(2.0)) == state_digest(scaled(2.0))
    assert state_digest(Scaled(2.0)) == state_digest(Scaled(2.0))
    assert state_digest(Net(2.0)) == state_digest(Net(2.0))
    assert state_digest({"a": 1, "b": 2}) == state_digest({"b": 2, "a": 1})


def test_globals_that_a_function_names_count(monkeypatch):
    before = state_digest(uses_global)
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    assert state_digest(uses_global) != before


def test_a_cycle_ends():
    loop = []
    loop.append(loop)
    assert state_digest(loop) == state_digest(loop)


@pytest.mark.parametrize("state", [threading.Lock(), iter([1]), (k for k in range(2)), torch.zeros(1, device="meta")])
def test_unknown_state_is_refused_by_name(state, tmp_path):
    reward = MetricReward(scaled(state), "odd", True, (0, 1))
    with pytest.raises(UnknownState, match="closure factor"):
        _ = reward.fingerprint
    with pytest.raises(UnknownState):
        CachedReward(reward, tmp_path / "scores.db")
    named = MetricReward(scaled(state), "odd", True, (0, 1), fingerprint="version 3")
    assert CachedReward(named, tmp_path / "scores.db").fingerprint == named.fingerprint


def test_the_cache_follows_weights_that_change(tmp_path):
    """A value stored before training is not a hit after it."""
    net = Net(1.0)
    reward = MetricReward(net, "net", True, (0, 9))
    image = torch.full((3, 8, 8), 0.5)
    with CachedReward(reward, tmp_path / "scores.db") as cached:
        assert cached([image]).value.tolist() == [0.5]
        with torch.no_grad():
            net.gain.fill_(5.0)
        assert cached([image]).value.tolist() == [2.5]
        assert cached.stats.hits == 0


def test_a_model_is_known_by_the_weights_in_memory():
    """Neither a file that changes after loading nor a step in memory can give one model another's fingerprint."""
    iqa = ZoomIQA.from_pretrained(str(tiny_checkpoint()), device="cpu")
    other = ZoomIQA.from_pretrained(str(tiny_checkpoint()), device="cpu")
    before = iqa.fingerprint
    assert other.fingerprint == before
    with torch.no_grad():
        next(iter(iqa.checkpoint.model.parameters())).add_(1e-3)
    assert iqa.fingerprint != before
    assert other.fingerprint == before
    assert ZoomIQAReward(iqa).fingerprint != ZoomIQAReward(other).fingerprint
    assert torch.isfinite(other.rate(make_image(0)).mean).all()


def test_a_model_is_known_by_its_hooks():
    """A hook that changes what a layer says makes another judge: a cache must not give its ratings to the plain one."""
    iqa = ZoomIQA.from_pretrained(str(tiny_checkpoint()), device="cpu")
    layer, image, before = iqa.checkpoint.model.model.language_model.layers[0], make_image(0), iqa.fingerprint
    known, ratings = set(), {float(iqa.rate(image).mean)}
    for share in (0.5, 0.25):
        hook = layer.register_forward_hook(lambda module, given, result, share=share: share * result)
        known.add(iqa.fingerprint)
        ratings.add(float(iqa.rate(image).mean))
        hook.remove()
    assert len(known - {before}) == 2
    assert len(ratings) == 3
    assert iqa.fingerprint == before


def test_a_model_is_known_by_what_is_set_as_the_forward_of_a_layer():
    """It is obeyed, as a hook is: a cache must not give the rating of the plain judge."""
    iqa = ZoomIQA.from_pretrained(str(tiny_checkpoint()), device="cpu")
    layer, image, before = iqa.checkpoint.model.model.language_model.layers[0], make_image(0), iqa.fingerprint
    fingerprints, ratings, plain = set(), {float(iqa.rate(image).mean)}, layer.forward
    for share in (0.5, 0.25):
        layer.forward = lambda *given, share=share, **more: share * plain(*given, **more)
        fingerprints.add(iqa.fingerprint)
        ratings.add(float(iqa.rate(image).mean))
        del layer.forward
    assert len(fingerprints - {before}) == 2
    assert len(ratings) == 3
    layer.forward = MethodType(lambda module, *given, **more: plain(*given, **more), layer)
    assert iqa.fingerprint != before
    layer._hf_hook = object()  # accelerate moves its weights, which changes no value
    assert iqa.fingerprint == before


class Halved(ZoomIQA):
    """A judge of the user's, which asks the library's."""

    def rate(self, *given, **more):
        """Return half of the ratings."""
        ratings = super().rate(*given, **more)
        return replace(ratings, value=ratings.value / 2)


def with_gain(base):
    """Return a subclass whose values are those of `base` times an attribute."""

    class Scaled(base):
        gain = 1.0

        def __call__(self, *given, **more):
            scores = super().__call__(*given, **more)
            return replace(scores, value=scores.value * self.gain)

    return Scaled


def test_a_subclass_is_known_by_what_it_adds():
    """It inherits the fingerprint of its class, but a cache must not give it the values of that class."""
    iqa = ZoomIQA.from_pretrained(str(tiny_checkpoint()), device="cpu")
    assert iqa.fingerprint != Halved(iqa.checkpoint).fingerprint == Halved(iqa.checkpoint).fingerprint
    assert isinstance(Halved(iqa.checkpoint).with_views(ViewPolicy.whole()), Halved)
    mean = MetricReward(torch.mean, "mean", True, (0, 1))
    made = [
        (ZoomIQAReward, (iqa,)), (MetricReward, (torch.mean, "mean", True, (0, 1))), (ConsensusReward, (mean,)),
        (CompositeReward, ([Term(mean)],)), (RobustReward, (mean,)), (ConditionedReward, (mean,)),
        (ReferencedReward, (mean,)),
    ]  # fmt: skip
    for base, given in made:
        kind = with_gain(base)
        plain, one, two, again = base(*given), kind(*given), kind(*given), kind(*given)
        two.gain = again.gain = 2.0
        assert len({plain.fingerprint, one.fingerprint, two.fingerprint}) == 3, base
        assert two.fingerprint == again.fingerprint
        assert CompositeReward([Term(one)]).fingerprint != CompositeReward([Term(two)]).fingerprint


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own use of an older name
@pytest.mark.parametrize("kind", ["LoraConfig", "LoHaConfig", "LoKrConfig"])
def test_an_adapter_that_is_switched_off_makes_another_model(kind):
    import peft

    iqa = ZoomIQA.from_pretrained(str(tiny_checkpoint()), device="cpu")
    before = iqa.fingerprint
    wrapped = peft.get_peft_model(iqa.checkpoint.model, getattr(peft, kind)(target_modules=["q_proj"], r=2))
    switched_on = iqa.fingerprint
    with wrapped.disable_adapter():
        assert len({iqa.fingerprint, switched_on, before}) == 3
    assert iqa.fingerprint == switched_on
