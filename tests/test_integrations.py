"""Zoom-IQA inside its hosts: basicsr, torchmetrics and diffusers themselves, and the call forms of the others."""

import math
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import picture, tiny_checkpoint, tiny_iqa

from zoomiqa_reward.integrations.ddpo import batch_images, ddpo_reward, flow_grpo_reward
from zoomiqa_reward.integrations.diffusers import decoded, predicted_x0, score_steps
from zoomiqa_reward.integrations.pyiqa import ZoomIQAScorer, register
from zoomiqa_reward.reward import MetricReward, ZoomIQAReward


def mean_reward(**options):
    fn = options.pop("fn", lambda image, **given: image.mean() + sum(float(one.mean()) for one in given.values()))
    return MetricReward(fn, "mean", True, (0, 9), fingerprint="v1", **options)


def test_integrations_import_no_host():
    code = (
        "import sys, zoomiqa_reward.integrations as i\n"
        "from zoomiqa_reward.integrations import ddpo, diffusers, pyiqa\n"
        "hosts = {'diffusers', 'basicsr', 'torchmetrics', 'pyiqa', 'lpips', 'ray', 'gradio'} & set(sys.modules)\n"
        "print(sorted(hosts)); assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


# ---- DDPO and Flow-GRPO


def test_ddpo_form_of_both_layouts():
    fn = ddpo_reward(mean_reward())
    floats = torch.rand(3, 3, 8, 10)
    scores, info = fn(floats, ["a"] * 3, [{}] * 3)
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32
    assert scores.tolist() == pytest.approx(floats.mean(dim=(1, 2, 3)).tolist())
    assert info["valid"].tolist() == [True] * 3
    assert info["errors"] == [None] * 3
    eight_bit = (floats * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for form in (eight_bit, torch.from_numpy(eight_bit), list(eight_bit)):
        found, _ = fn(form, ["a"] * 3, [{}] * 3)
        assert found.tolist() == pytest.approx((eight_bit / 255).mean(axis=(1, 2, 3)).tolist())


def test_floats_are_not_rounded_to_eight_bits():
    image = torch.full((1, 3, 8, 8), 0.5001)
    assert ddpo_reward(mean_reward())(image, [""], [{}])[0].item() == pytest.approx(0.5001, abs=1e-6)


def test_low_quality_image_travels_in_the_metadata():
    fn = ddpo_reward(mean_reward(needs=("lq",)))
    images = torch.full((2, 3, 8, 8), 0.25)
    metadata = [{"lq": torch.full((3, 4, 4), 0.5)}, {"lq": np.full((4, 4, 3), 255, dtype=np.uint8)}]
    assert fn(images, ["", ""], metadata)[0].tolist() == pytest.approx([0.75, 1.25])
    renamed = ddpo_reward(mean_reward(needs=("lq",)), lq_key="source")
    assert renamed(images[:1], [""], [{"source": metadata[0]["lq"]}])[0].tolist() == pytest.approx([0.75])
    with pytest.raises(ValueError, match=r"needs metadata\[0\]\['lq'\]; it holds \['id'\]"):
        fn(images, ["", ""], [{"id": 1}, {"id": 2}])
    with pytest.raises(ValueError, match="metadata holds 1 for 2"):
        fn(images, ["", ""], metadata[:1])
    with pytest.raises(ValueError, match="metadata is NoneType"):
        fn(images, ["", ""], None)


def test_prompts_reach_a_reward_that_needs_them():
    fn = ddpo_reward(mean_reward(fn=lambda image, prompt: float(len(prompt)), needs=("prompts",)))
    assert fn(torch.rand(2, 3, 8, 8), ("a", "abc"), ({}, {}))[0].tolist() == [1, 3]
    with pytest.raises(ValueError, match="needs prompts"):
        fn(torch.rand(1, 3, 8, 8))


def test_a_failure_is_nan_or_an_error_and_never_zero():
    images = torch.stack([torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), 3.0)])
    scores, info = ddpo_reward(mean_reward())(images, ["", ""], [{}, {}])
    assert scores.tolist() == pytest.approx([0.5, math.nan], nan_ok=True)
    assert info["valid"].tolist() == [True, False]
    assert "not in [0, 1]" in info["errors"][1]
    with pytest.raises(RuntimeError, match="could not measure image 1"):
        ddpo_reward(mean_reward(), on_invalid="raise")(images, ["", ""], [{}, {}])
    with pytest.raises(ValueError, match="on_invalid='zero'"):
        ddpo_reward(mean_reward(), on_invalid="zero")


