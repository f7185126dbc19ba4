"""Nothing that is switched on around a metric, a reward or a restorer of this package changes its bits."""

import pytest
import torch
from ambient import AMBIENT
from safetensors.torch import load_file
from tiny import make_image, tiny_iqa

from restoration.metrics import METRICS, ConditionedReward, MetricUnavailable, as_reward, measure
from restoration.restorer.restorer import Restorer
from restoration.tuning import Example, tune
from restoration.tuning.recipes import find_recipe
from zoomiqa_reward import MetricReward, ZoomIQAReward
from zoomiqa_reward.model.numerics import SETTINGS

HR = (0.5 * make_image(0, 200, 200) + 0.5 * ((torch.arange(200)[:, None] // 40 + torch.arange(200) // 40) % 2)).float()
LQ = torch.nn.functional.avg_pool2d(HR[None], 4)[0]
SR = torch.nn.functional.interpolate(LQ[None], scale_factor=4, mode="nearest")[0]
GIVEN = {"hr": HR, "lq": LQ}


def rewards(backbone):
    found = {name: as_reward(name, **({"weights": backbone} if name == "lpips" else {})) for name in METRICS}
    return found | {"conditioned": ConditionedReward(ZoomIQAReward(tiny_iqa()))}


@pytest.fixture(scope="module")
def known(backbone):
    options = {"lpips": {"weights": backbone}}
    values = {name: measure([name], SR, **GIVEN, options=options)[name].value for name in METRICS}
    assert all(value == value for value in values.values()), values  # not one is NaN: each is measured
    return values, {name: one(SR, lq=LQ, hr=HR).value for name, one in rewards(backbone).items()}


@pytest.mark.parametrize("name", AMBIENT)
def test_every_metric_and_reward_gives_the_same_bits(name, known, backbone):
    values, scores = known
    before = [one.now() for one in SETTINGS]
    with AMBIENT[name]():
        for metric in METRICS.values():
            options = {"weights": backbone} if metric.name == "lpips" else {}
            given = [] if metric.needs is None else [GIVEN[metric.needs]]
            assert metric.fn(SR, *given, **options) == values[metric.name], metric.name
        for kind, reward in rewards(backbone).items():
            assert torch.equal(reward(SR, lq=LQ, hr=HR).value, scores[kind]), kind
    assert [one.now() for one in SETTINGS] == before


def test_metrics_that_cannot_be_had_still_say_so():
    with pytest.raises(MetricUnavailable, match="backbone"):
        as_reward("lpips", weights="nowhere.pth")


@pytest.mark.parametrize("name", ["autocast_bfloat16", "default_float64", "default_bfloat16", "default_device_meta"])
def test_a_restorer_makes_the_same_image_and_fixes_its_colours_alike(name):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Sigmoid())
    for source, options in (("nano", {"steps": 2}), (network, {})):
        restorer = Restorer.from_pretrained(source, colour_fix="wavelet", tile_px=20, tile_overlap_px=4, **options)
        image = make_image(1, 24, 24) if source == "nano" else make_image(1, 24, 24) * 0.3
        plain = next(restorer.restore(image, [3])).image
        with AMBIENT[name]():
            loaded = Restorer.from_pretrained(source, colour_fix="wavelet", tile_px=20, tile_overlap_px=4, **options)
            assert torch.equal(next(loaded.restore(image, [3])).image, plain), source
            found = next(restorer.restore(image, [3])).image
        assert torch.equal(found, plain), source


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Return what tunes the embedded restorer a little and returns the adapter."""
    examples = [Example(name=str(k), lq=LQ[:, k : k + 16, :16], hr=HR[:, 4 * k : 4 * k + 64, :64]) for k in range(2)]

    def run(name):
        recipe = find_recipe("nano_sft", rounds=1, images_per_round=2, num_samples=3, updates_per_round=1, epochs=1,
                             crop_px=None, lora_rank=2, truth_weight=1.0, truth_states="sampled",
                             truth_sharpness=0.3)  # fmt: skip
        contrast = MetricReward(lambda image: float(image.std()), "contrast", True, (0, 1))
        result = tune(recipe, examples, contrast, tmp_path_factory.mktemp(name) / "run", validation=None, device="cpu")
        return load_file(result.lora / "pytorch_lora_weights.safetensors")

    return run


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries, while pipelines are saved
def test_tuning_learns_the_same_weights(tuned):
    """Adapters were made of the default dtype's draws and on the default device, and no_grad left nothing to learn."""
    plain = tuned("plain")
    for name, ambient in (AMBIENT | {"no_grad": torch.no_grad}).items():
        if name.startswith(("autocast_b", "default_float64", "default_device", "inference", "no_grad")):
            with ambient():
                found = tuned(name)
            assert all(torch.equal(found[key], plain[key]) for key in plain), name
