"""Every denoiser that can be tuned, with real diffusers classes at toy size: first law, LoRA, gradients, files."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import tiny_pipelines
import torch
from diffusers import DDIMScheduler

from restoration.nano.pipeline import NanoSRPipeline, build_scheduler, build_unet
from restoration.tuning.denoisers.base import denoiser_of
from restoration.tuning.lora import (
    OLD,
    POLICY,
    AdapterState,
    add_lora,
    copy_adapter,
    load_lora,
    merge_adapter,
    reference,
    save_lora,
    tuners,
    use_adapter,
    weights_of,
)
from restoration.tuning.sampler.rollout import eight_bit
from restoration.tuning.sampler.transitions import rescore, sample


@tiny_pipelines._seeded
def nano():
    pipe = NanoSRPipeline(build_unet((16, 32), layers=1).eval(), build_scheduler(), residual_std=0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@tiny_pipelines._seeded
def sd3():
    """StableDiffusion3Img2ImgPipeline: a flow transformer, its third text encoder left out as the class allows."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Img2ImgPipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    text = tiny_pipelines._text()
    config = CLIPTextConfig(**(text["text_encoder"].config.to_dict() | {"projection_dim": 16}))
    encoders = [CLIPTextModelWithProjection(config).eval() for _ in range(2)]
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * tiny_pipelines.TEXT, caption_projection_dim=16,
        pooled_projection_dim=32,
    ).eval()  # fmt: skip
    for parameter in transformer.parameters():  # its last layer starts at zero: the network would say nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return StableDiffusion3Img2ImgPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_pipelines._vae(2, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=encoders[0], tokenizer=text["tokenizer"], text_encoder_2=encoders[1],
        tokenizer_2=text["tokenizer"], text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def controlnet(kind="StableDiffusionControlNetImg2ImgPipeline"):
    """A ControlNet pipeline with the sampler that its noise needs."""
    import diffusers

    pipeline = tiny_pipelines.controlnet()
    return getattr(diffusers, kind)(**pipeline.components, requires_safety_checker=False)


PIPELINES = {
    "nano": (nano, {}, "v"),
    "ldm": (tiny_pipelines.ldm, {}, "epsilon"),
    "sd_x4": (tiny_pipelines.sd_x4, {}, "v"),
    "sd_x4_guided": (tiny_pipelines.sd_x4, {"guidance_scale": 3.0}, "v"),
    "controlnet": (controlnet, {"scale": 2, "strength": 0.7}, "epsilon"),
    "controlnet_guided": (controlnet, {"scale": 2, "strength": 0.7, "guidance_scale": 2.0}, "epsilon"),
    "controlnet_from_noise": (partial(controlnet, "StableDiffusionControlNetPipeline"), {"scale": 2}, "epsilon"),
    "sd3": (sd3, {"scale": 2, "strength": 0.7}, "flow"),
}
LQ = torch.rand(1, 3, 10, 9, generator=torch.Generator().manual_seed(3))


def generators(count=2, seed=0):
    return [torch.Generator().manual_seed(seed + k) for k in range(count)]


def made(name, adapters=(POLICY,)):
    build, options, kind = PIPELINES[name]
    pipeline = build()
    if hasattr(pipeline.scheduler.config, "clip_sample"):
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, clip_sample=False)
    denoiser = denoiser_of(pipeline, **options)
    assert denoiser.schedule.kind == kind
    add_lora(denoiser, 4, 8, adapters)
    return denoiser


def disturb(denoiser, adapter=POLICY, size=0.05):
    generator = torch.Generator().manual_seed(9)
    for part in weights_of(denoiser.module, adapter).values():
        part.data += size * torch.randn(part.shape, generator=generator)


def drawn(denoiser, seed=0, **options):
    rows = generators(seed=seed)
    condition = denoiser.encode(LQ.expand(2, -1, -1, -1), ["", ""], rows)
    path = denoiser.path(4)
    return condition, path, sample(denoiser, condition, path, rows, eta=0.8, keep=True, **options)


