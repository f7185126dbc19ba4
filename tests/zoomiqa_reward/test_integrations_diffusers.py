"""Zoom-IQA while diffusers samples: the predicted image of every step, and a sampling that stays as it was."""

import types
import warnings

import pytest
import torch
from mean_reward import mean_reward
from tiny import make_image, tiny_iqa
from tiny_pipelines import small_nano

from zoomiqa_reward.integrations.diffusers import decoded, predicted_x0, score_steps
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward


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


@pytest.mark.integration
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
    # the last step's prediction is the image itself, up to DDIM's final alpha
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

    lq = make_image(0, 16, 16)
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


def test_score_steps_of_the_embedded_restorer_sees_its_images():
    """Its x0 is a residual of 48 channels, which only the pipeline can make an image of."""
    pipe = quiet(small_nano())
    images = make_image(0, 17, 13)[None].repeat(2, 1, 1, 1)  # not a multiple of its stride
    sizes = []

    def fn(image):
        sizes.append(tuple(image.shape))
        return image.mean()

    def run():
        return pipe(images, generator=torch.Generator().manual_seed(0), output_type="pt").images

    plain = run()
    with score_steps(pipe, mean_reward(fn=fn)) as steps:
        watched = run()
    assert torch.equal(watched, plain)
    assert sizes == [(3, 68, 52)] * 2 * len(steps)
    assert all(one.scores.valid.all() for one in steps)
    assert steps[-1].scores.value.tolist() == pytest.approx(plain.mean(dim=(1, 2, 3)).tolist(), abs=0.02)
    assert pipe.decode_x0 is None


def test_a_sample_that_is_no_image_asks_for_decode(diffusers):
    pipe = quiet(diffusers.DDIMPipeline(tiny_unet(diffusers, channels=4, out=4), diffusers.DDIMScheduler()))
    message = r"\(1, 4, 16, 16\), which is no image of 1 or 3 channels: give decode="
    with pytest.raises(TypeError, match=message), score_steps(pipe, mean_reward()):
        pipe(num_inference_steps=2, output_type="pt")
    with score_steps(pipe, mean_reward(), decode=lambda x0: x0[:, :3].sigmoid()) as steps:
        pipe(num_inference_steps=2, output_type="pt")
    assert all(one.scores.valid.all() for one in steps)


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
