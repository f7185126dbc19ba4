"""The embedded super-resolution pipeline: real classes, toy size."""

from types import SimpleNamespace

import pytest
import torch

from restoration.nano.pipeline import NanoSRPipeline, build_scheduler, build_unet, from_residual, to_residual


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    pipe = NanoSRPipeline(build_unet((16, 32, 32), layers=1).eval(), build_scheduler(), residual_std=0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_residual_and_back():
    hr, lq = torch.rand(2, 3, 84, 132), torch.rand(2, 3, 21, 33)
    assert torch.allclose(from_residual(to_residual(hr, lq, 0.07), lq, 0.07), hr, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(21, 33), (3, 5), (16, 16)])
def test_any_size_comes_back_four_times_as_large(pipe, height, width):
    image = torch.rand(3, height, width)
    out = pipe(image, num_inference_steps=2, generator=_seeded(0), output_type="pt").images
    assert out.shape == (1, 3, 4 * height, 4 * width)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert pipe(image, num_inference_steps=1).images[0].size == (4 * width, 4 * height)


def test_seeds_make_candidates_and_temperature_zero_makes_one(pipe):
    image = torch.rand(3, 12, 12)

    def draw(seed, **options):
        return pipe(image, num_inference_steps=2, generator=_seeded(seed), output_type="pt", **options).images

    assert torch.equal(draw(1), draw(1))
    assert (draw(1) - draw(2)).abs().max() > 1e-3
    assert torch.equal(draw(1, temperature=0.0), draw(2, temperature=0.0))
    both = pipe(torch.stack([image] * 2), num_inference_steps=2, generator=[_seeded(1), _seeded(2)], output_type="pt")
    assert torch.allclose(both.images, torch.cat([draw(1), draw(2)]), atol=1e-5)
    for count in (1, 3):  # diffusers takes the first for all, or leaves the last out
        with pytest.raises(ValueError, match=f"list of {count} for 2 images"):
            pipe(torch.stack([image] * 2), num_inference_steps=2, generator=[_seeded(k) for k in range(count)])


def test_a_network_that_says_v_or_x0_says_the_same(pipe):
    """v = (alpha x_t - x0) / sigma; at the last time alpha is 0 and sigma 1."""
    clean, noise, times = torch.randn(3, 48, 4, 4), torch.randn(3, 48, 4, 4), torch.tensor([999, 500, 124])
    noisy = pipe.scheduler.add_noise(clean, noise, times)
    other = NanoSRPipeline(pipe.unet, pipe.scheduler, predicts="x0")
    wanted = pipe.scheduler.get_velocity(clean, noise, times)
    assert torch.allclose(other.as_velocity(clean, noisy, times), wanted, atol=1e-4)
    assert torch.equal(pipe.as_velocity(wanted, noisy, times), wanted)
    one = other.as_velocity(clean, noisy, torch.tensor(500))
    assert torch.allclose(one[1], wanted[1], atol=1e-4)
    with pytest.raises(ValueError, match="predicts='noise'"):
        NanoSRPipeline(pipe.unet, pipe.scheduler, predicts="noise")


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_denoiser_that_knows_the_answer_restores_it(eta):
    """The schedule, the velocity and the residual agree: the true v leads every noise to the true image."""
    hr, lq = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 8)
    scheduler = build_scheduler()
    clean = to_residual(hr, lq, 0.1)

    class Oracle(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")
        config = SimpleNamespace(block_out_channels=(1,))

        def forward(self, sample, step):
            alpha = scheduler.alphas_cumprod[step].sqrt()
            sigma = (1 - scheduler.alphas_cumprod[step]).sqrt()
            noisy = sample[:, :48]
            return SimpleNamespace(sample=(alpha * noisy - clean) / sigma.clamp_min(1e-6))

    pipe = NanoSRPipeline(build_unet((16, 16), layers=1), scheduler, residual_std=0.1)
    pipe.unet = Oracle()
    pipe.set_progress_bar_config(disable=True)
    out = pipe(lq, num_inference_steps=8, eta=eta, generator=_seeded(3), output_type="pt").images
    assert torch.allclose(out, hr, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 3, 7, 14])
def test_every_number_of_steps_gives_an_image(pipe, steps):
    out = pipe(torch.rand(3, 4, 4), num_inference_steps=steps, eta=1.0, generator=_seeded(0), output_type="pt").images
    assert torch.isfinite(out).all()


def test_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = NanoSRPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.config.residual_std == 0.1
    image = torch.rand(3, 9, 9)
    one, two = (p(image, num_inference_steps=2, generator=_seeded(5), output_type="pt").images for p in (pipe, again))
    assert torch.allclose(one, two, atol=1e-5)


def test_bad_arguments_are_named(pipe):
    with pytest.raises(ValueError, match="9 x 8, 8 x 8 px"):
        pipe([torch.rand(3, 8, 9), torch.rand(3, 8, 8)])
    nan = float("nan")
    numbers = {
        "temperature": (-1, nan, float("inf")),
        "eta": (-0.1, 1.1, nan),
        "num_inference_steps": (0, -1, 2.5, 1001),
    }
    for name, values in numbers.items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name}={value}: must be"):
                pipe(torch.rand(3, 8, 8), **{name: value})
    with pytest.raises(ValueError, match="output_type='np'"):
        pipe(torch.rand(3, 8, 8), output_type="np")