def test_flow_grpo_form():
    """As its loop reads it: named scores as tensors on the device, `avg` for the advantage."""
    fn = flow_grpo_reward(mean_reward())
    rewards, _ = fn(torch.full((2, 3, 8, 8), 0.5), ["", ""], [{}, {}], only_strict=True)
    rewards = {key: torch.as_tensor(value).float() for key, value in rewards.items()}
    assert rewards["avg"].tolist() == rewards["mean"].tolist() == [0.5, 0.5]
    # its `multi_score` multiplies each of the scores by a weight
    scores, _ = ddpo_reward(mean_reward())(torch.full((2, 3, 8, 8), 0.5), ["", ""], {})
    assert [0.5 * score for score in scores] == [0.25, 0.25]
    edit = flow_grpo_reward(mean_reward(needs=("lq",)))
    found, _ = edit(torch.full((1, 3, 8, 8), 0.5), [""], None, ref_images=torch.full((1, 3, 4, 4), 0.25))
    assert found["avg"].tolist() == [0.75]


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.rand(1, 8, 8, 3), np.random.rand(1, 8, 8, 3), "x.png"])
def test_other_layouts_are_refused(images):
    with pytest.raises(ValueError, match="must be a float tensor NCHW"):
        batch_images(images)


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
    output = torch.stack([picture(seed, 64, 64) for seed in range(2)]).requires_grad_(True)
    value = loss(output, target=torch.zeros_like(output))
    ratings = ZoomIQAReward(tiny_iqa())(output.detach()).value
    assert value.item() == pytest.approx(0.5 * float(((5 - ratings) / 4).mean()), rel=1e-6)
    value.backward()
    assert (output.grad.abs().sum(dim=1) > 0).float().mean() > 0.9
    assert not list(loss.parameters())
    assert loss.state_dict() == {}


def test_basicsr_loss_of_what_a_network_puts_out(host):
    """Outside [0, 1] it is judged clamped, with a gradient; one bad picture does not spoil the batch."""
    loss = host.ours.ZoomIQALoss(model=str(tiny_checkpoint()), device="cpu")
    output = (1.2 * picture(1, 64, 64) - 0.1)[None].requires_grad_(True)
    assert loss(output).item() == pytest.approx(loss(output.detach().clamp(0, 1)).item())
    loss(output).backward()
    outside = (output < 0) | (output > 1)
    assert outside.any()
    assert output.grad[outside].any()
    half_bad = torch.stack([picture(1, 64, 64), torch.full((3, 64, 64), math.nan)])
    assert loss(half_bad).item() == pytest.approx(loss(half_bad[:1]).item())
    with pytest.raises(RuntimeError, match=r"none of 1 images could be measured.*NaN"):
        loss(half_bad[1:])
    with pytest.raises(ValueError, match="element-wise weight"):
        loss(output, weight=torch.ones(1))
    with pytest.raises(ValueError, match="reduction='none'"):
        host.ours.ZoomIQALoss(reduction="none")