@pytest.mark.parametrize("name", PIPELINES)
def test_first_law(name):
    """Before any update the log-probability computed again is the one stored: ratio 1. After one it is not."""
    denoiser = made(name)
    condition, path, trajectory = drawn(denoiser)
    random_steps = [k for k, std in enumerate(trajectory.stds) if std > 0]
    assert random_steps == list(range(len(path) - 1))
    for index in random_steps:
        again = rescore(denoiser, condition, path, trajectory, index, eta=0.8)
        assert torch.equal(again.log_prob.detach(), trajectory.log_probs[index])
    disturb(denoiser)
    moved = rescore(denoiser, condition, path, trajectory, 0, eta=0.8).log_prob.detach()
    assert float((moved - trajectory.log_probs[0]).abs().max()) > 1e-5
    with reference(denoiser.module):
        base = rescore(denoiser, condition, path, trajectory, 0, eta=0.8).log_prob
    assert torch.equal(base, trajectory.log_probs[0])  # the LoRA was no change when it was drawn


@pytest.mark.parametrize("name", PIPELINES)
def test_images_of_the_right_size_carry_a_gradient_to_the_lora(name):
    denoiser = made(name)
    condition, path, trajectory = drawn(denoiser)
    assert path.kind == denoiser.schedule.kind
    output = denoiser.predict(trajectory.states[-2], path.times[-1], condition)
    image = denoiser.decode(trajectory.states[-2] - output, condition)
    assert image.shape == (2, 3, 10 * denoiser.scale, 9 * denoiser.scale)
    assert bool(((image >= 0) & (image <= 1)).all())
    image.square().mean().backward()
    assert sum(float(part.grad.abs().sum()) for part in weights_of(denoiser.module).values()) > 0
    trained = {name for name, part in denoiser.module.named_parameters() if part.requires_grad}
    assert trained == set(weights_of(denoiser.module))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_target_is_noise_sized_and_features_tell_images_apart(name):
    denoiser = made(name)
    condition = denoiser.encode(LQ.expand(2, -1, -1, -1), ["", ""], generators())
    images = torch.rand(2, 3, 10 * denoiser.scale, 9 * denoiser.scale)
    assert denoiser.encode_target(images, condition).shape[1:] == denoiser.noise_shape(condition)
    parts = [part for part in denoiser.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    hooks = [len(module._forward_hooks) for part in parts for module in part.modules()]
    one, other = denoiser.features(images, condition), denoiser.features(images.flip(3), condition)
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert hooks == [len(module._forward_hooks) for part in parts for module in part.modules()]


def test_the_residual_of_an_image_is_decoded_to_it():
    denoiser = made("nano")
    condition = denoiser.encode(LQ, [""], generators(1))
    image = torch.rand(1, 3, 40, 36)
    assert torch.allclose(denoiser.decode(denoiser.encode_target(image, condition), condition), image, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_sampler_is_the_pipelines_own(temperature):
    """Same noise, same image, to rounding: what is tuned is what the pipeline does."""
    denoiser = made("nano")
    [row] = generators(1, seed=5)
    noise = [torch.randn(48, 10, 10, generator=row) for _ in range(5)]
    condition = denoiser.encode(LQ, [""], generators(1))
    path = replace(denoiser.path(4), temperature=temperature)
    found = sample(denoiser, condition, path, generators(1, seed=5), eta=1.0)
    ours = denoiser.decode(found.x0, condition)
    supply = iter(noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("restoration.nano.pipeline.randn_tensor", lambda *a, **k: next(supply)[None])
        options = {"num_inference_steps": 4, "eta": 1.0, "output_type": "pt"}
        theirs = denoiser.pipeline(LQ, **options, temperature=temperature).images
    assert torch.allclose(ours, theirs, atol=5e-4)


@pytest.mark.parametrize("name", ["sd3", "controlnet"])
@pytest.mark.parametrize(("steps", "strength"), [(5, 0.7), (4, 0.6)])
def test_an_img2img_image_is_the_pipelines_own(name, steps, strength, monkeypatch):
    """The whole way without the sampler's noise: same start, same steps, same image, to rounding."""
    build, options, _ = PIPELINES[name]
    pipeline = build()
    if name == "controlnet":
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    denoiser = denoiser_of(pipeline, **(options | {"strength": strength}))
    lq = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    condition = denoiser.encode(lq, [""], generators(1))
    ours = denoiser.decode(
        sample(denoiser, condition, denoiser.path(steps), generators(1, seed=7), eta=0.0).x0, condition
    )
    noise = torch.randn(1, *denoiser.noise_shape(condition), generator=generators(1, seed=7)[0])
    module = sys.modules[type(pipeline).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise)
    monkeypatch.setattr(module, "retrieve_latents", lambda found, *_, **__: found.latent_dist.mode())
    grown = torch.nn.functional.interpolate(lq, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    more = {"control_image": grown} if name == "controlnet" else {"height": 32, "width": 32}
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline("", image=grown, strength=strength, num_inference_steps=steps, guidance_scale=1.0,
                      output_type="pt", **more).images  # fmt: skip
    assert float((ours - theirs).abs().max()) < 1e-4
    assert float((theirs - grown).abs().mean()) > 0.01  # the pipeline did something


FROM_NOISE = {
    "ldm": {},
    "sd_x4": {"prompt": "", "guidance_scale": 1.0},
    "controlnet_from_noise": {"prompt": "", "guidance_scale": 1.0},
}


@pytest.mark.parametrize("name", FROM_NOISE)
def test_an_image_from_noise_is_the_pipelines_own(name, monkeypatch):
    """As above; the noise that the pipeline draws first is that of the condition, where it has one."""
    build, options, _ = PIPELINES[name]
    pipeline = build()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    denoiser = denoiser_of(pipeline, **options)
    lq = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    condition = denoiser.encode(lq, [""], generators(1, seed=3))
    ours = denoiser.decode(sample(denoiser, condition, denoiser.path(4), generators(1, seed=7), eta=0.0).x0, condition)
    start = torch.randn(1, *denoiser.noise_shape(condition), generator=generators(1, seed=7)[0])
    noises = [torch.randn(1, 3, 32, 32, generator=generators(1, seed=3)[0]), start] if name == "sd_x4" else [start]
    supply = iter(noises)
    monkeypatch.setattr(sys.modules[type(pipeline).__module__], "randn_tensor", lambda *_, **__: next(supply))
    image = lq
    if name == "controlnet_from_noise":
        image = torch.nn.functional.interpolate(lq, size=(64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    if name == "ldm":
        image = 2 * lq - 1  # its class takes tensors as its network does
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(image=image, num_inference_steps=4, output_type="pt" if name != "ldm" else "np",
                      **FROM_NOISE[name]).images  # fmt: skip
    if name == "ldm":
        theirs = torch.from_numpy(theirs).permute(0, 3, 1, 2)
    assert next(supply, None) is None
    assert float((ours - theirs).abs().max()) < 1e-4


def test_guidance_mixes_both_texts():
    plain, guided = made("sd_x4"), made("sd_x4_guided")
    rows = [
        d.encode(LQ.expand(2, -1, -1, -1), ["a sharp photo", "a sharp photo"], generators()) for d in (plain, guided)
    ]
    time, x = torch.tensor(500), torch.randn(2, *plain.noise_shape(rows[0]))
    with_text = plain.predict(x, time, rows[0])
    empty = replace(rows[0], given=rows[0].given | {"text": rows[1].given["negative"]})
    without = plain.predict(x, time, empty)
    assert torch.allclose(guided.predict(x, time, rows[1]), without + 3 * (with_text - without), atol=1e-4)


def test_the_control_image_counts_and_its_network_is_not_tuned():
    denoiser = made("controlnet")
    rows = [denoiser.encode(lq, [""], generators(1)) for lq in (LQ, 1 - LQ)]
    x, time = torch.randn(1, *denoiser.noise_shape(rows[0])), torch.tensor(500)
    with torch.no_grad():
        swapped = replace(rows[0], given=rows[0].given | {"control": rows[1].given["control"]})
        assert not torch.allclose(denoiser.predict(x, time, rows[0]), denoiser.predict(x, time, swapped), atol=1e-4)
    assert not any(part.requires_grad for part in denoiser.pipeline.controlnet.parameters())


def test_an_img2img_path_is_a_tail_and_starts_at_the_image():
    whole, tail = made("controlnet_from_noise"), made("controlnet")
    assert len(whole.path(10)) == 10
    assert len(tail.path(10)) == 7
    condition = tail.encode(LQ, [""], generators(1))
    start = tail.begin(torch.zeros(1, *tail.noise_shape(condition)), condition, tail.path(10))
    assert torch.allclose(start, condition.given["start"] * float(tail.path(10).alphas[0]), atol=1e-5)


@pytest.mark.parametrize("name", ["sd3", "controlnet"])
@pytest.mark.parametrize(("steps", "strength"), [(28, 0.6), (20, 0.6), (8, 0.6), (8, 0.7), (10, 0.35), (10, 1.0)])
def test_an_img2img_path_has_the_steps_of_the_pipeline_itself(name, steps, strength):
    """SD3 rounds the number of steps up where Stable Diffusion rounds it down."""
    build, options, _ = PIPELINES[name]
    pipeline = build()
    path = denoiser_of(pipeline, **(options | {"strength": strength})).path(steps)
    scheduler = pipeline.scheduler if name == "sd3" else DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.scheduler = scheduler
    scheduler.set_timesteps(steps)
    times, count = pipeline.get_timesteps(steps, strength, "cpu")
    assert path.times.tolist() == times.tolist()
    assert len(path) == count
    if name == "sd3":
        assert path.sigmas.tolist() == scheduler.sigmas[-count - 1 : -1].tolist()
    if (name, steps, strength) == ("sd3", 28, 0.6):
        assert count == 17


def test_old_starts_equal_follows_slowly_and_is_not_trained():
    denoiser = made("nano", (POLICY, OLD))
    module = denoiser.module
    condition = denoiser.encode(LQ, [""], generators(1))
    ask = partial(denoiser.predict, torch.randn(1, 48, 10, 10), torch.tensor(300), condition)
    with torch.no_grad():
        start = ask()
        with use_adapter(module, OLD):
            assert torch.equal(ask(), start)
        disturb(denoiser)
        moved = ask()
        with use_adapter(module, OLD):
            assert torch.equal(ask(), start)
        copy_adapter(module, POLICY, OLD, keep=0.25)
        for new, old in zip(weights_of(module).values(), weights_of(module, OLD).values(), strict=True):
            assert float((new - old).abs().max()) < float(new.abs().max())
        copy_adapter(module, POLICY, OLD)
        with use_adapter(module, OLD):
            assert torch.allclose(ask(), moved, atol=1e-6)
        assert torch.equal(ask(), moved)
    assert all(part.requires_grad for part in weights_of(module).values())
    assert not any(part.requires_grad for part in weights_of(module, OLD).values())
    with pytest.raises(ValueError, match="adapter 'new': there are default, old"), use_adapter(module, "new"):
        pass


@pytest.mark.parametrize("name", ["nano", "sd_x4"])
def test_fused_and_reloaded_networks_say_the_same(name, tmp_path):
    denoiser = made(name)
    disturb(denoiser)
    condition, path, trajectory = drawn(denoiser)
    x, time = trajectory.states[0], path.times[1]
    with torch.no_grad():
        wanted = denoiser.predict(x, time, condition)
        again = denoiser_of(PIPELINES[name][0]())
        assert not torch.allclose(again.predict(x, time, condition), wanted, atol=1e-4)
        again.module = merge_adapter(denoiser.module)
        assert not tuners(again.module)
        assert torch.allclose(again.predict(x, time, condition), wanted, atol=1e-5)
        assert len(tuners(denoiser.module)) > 0  # the original keeps its adapters

        save_lora(denoiser, tmp_path)
        third = denoiser_of(PIPELINES[name][0]())
        load_lora(third, tmp_path)
        assert torch.equal(third.predict(x, time, condition), wanted)


def test_diffusers_loads_the_adapter(tmp_path):
    denoiser = made("sd_x4")
    disturb(denoiser)
    condition, path, trajectory = drawn(denoiser)
    save_lora(denoiser, tmp_path)
    pipeline = tiny_pipelines.sd_x4()
    pipeline.load_lora_weights(tmp_path)
    with torch.no_grad():
        ask = [one.predict(trajectory.states[0], path.times[1], condition) for one in (denoiser, denoiser_of(pipeline))]
    assert torch.allclose(*ask, atol=1e-6)


def test_a_state_of_another_rank_is_refused():
    one, other = made("nano"), denoiser_of(nano())
    add_lora(other, 2, 4)
    with pytest.raises(ValueError, match="another rank"):
        AdapterState(one.module, POLICY).load_state_dict(AdapterState(other.module, POLICY).state_dict())
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(one, 4, 8)


def test_an_unknown_pipeline_names_the_known_ones():
    with pytest.raises(ValueError, match=r"StableDiffusionLatentUpscalePipeline cannot be tuned: known are .*NanoSR"):
        denoiser_of(tiny_pipelines.latent_x2())
    for build in (sd3, controlnet):
        with pytest.raises(ValueError, match="strength=0"):
            denoiser_of(build(), strength=0)


def test_what_is_scored_fits_into_a_file_and_passes_the_gradient():
    images = torch.tensor([[-0.1, 0.1, 0.5004, 1.2]], requires_grad=True)
    found = eight_bit(images)
    assert (255 * found).tolist()[0] == pytest.approx([0, 26, 128, 255], abs=1e-4)
    found.sum().backward()
    assert images.grad is not None
    assert images.grad.tolist() == [[1, 1, 1, 1]]
