"""Zoom-IQA as a loss and a metric inside its hosts: basicsr and torchmetrics themselves, pyiqa's call form."""

import copy
import logging
import math
import subprocess
import sys
import types
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import ROOT
from mean_reward import mean_reward
from tiny import make_image, tiny_checkpoint, tiny_iqa

import zoomiqa_reward
from zoomiqa_reward.integrations.pyiqa import ZoomIQAScorer, register
from zoomiqa_reward.rewards.loss import ZoomIQALoss, clamped
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward


@pytest.mark.integration
def test_integrations_import_no_host():
    code = (
        "import sys, zoomiqa_reward.integrations as i\n"
        "from zoomiqa_reward.integrations import ddpo, diffusers, pyiqa\n"
        "hosts = {'diffusers', 'basicsr', 'torchmetrics', 'pyiqa', 'lpips', 'ray', 'gradio'} & set(sys.modules)\n"
        "print(sorted(hosts)); assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


# ---- BasicSR


@pytest.fixture(scope="module")
def host():
    """basicsr with our entries registered, and its own builders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("zoomiqa_reward.integrations.basicsr", exc_type=ImportError)
        from basicsr.losses import build_loss
        from basicsr.metrics import calculate_metric
    return types.SimpleNamespace(ours=module, build_loss=build_loss, calculate_metric=calculate_metric)


def test_basicsr_loss_by_its_own_builder(host):
    loss = host.build_loss(
        {"type": "ZoomIQALoss", "loss_weight": 0.5, "model": str(tiny_checkpoint()), "device": "cpu"}
    )
    output = torch.stack([make_image(seed, 64, 64) for seed in range(2)]).requires_grad_(True)
    value = loss(output, target=torch.zeros_like(output))
    ratings = ZoomIQAReward(tiny_iqa())(output.detach()).value
    assert value.item() == pytest.approx(0.5 * float(((5 - ratings) / 4).mean()), rel=1e-6)
    value.backward()
    assert (output.grad.abs().sum(dim=1) > 0).float().mean() > 0.9
    assert not list(loss.parameters())
    assert loss.state_dict() == {}


def test_basicsr_loss_of_what_a_network_puts_out(host):
    """Outside [0, 1] it is judged clamped, with a gradient; one bad image does not spoil the batch."""
    loss = host.ours.ZoomIQALoss(model=str(tiny_checkpoint()), device="cpu")
    output = (1.2 * make_image(1, 64, 64) - 0.1)[None].requires_grad_(True)
    assert loss(output).item() == pytest.approx(loss(output.detach().clamp(0, 1)).item())
    loss(output).backward()
    outside = (output < 0) | (output > 1)
    assert outside.any()
    assert output.grad[outside].any()
    half_bad = torch.stack([make_image(1, 64, 64), torch.full((3, 64, 64), math.nan)])
    assert loss(half_bad).item() == pytest.approx(loss(half_bad[:1]).item())
    with pytest.raises(RuntimeError, match=r"none of 1 images could be measured.*NaN"):
        loss(half_bad[1:])
    with pytest.raises(ValueError, match="takes no weight"):
        loss(output, weight=torch.ones(1))
    with pytest.raises(ValueError, match="reduction='none'"):
        host.ours.ZoomIQALoss(reduction="none")


def test_basicsr_loss_is_the_plain_one(host):
    assert host.ours.ZoomIQALoss is ZoomIQALoss
    assert logging.getLogger("zoomiqa_reward.rewards.loss").parent is logging.getLogger("basicsr")


def test_basicsr_perceptual_form(host):
    """BasicSR's SRModel unpacks two values from `perceptual_opt`."""
    options = {"loss_weight": 0.5, "model": str(tiny_checkpoint()), "device": "cpu"}
    batch = make_image(1, 64, 64)[None]
    perceptual, style = host.build_loss({"type": "ZoomIQAPerceptualLoss"} | options)(batch, batch)
    assert perceptual.item() == host.build_loss({"type": "ZoomIQALoss"} | options)(batch).item()
    assert style is None


def test_basicsr_loss_of_a_batch_that_shows_nothing(host, caplog, monkeypatch):
    """A crop of sky does not end a training: no direction from it, one line in the log, an error if it goes on."""
    monkeypatch.setattr("zoomiqa_reward.rewards.loss.MAX_EMPTY_BATCHES", 3)
    loss = host.ours.ZoomIQALoss(model=str(tiny_checkpoint()), device="cpu")
    sky = torch.full((2, 3, 64, 64), 0.5, requires_grad=True)
    for _ in range(2):
        value = loss(sky)
        value.backward()
    assert value.item() == 0
    assert not sky.grad.any()
    assert caplog.text.count("no content") == 1
    assert loss(make_image(1, 64, 64)[None]).item() > 0
    assert loss.empty_batches == 0
    loss(sky), loss(sky)
    with pytest.raises(RuntimeError, match=r"no image had content in 3 batches in a row.*larger crops"):
        loss(sky)


def test_basicsr_metric_by_its_own_builder(host):
    options = {"type": "calculate_zoomiqa", "model": str(tiny_checkpoint()), "device": "cpu", "better": "higher"}
    rgb = (make_image(4, 70, 90) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    expected = ZoomIQAReward(tiny_iqa())(rgb).value.item()
    assert host.calculate_metric({"img": bgr, "img2": bgr}, options) == expected
    assert host.calculate_metric({"img": bgr.astype(np.float64)}, options) == pytest.approx(expected)
    chw = host.calculate_metric({"img": bgr.transpose(2, 0, 1)}, options | {"input_order": "CHW"})
    assert chw == pytest.approx(expected)
    cropped = host.calculate_metric({"img": bgr}, options | {"crop_border": 4})
    assert cropped == ZoomIQAReward(tiny_iqa())(np.ascontiguousarray(rgb[4:-4, 4:-4])).value.item()
    grey = host.calculate_metric({"img": bgr[:, :, 0]}, options)
    assert 1 <= grey <= 5
    with pytest.raises(ValueError, match=r"must be in \[0, 255\]"):
        host.calculate_metric({"img": bgr * 1.0 - 9}, options)
    with pytest.raises(ValueError, match="leaves nothing"):
        host.calculate_metric({"img": bgr}, options | {"crop_border": 40})
    with pytest.raises(ValueError, match=r"option 'modle' .* must be one of crop_border, "):  # nano was used instead
        host.calculate_metric({"img": bgr}, options | {"modle": "my-7b"})


# ---- any training loop


def test_the_plain_loss_is_public_and_takes_a_loaded_model():
    assert ZoomIQALoss is zoomiqa_reward.ZoomIQALoss
    iqa = tiny_iqa()
    output = (1.1 * make_image(1, 64, 64) - 0.05)[None].requires_grad_(True)
    loss = ZoomIQALoss(0.5, iqa)(output)
    assert loss.shape == ()
    rating = ZoomIQAReward(iqa)(output.detach().clamp(0, 1)).value.item()
    assert loss.item() == pytest.approx(0.5 * (5 - rating) / 4)
    loss.backward()
    assert output.grad.any()


@pytest.mark.parametrize("spread", [lambda batch: 255 * batch, lambda batch: 2 * batch - 1])
def test_a_loss_of_another_range_says_once_that_it_is_clamped(spread, monkeypatch):
    """Images in -1..1 or 0..255 were judged half black or white, without a word."""
    monkeypatch.setattr("zoomiqa_reward.rewards.loss._TOLD", [])
    batch = torch.stack([make_image(k, 40, 40) for k in range(2)])
    clamped(1.1 * batch - 0.05)  # overshoot: a warning would be an error
    with pytest.warns(UserWarning, match=r"is clamped to \[0, 1\] before it is rated: divide 0\.\.255 by 255, map -1"):
        clamped(spread(batch))
    clamped(spread(batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_far_values_are_clamped_exactly(dtype, monkeypatch):
    """In bfloat16, 300 + (1 - 300) is 0: a white pixel was rated as black."""
    monkeypatch.setattr("zoomiqa_reward.rewards.loss._TOLD", [torch.Size()])
    far = torch.tensor([-6e4, -300.0, -0.3, 0.0, 0.3, 1.0, 1.3, 300.0, 6e4], dtype=dtype, requires_grad=True)
    assert torch.equal(clamped(far), far.detach().clamp(0, 1))
    clamped(far).sum().backward()
    assert torch.equal(far.grad, torch.ones_like(far))
    assert clamped(torch.tensor([math.nan, math.inf])).isnan().all()  # no clamp makes an image of these


def test_a_loss_of_no_images_says_so():
    with pytest.raises(ValueError, match="holds no images"):
        ZoomIQALoss(model=tiny_iqa())(torch.zeros(0, 3, 64, 64, requires_grad=True))


@pytest.mark.integration
def test_the_plain_loss_needs_no_other_library():
    code = (
        "import sys\nfrom zoomiqa_reward import ZoomIQALoss\n"
        "print(sorted({'basicsr', 'pyiqa', 'torchmetrics', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


# ---- torchmetrics


def test_torchmetrics_takes_8_bit_batches_as_its_own_metrics_do():
    pytest.importorskip("torchmetrics")
    from zoomiqa_reward.integrations.torchmetrics import ZoomIQAMetric

    batch = (torch.rand(2, 3, 16, 12) * 255).to(torch.uint8)
    expected = float(batch.float().mean() / 255)
    forms = (
        batch, list(batch), batch.permute(0, 2, 3, 1), batch.permute(0, 2, 3, 1).numpy(), batch.float() / 255,
    )  # fmt: skip
    for form in forms:
        metric = ZoomIQAMetric(mean_reward())
        metric.update(form)
        assert metric.compute().item() == pytest.approx(expected)
    metric = ZoomIQAMetric(mean_reward(needs=("lq", "hr")))
    metric.update(batch[0], batch[1], lq=batch[:1, :, :4, :4])
    parts = (batch[0], batch[1], batch[0, :, :4, :4])
    assert metric.compute().item() == pytest.approx(sum(float(one.float().mean() / 255) for one in parts))
    with pytest.raises(ValueError, match="must be a float tensor NCHW"):
        metric.update(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_deep_copies_share_the_judge():
    """An average of weights copies the criterion, and torchmetrics clones its metrics: a 7B was in memory thrice."""
    pytest.importorskip("torchmetrics")
    from zoomiqa_reward.integrations.lpips import ZoomIQADistance
    from zoomiqa_reward.integrations.torchmetrics import ZoomIQAMetric

    iqa = tiny_iqa()
    metric = ZoomIQAMetric(mean_reward(), on_invalid="drop")
    metric.update(torch.full((1, 3, 8, 8), 0.5))
    for module in (ZoomIQALoss(0.5, iqa), ZoomIQAScorer(iqa), ZoomIQADistance(iqa), metric):
        twin = copy.deepcopy(torch.nn.Sequential(module))[0]
        assert type(twin) is type(module)
        assert twin is not module
        assert twin.reward is module.reward
    twin = metric.clone()
    twin.update(torch.full((1, 3, 8, 8), 1.0))
    assert (metric.compute().item(), twin.compute().item(), twin.on_invalid) == (0.5, 0.75, "drop")


def test_torchmetrics_names_the_first_reason_of_a_mean_that_is_nan():
    pytest.importorskip("torchmetrics")
    from zoomiqa_reward.integrations.torchmetrics import ZoomIQAMetric

    metric = ZoomIQAMetric(mean_reward())
    message = "mean: 1 of 2 images could not be measured, so the mean is NaN; the first: no-such-file.png"
    with pytest.warns(UserWarning, match=message):
        metric([torch.full((3, 8, 8), 0.5), "no-such-file.png"])  # the value of one batch, as Lightning logs it
    metric(torch.full((1, 3, 8, 8), 0.5))
    metric.update("another-file.png")
    with pytest.warns(UserWarning, match=r"mean: 2 of 4 .*; the first: no-such-file.png"):
        assert metric.compute().isnan()
    metric.reset()
    assert metric.first_error is None


def test_torchmetrics_accumulates_merges_and_resets():
    torchmetrics = pytest.importorskip("torchmetrics")
    from zoomiqa_reward.integrations.torchmetrics import ZoomIQAMetric

    metric = ZoomIQAMetric(ZoomIQAReward(tiny_iqa()))
    assert isinstance(metric, torchmetrics.Metric)
    batch = torch.stack([make_image(seed, 64, 64) for seed in range(3)])
    expected = ZoomIQAReward(tiny_iqa())(batch).value
    step = metric(batch[:2])  # the value of one batch, as Lightning logs it
    assert step.item() == pytest.approx(expected[:2].mean().item())
    metric.update(batch[2])
    assert metric.compute().item() == pytest.approx(expected.mean().item())
    collection = torchmetrics.MetricCollection({"rating": ZoomIQAMetric(ZoomIQAReward(tiny_iqa()))})
    collection.update(batch)
    assert collection.compute()["rating"].item() == pytest.approx(expected.mean().item())
    metric.reset()
    assert int(metric.measured) == 0


def test_rewards_in_a_torchmetrics_collection_stay_apart():
    """It updates one metric for all whose states are equal after the first batch, as after one without any value."""
    torchmetrics = pytest.importorskip("torchmetrics")
    from zoomiqa_reward.integrations.torchmetrics import ZoomIQAMetric

    plain, scaled = mean_reward(), mean_reward(fn=lambda image: 0.5 * image.mean())
    collection = torchmetrics.MetricCollection({
        "plain": ZoomIQAMetric(plain, on_invalid="drop"), "scaled": ZoomIQAMetric(scaled, on_invalid="drop"),
        "strict": ZoomIQAMetric(plain),
    })  # fmt: skip
    collection.update(torch.zeros(1, 3, 8, 8))
    collection.update(torch.full((2, 3, 8, 8), 0.75))
    collection.update("no-such-file.png")
    with pytest.warns(UserWarning, match=r"the first: no-such-file.png"):
        values = collection.compute()
    expected = {"plain": 0.5, "scaled": 0.25, "strict": math.nan}
    assert {name: value.item() for name, value in values.items()} == pytest.approx(expected, nan_ok=True)
    assert not collection["scaled"].state_dict()


def test_torchmetrics_shows_failures():
    pytest.importorskip("torchmetrics")
    from zoomiqa_reward.integrations.torchmetrics import ZoomIQAMetric

    images = [torch.full((3, 8, 8), 0.5), "no-such-file.png"]
    for on_invalid, expected in (("nan", math.nan), ("drop", 0.5)):
        metric = ZoomIQAMetric(mean_reward(), on_invalid=on_invalid)
        metric.update(images)
        with pytest.warns(UserWarning, match="no-such-file") if on_invalid == "nan" else nullcontext():
            assert metric.compute().item() == pytest.approx(expected, nan_ok=True)
        assert int(metric.failed) == 1
    metric = ZoomIQAMetric(mean_reward(needs=("lq", "hr")))
    metric.update(images[:1], torch.full((1, 3, 8, 8), 0.25), lq=torch.full((1, 3, 4, 4), 1.0))
    assert metric.compute().item() == pytest.approx(1.75)
    with pytest.raises(ValueError, match="needs hr="):
        metric.update(images[:1], lq=torch.full((1, 3, 4, 4), 1.0))
    with pytest.raises(ValueError, match="needs prompts"):
        ZoomIQAMetric(mean_reward(needs=("prompts",)))
    with pytest.raises(ValueError, match="on_invalid='zero'"):
        ZoomIQAMetric(mean_reward(), on_invalid="zero")


# ---- pyiqa


def test_pyiqa_style_metric_needs_no_pyiqa():
    scorer = ZoomIQAScorer(tiny_iqa())
    batch = torch.stack([make_image(seed, 64, 64) for seed in range(2)])
    found = scorer(batch, batch)
    assert found.shape == (2, 1)
    assert torch.equal(found[:, 0], ZoomIQAReward(tiny_iqa())(batch).value)
    assert not scorer.lower_better
    batch.requires_grad_(True)
    with torch.no_grad():
        assert not scorer(batch).requires_grad
    scorer(batch).sum().backward()
    assert batch.grad.any()


def test_pyiqa_style_loss_of_what_a_network_puts_out():
    """Outside [0, 1] it is rated clamped, with a gradient; without any measured image there is nothing to follow."""
    scorer = ZoomIQAScorer(tiny_iqa())
    output = (1.2 * make_image(1, 64, 64) - 0.1)[None].requires_grad_(True)
    found = scorer(output)
    assert found.item() == pytest.approx(scorer(output.detach().clamp(0, 1)).item())
    found.sum().backward()
    outside = (output < 0) | (output > 1)
    assert outside.any()
    assert output.grad[outside].any()
    assert scorer(output.detach()).isnan()  # a metric says that the image is out of range
    with pytest.raises(RuntimeError, match=r"none of 1 images of a loss could be measured.*NaN"):
        scorer(torch.full((1, 3, 64, 64), math.nan, requires_grad=True))


def test_pyiqa_registration_by_contract(monkeypatch):
    """A stand-in with the names and behaviour of pyiqa's registry: its licence keeps the real one out of here."""

    class Registry(dict):
        def register(self):
            def keep(cls):
                assert cls.__name__ not in self, "registered twice"
                self[cls.__name__] = cls
                return cls

            return keep

    names = ("pyiqa", "pyiqa.utils", "pyiqa.utils.registry", "pyiqa.default_model_configs")
    fakes = {name: types.ModuleType(name) for name in names}
    fakes["pyiqa.utils.registry"].ARCH_REGISTRY = registry = Registry()
    fakes["pyiqa.default_model_configs"].DEFAULT_CONFIGS = configs = {}
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    register()
    register()
    options = dict(configs["zoomiqa"]["metric_opts"], model=str(tiny_checkpoint()), device="cpu")
    network = registry[options.pop("type")](**options)  # as pyiqa's build_network does
    assert network(make_image(0, 64, 64)[None]).shape == (1, 1)
    assert configs["zoomiqa"]["metric_mode"] == "NR"
    monkeypatch.setitem(sys.modules, "pyiqa.utils.registry", None)
    with pytest.raises(ImportError, match="works without"):
        register()