def test_basicsr_metric_by_its_own_builder(host):
    options = {"type": "calculate_zoomiqa", "model": str(tiny_checkpoint()), "device": "cpu", "better": "higher"}
    rgb = (picture(4, 70, 90) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
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


# ---- torchmetrics


def test_torchmetrics_accumulates_merges_and_resets():
    torchmetrics = pytest.importorskip("torchmetrics")
    from zoomiqa_reward.integrations.torchmetrics import ZoomIQAMetric

    metric = ZoomIQAMetric(ZoomIQAReward(tiny_iqa()))
    assert isinstance(metric, torchmetrics.Metric)
    batch = torch.stack([picture(seed, 64, 64) for seed in range(3)])
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


def test_torchmetrics_shows_failures():
    pytest.importorskip("torchmetrics")
    from zoomiqa_reward.integrations.torchmetrics import ZoomIQAMetric

    images = [torch.full((3, 8, 8), 0.5), "no-such-file.png"]
    for on_invalid, expected in (("nan", math.nan), ("drop", 0.5)):
        metric = ZoomIQAMetric(mean_reward(), on_invalid=on_invalid)
        metric.update(images)
        assert metric.compute().item() == pytest.approx(expected, nan_ok=True)
        assert int(metric.failed) == 1
    with pytest.raises(ValueError, match="needs lq"):
        ZoomIQAMetric(mean_reward(needs=("lq",)))
    with pytest.raises(ValueError, match="on_invalid='zero'"):
        ZoomIQAMetric(mean_reward(), on_invalid="zero")


# ---- pyiqa


def test_pyiqa_style_metric_needs_no_pyiqa():
    scorer = ZoomIQAScorer(tiny_iqa())
    batch = torch.stack([picture(seed, 64, 64) for seed in range(2)])
    found = scorer(batch, batch)
    assert found.shape == (2, 1)
    assert torch.equal(found[:, 0], ZoomIQAReward(tiny_iqa())(batch).value)
    assert not scorer.lower_better
    batch.requires_grad_(True)
    with torch.no_grad():
        assert not scorer(batch).requires_grad
    scorer(batch).sum().backward()
    assert batch.grad.any()


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
    assert network(picture(0, 64, 64)[None]).shape == (1, 1)
    assert configs["zoomiqa"]["metric_mode"] == "NR"
    monkeypatch.setitem(sys.modules, "pyiqa.utils.registry", None)
    with pytest.raises(ImportError, match="works without"):
        register()


# ---- diffusers


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers")


def tiny_unet(diffusers, channels=3, out=3, side=16):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=side, in_channels=channels, out_channels=out, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_score_steps_of_a_real_pipeline_changes_nothing(diffusers):
    pipe = quiet(diffusers.DDIMPipeline(tiny_unet(diffusers), diffusers.DDIMScheduler()))

    def run():
        return pipe(batch_size=2, num_inference_steps=4, eta=1.0, output_type="pt",
                    generator=torch.Generator().manual_seed(3)).images  # fmt: skip

    def noisy(image):  # a reward that draws random numbers of its own
        return image.mean() + 0 * torch.rand(())

    plain = run()
    state = torch.get_rng_state()
    with score_steps(pipe, mean_reward(fn=noisy)) as steps:
        watched = run()
    assert torch.equal(watched, plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert "step" not in vars(pipe.scheduler)
    assert [one.step for one in steps] == [0, 1, 2, 3]
    assert [one.timestep for one in steps] == pipe.scheduler.timesteps.tolist()
    assert all(len(one.scores) == 2 and one.scores.valid.all() for one in steps)
    # the last step's prediction is the picture itself, up to DDIM's final alpha
    assert steps[-1].scores.value.tolist() == pytest.approx(plain.mean(dim=(1, 2, 3)).tolist(), abs=0.02)
    with score_steps(pipe, mean_reward(), every=3) as steps:
        run()
    assert [one.step for one in steps] == [0, 3]


def test_score_steps_rates_with_the_model(diffusers):
    pipe = quiet(diffusers.DDIMPipeline(tiny_unet(diffusers, side=32), diffusers.DDIMScheduler()))
    with score_steps(pipe, ZoomIQAReward(tiny_iqa()), every=2) as steps:
        pipe(batch_size=1, num_inference_steps=3, output_type="pt")
    assert all(1 <= one.scores.value.item() <= 5 for one in steps)


def test_score_steps_decodes_latents_and_takes_the_source(diffusers):
    torch.manual_seed(0)
    vqvae = diffusers.VQModel(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=3, num_vq_embeddings=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    unet = tiny_unet(diffusers, channels=6)
    pipe = quiet(diffusers.LDMSuperResolutionPipeline(vqvae, unet, diffusers.DDIMScheduler()))
    sizes = []

    def fn(image, lq):
        sizes.append((tuple(image.shape), tuple(lq.shape)))
        return image.mean()

    lq = picture(0, 16, 16)
    with score_steps(pipe, mean_reward(fn=fn, needs=("lq",)), lq=[lq]) as steps:
        pipe(2 * lq[None] - 1, num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0))
    assert sizes == [((3, 32, 32), (3, 16, 16))] * 2
    assert all(one.scores.valid.all() for one in steps)


def test_score_steps_gives_back_the_scheduler_after_an_error(diffusers):
    pipe = quiet(diffusers.DDIMPipeline(tiny_unet(diffusers), diffusers.DDIMScheduler()))
    with pytest.raises(ZeroDivisionError), score_steps(pipe, mean_reward(fn=lambda image: 1 / 0)):
        pipe(num_inference_steps=2, output_type="pt")
    assert "step" not in vars(pipe.scheduler)
    with pytest.raises(ValueError, match="every=0"), score_steps(pipe, mean_reward(), every=0):
        pass


SCHEDULERS = (
    ("DDIMScheduler", "epsilon"), ("DDIMScheduler", "v_prediction"), ("DDPMScheduler", "epsilon"),
    ("EulerDiscreteScheduler", "epsilon"), ("EulerAncestralDiscreteScheduler", "epsilon"), ("LCMScheduler", "epsilon"),
    ("DPMSolverMultistepScheduler", "epsilon"), ("DPMSolverMultistepScheduler", "v_prediction"),
    ("DPMSolverMultistepScheduler", "sample"), ("UniPCMultistepScheduler", "epsilon"), ("PNDMScheduler", "epsilon"),
    ("DEISMultistepScheduler", "epsilon"), ("FlowMatchEulerDiscreteScheduler", "flow"),
)  # fmt: skip


numpy_2 = pytest.mark.filterwarnings("ignore:__array_(wrap)?_:DeprecationWarning")
"""Some schedulers hand tensors to numpy in a way that numpy 2 warns of; nothing of ours."""


@numpy_2
@pytest.mark.parametrize(("name", "prediction"), SCHEDULERS, ids=lambda value: value)
def test_predicted_sample_is_the_clean_one_for_a_model_that_knows(diffusers, name, prediction):
    """A known x0 and noise, mixed as the scheduler says; the true prediction must lead back to x0, at every call."""
    options = {} if prediction == "flow" else {"prediction_type": prediction}
    if name in ("DDIMScheduler", "DDPMScheduler", "LCMScheduler"):
        options["clip_sample"] = False
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.rand(2, 2, 3, 4, 4, generator=generator)
    seen = []

    class Pipe:
        pass

    pipe = Pipe()
    pipe.scheduler = scheduler
    with score_steps(pipe, mean_reward(), decode=lambda x: seen.append(x) or torch.rand(2, 3, 4, 4)):
        for index, timestep in enumerate(scheduler.timesteps[:3]):
            if prediction == "flow":
                sigma = scheduler.sigmas[index]
                sample, output = (1 - sigma) * x0 + sigma * noise, noise - x0
            elif hasattr(scheduler, "sigmas"):
                sigma = scheduler.sigmas[index]
                signal = 1.0 if name.startswith("Euler") else 1 / (1 + sigma**2).sqrt()
                spread = sigma * signal
            else:
                signal = scheduler.alphas_cumprod[int(timestep)].sqrt()
                spread = (1 - signal**2).sqrt()
            if prediction != "flow":
                sample = signal * x0 + spread * noise
                output = {"epsilon": noise, "sample": x0, "v_prediction": signal * noise - spread * x0}[prediction]
            result = scheduler.step(output, timestep, sample, return_dict=index % 2 == 0)
            assert isinstance(result, tuple) == (index % 2 == 1)
            assert (result[0] if index % 2 else result.prev_sample).shape == x0.shape
    assert len(seen) == 3
    for found in seen:
        expected = x0 if name != "LCMScheduler" else found  # its `denoised` adds boundary conditions of its own
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@numpy_2
@pytest.mark.parametrize("name", sorted({name for name, _ in SCHEDULERS}))
def test_a_tuple_is_what_the_scheduler_would_have_returned(diffusers, name):
    results = []
    for watched in (False, True):
        scheduler = getattr(diffusers, name)()
        scheduler.set_timesteps(5)
        pipe = types.SimpleNamespace(scheduler=scheduler)
        torch.manual_seed(0)
        sample, output = torch.rand(2, 1, 3, 4, 4)
        call = (output, scheduler.timesteps[0], sample)
        if watched:
            with score_steps(pipe, mean_reward()):
                results.append(scheduler.step(*call, return_dict=False))
        else:
            results.append(scheduler.step(*call, return_dict=False))
    assert len(results[0]) == len(results[1])
    for plain, found in zip(*results, strict=True):
        assert torch.equal(plain, found)


def test_what_cannot_be_decoded_or_predicted_is_said(diffusers):
    with pytest.raises(TypeError, match="packed; give decode="):
        decoded(types.SimpleNamespace(), torch.rand(1, 16, 4))
    normalised = types.SimpleNamespace(vae=types.SimpleNamespace(config=types.SimpleNamespace(latents_mean=[0.0])))
    with pytest.raises(TypeError, match="by channel; give decode="):
        decoded(normalised, torch.rand(1, 4, 4, 4))
    scheduler = diffusers.EDMDPMSolverMultistepScheduler()
    with pytest.raises(TypeError, match="cannot tell the predicted sample of EDM"):
        predicted_x0(scheduler, object(), torch.rand(1), 0, torch.rand(1))
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.5, shift_factor=0.1)
    x0 = torch.rand(1, 4, 4, 4)
    with torch.no_grad():
        expected = (vae.decode(x0 / 0.5 + 0.1).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(decoded(types.SimpleNamespace(vae=vae), x0), expected)
