"""Identity reaches as far as the code does: modules, class members, hooks, slots, bound objects, decorators."""

import collections
import enum
import functools
import importlib
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from zoomiqa_reward import MetricReward
from zoomiqa_reward.errors import UnknownState
from zoomiqa_reward.rewards.identity import state_digest


@dataclass
class Config:
    gain: float


class Secret:
    __slots__ = ("__gain",)

    def __init__(self, gain):
        self.__gain = gain


class Held(dict):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain


class Listed(list):
    pass


def with_member(member):
    class Reward:
        held = member

        def __call__(self, image):
            return image * self.held

    return Reward()


def with_method(decorator, gain):
    class Reward:
        @decorator
        def by(self, image):
            return image * gain

    return Reward()


def listed(gain):
    made = Listed()
    made.gain = gain
    return made


def linear(gain):
    network = nn.Linear(2, 1)
    nn.init.constant_(network.weight, gain)
    nn.init.zeros_(network.bias)
    return network


def hooked(gain):
    network = nn.Identity()
    network.register_forward_hook(lambda module, given, result: result * gain)
    return network


def overridden(gain):
    network = nn.Identity()
    network.forward = lambda image: image * gain
    return network


class Private(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self._gain = gain


def heads(count):
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, count)


def layer(**options):
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, **options)


def half(dtype):
    @torch.autocast("cpu", dtype=dtype)
    def product(image):
        return image @ image

    return product


def described(gain):
    class Gain:
        def __get__(self, owner, kind=None):
            return gain

    return with_member(Gain())


def level(gain):
    class Level(enum.Enum):
        HIGH = gain

    return Level.HIGH


def power(exponent):
    class Power(nn.Module):
        def forward(self, image):
            return image**exponent

    return torch.fx.symbolic_trace(Power())


def made_by(kind, gain):
    class Meta(type):
        def gain(cls):
            return gain

    return Meta("Reward", (), {})()


def wrapping(gain):
    @functools.wraps(torch.nn.functional.softmin)
    def wrapper(image):
        return image * gain

    return wrapper


def without_module(gain):
    namespace = {}
    exec(f"def fn(image): return image * {gain}", namespace)
    return namespace["fn"]


def by(gain, image):
    return image * gain


PAIRS = {
    "a network as a member of a class": lambda gain: with_member(linear(gain)),
    "a configuration as a member of a class": lambda gain: with_member(Config(gain)),
    "a partial as a member of a class": lambda gain: with_member(functools.partial(by, gain)),
    "a class within a class": lambda gain: with_member(type("Inner", (), {"gain": gain})),
    "a descriptor": described,
    "a metaclass": lambda gain: made_by(type, gain),
    "a partial method": lambda gain: with_member(functools.partialmethod(by, gain)),
    "a cached method": lambda gain: with_method(functools.lru_cache, gain),
    "a dispatched method": lambda gain: with_method(functools.singledispatchmethod, gain),
    "a private attribute of a network": Private,
    "a hook": hooked,
    "a forward of its own": overridden,
    "traced code": power,
    "a private slot": Secret,
    "the value of an enum": level,
    "attributes of a dictionary": Held,
    "attributes of a list": listed,
    "a method of a tensor": lambda gain: torch.full((3,), gain).dot,
    "a method of an array": lambda gain: np.full(3, gain).dot,
    "a method of a dictionary": lambda gain: {0: gain}.get,
    "a default factory": lambda gain: collections.defaultdict(lambda: gain),
    "a wrapper of a function of a package": wrapping,
    "a function of no module": without_module,
    "a mask": lambda gain: np.ma.array([1.0, 2.0], mask=[gain > 1, False]),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_what_code_reaches_counts(kind):
    assert state_digest(PAIRS[kind](1.0)) == state_digest(PAIRS[kind](1.0))
    assert state_digest(PAIRS[kind](1.0)) != state_digest(PAIRS[kind](5.0))


def test_options_of_installed_networks_count():
    assert state_digest(heads(2)) == state_digest(heads(2)) != state_digest(heads(4))
    assert state_digest(layer()) != state_digest(layer(norm_first=True))
    assert state_digest(layer(activation="relu")) != state_digest(layer(activation="gelu"))
    assert state_digest(half(torch.bfloat16)) != state_digest(half(torch.float16))


@pytest.mark.parametrize("reads", [
    "import gains\ndef fn(image): return image * gains.GAIN",
    "import gains\ndef fn(image): return gains.scaled(image)",
    "import gains\ndef fn(image): return image * getattr(gains, 'GAIN')",
    "from gains import scaled\ndef fn(image): return scaled(image)",
    "def fn(image):\n    from gains import scaled\n    return scaled(image)",
    "def fn(image):\n    import gains as g\n    return image * g.GAIN",
    "import gains\nclass Reward:\n    def __init__(self): self.by = gains\nfn = Reward()",
])  # fmt: skip
def test_a_module_of_the_users_counts_by_what_is_in_it(reads, tmp_path, monkeypatch):
    (tmp_path / "gains.py").write_text("GAIN = 1.0\ndef scaled(image): return image * GAIN\n")
    (tmp_path / "mine.py").write_text(reads)
    monkeypatch.syspath_prepend(tmp_path)
    gains, mine = importlib.import_module("gains"), importlib.import_module("mine")
    try:
        before = MetricReward(mine.fn, "m", True, (0, 1)).fingerprint
        assert MetricReward(mine.fn, "m", True, (0, 1)).fingerprint == before
        gains.GAIN = 5.0
        assert MetricReward(mine.fn, "m", True, (0, 1)).fingerprint != before
    finally:
        del sys.modules["gains"], sys.modules["mine"]


def test_an_attribute_with_the_name_of_a_global_is_not_that_global():
    """`.mean` of a tensor beside a global reward called `mean` led from the reward to itself without end."""
    namespace = {}
    exec("def fn(image): return float(image.mean())", namespace)
    namespace["mean"] = MetricReward(namespace["fn"], "mean", True, (0, 1))
    assert len(namespace["mean"].fingerprint) == 16


def test_a_reward_that_reads_itself_ends():
    namespace = {}
    exec("def fn(image): return image.mean() * bool(mine.needs)", namespace)
    namespace["mine"] = MetricReward(namespace["fn"], "m", True, (0, 1))
    assert namespace["mine"].fingerprint == namespace["mine"].fingerprint


def test_what_cannot_be_read_is_refused():
    for state in (np.frompyfunc(lambda image: image, 1, 1), with_member(iter([1.0]))):
        with pytest.raises(UnknownState):
            state_digest(state)


def test_packages_count_by_the_version_of_their_distribution():
    from zoomiqa_reward.rewards import code_reach

    assert "pillow" in code_reach.version_of("PIL.Image").lower()  # the module has another name than the package
