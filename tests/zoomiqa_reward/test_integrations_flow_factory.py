"""The reward model of Flow-Factory. Its package is not on PyPI: without it, a stand-in of its contract takes its place.

The stand-in has the two classes that we build on, with their documented members. Loading (dotted path, `config` and
`accelerator` by keyword) and the call (fields as lists, condition images per sample) follow its `loader.py` and
`reward_processor.py`.
"""

import importlib
import json
import sys
import types
from dataclasses import dataclass, field

import pytest
import torch
from photographs import photograph
from tiny import tiny_checkpoint, tiny_iqa

from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

HOME = "zoomiqa_reward.integrations.flow_factory"


@dataclass
class Config:
    """The fields of its RewardArguments that a reward model reads."""

    extra_kwargs: dict
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.bfloat16
    batch_size: int = 2


class StandIn:
    """Its BaseRewardModel: device and dtype from the configuration."""

    def __init__(self, config, accelerator):
        self.config, self.accelerator = config, accelerator
        self.device = accelerator.device if config.device == torch.device("cuda") else config.device
        self.dtype = config.dtype


@dataclass
class Output:
    rewards: object
    extra_info: dict | None = None


@pytest.fixture
def load(monkeypatch):
    """Load the reward model as its loader does, by the dotted path of the YAML file."""
    try:
        importlib.import_module("flow_factory.rewards")
    except ImportError:
        package, rewards = types.ModuleType("flow_factory"), types.ModuleType("flow_factory.rewards")
        rewards.PointwiseRewardModel, rewards.RewardModelOutput = StandIn, Output
        monkeypatch.setitem(sys.modules, "flow_factory", package)
        monkeypatch.setitem(sys.modules, "flow_factory.rewards", rewards)
    monkeypatch.delitem(sys.modules, HOME, raising=False)

    def load_model(**options):
        module, _, name = f"{HOME}.ZoomIQARewardModel".rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        assert issubclass(kind, sys.modules["flow_factory.rewards"].PointwiseRewardModel)
        assert kind.required_fields == ("image", "prompt")
        accelerator = types.SimpleNamespace(device=torch.device("cpu"))
        return kind(config=Config(options), accelerator=accelerator)

    return load_model


def batch(*seeds):
    return [photograph(seed, 96, 96) for seed in seeds]


def test_ratings_of_a_batch(load):
    model = load(model=str(tiny_checkpoint()))
    images = batch(0, 1)
    output = model(prompt=["", ""], image=images)
    values = torch.as_tensor(output.rewards, device="cpu", dtype=torch.float32)  # as its processor reads them
    assert torch.equal(values, ZoomIQAReward(tiny_iqa())(images).value)
    assert output.extra_info["valid"].tolist() == [True, True]
    half = model(prompt=["", ""], image=[image.bfloat16() for image in images])
    assert half.rewards.dtype == torch.float32
    assert torch.isfinite(half.rewards).all()


def test_the_first_condition_image_is_the_source(load):
    model = load(model="mean_of_source:with_source")
    images, low = batch(0, 1), [photograph(2, 24, 24), photograph(0, 24, 24)]
    expected = [float(image.mean() + one.mean()) for image, one in zip(images, low, strict=True)]
    for conditions in ([[one, images[0]] for one in low], [one[None] for one in low]):  # lists, or stacked tensors
        found = model(prompt=["", ""], image=images, condition_images=conditions).rewards
        assert found.tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"needs metadata\[0\]\['lq'\]"):
        model(prompt=["", ""], image=images)


def test_the_row_may_name_the_source_before_it_was_enlarged(load, tmp_path):
    """The adapters enlarge condition images, and beside an enlarged input all detail is unfaithful."""
    to_pil(photograph(2, 24, 24)).save(tmp_path / "low.png")
    model = load(model="mean_of_source:with_source")
    rows = [json.dumps({"lq": str(tmp_path / "low.png")}), json.dumps({"lq": None}), "{}"]
    found = model(prompt=[""] * 3, image=batch(1, 1, 1), metadata=rows, condition_images=[[photograph(0, 96, 96)]] * 3)
    image, condition = float(batch(1)[0].mean()), float(photograph(0, 96, 96).mean())
    expected = [image + float(photograph(2, 24, 24).mean()), image + condition, image + condition]
    assert found.rewards.tolist() == pytest.approx(expected, abs=2e-3)


def test_the_reference_stands_in_the_row(load, tmp_path):
    reference = photograph(0, 96, 96)
    to_pil(reference).save(tmp_path / "clean.png")
    model = load(model="mean_of_source:with_reference", hr_key="clean")
    found = model(prompt=[""], image=batch(1), metadata=[json.dumps({"clean": str(tmp_path / "clean.png")})]).rewards
    assert found.item() == pytest.approx(float(batch(1)[0].mean() + reference.mean()), abs=2e-3)


def test_failures_and_wrong_options(load):
    images = [photograph(0, 96, 96), torch.zeros(3, 96, 96)]
    with pytest.raises(RuntimeError, match=r"could not measure image 1.*no content"):
        load(model=str(tiny_checkpoint()))(prompt=["", ""], image=images)
    output = load(model=str(tiny_checkpoint()), on_invalid="nan")(prompt=["", ""], image=images)
    assert output.rewards.isnan().tolist() == [False, True]
    assert "no content" in output.extra_info["errors"][1]
    with pytest.raises(ValueError, match="rates images; these samples hold none"):
        load(model=str(tiny_checkpoint()))(prompt=[""], video=[[]])
    with pytest.raises(ValueError, match="reward option 'wieght'"):
        load(wieght=2)


def test_without_flow_factory_the_error_says_where_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "flow_factory", None)
    monkeypatch.delitem(sys.modules, HOME, raising=False)
    with pytest.raises(ImportError, match="X-GenGroup/Flow-Factory"):
        importlib.import_module(HOME)
