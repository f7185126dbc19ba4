"""Noise near another noise: its law, its correlation, the same bits, and the generators of the process."""

import random

import numpy as np
import pytest
import torch
from brightness_runs import LQ
from tiny_pipelines import convolutions, ldm

from restoration.restorer.image_io import drawn_sharpness
from restoration.restorer.noise import NoiseStep, mixed_draws
from restoration.restorer.restorer import Restorer

STEPS = [NoiseStep(seed=1, amount=0.5), NoiseStep(seed=2, amount=0.3)]


def drawn(seed=0, count=200_000):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_mixed_noise_is_standard_normal_and_correlated_by_the_formula():
    with mixed_draws(STEPS):
        near = drawn()
    assert float(near.mean()) == pytest.approx(0, abs=0.01)
    assert float(near.std()) == pytest.approx(1, abs=0.01)
    assert correlation(near, drawn()) == pytest.approx(((1 - 0.5**2) * (1 - 0.3**2)) ** 0.5, abs=0.01)
    with mixed_draws([NoiseStep(seed=1, amount=1.0)]):
        assert abs(correlation(drawn(), torch.randn(200_000, generator=torch.Generator().manual_seed(0)))) > 0.99
        away = drawn()
    assert abs(correlation(away, drawn())) < 0.01


@pytest.mark.parametrize("draw", [
    lambda g: torch.randn(50_000, generator=g),
    lambda g: torch.empty(50_000).normal_(generator=g),
    lambda g: torch.empty(50_000).normal_(3.0, 2.0, generator=g),
    lambda g: torch.normal(torch.full((50_000,), 3.0), 2.0, generator=g),
    lambda g: torch.randn(50_000, generator=g, out=torch.empty(50_000)),
    lambda g: torch.randn(50_000, generator=g, dtype=torch.float16),
], ids=["randn", "normal_", "normal_ mean std", "normal", "out", "half"])  # fmt: skip
def test_every_way_to_draw_keeps_mean_and_spread(draw):
    plain = draw(torch.Generator().manual_seed(0))
    with mixed_draws(STEPS):
        near = draw(torch.Generator().manual_seed(0))
    assert near.dtype == plain.dtype
    assert float(near.float().mean()) == pytest.approx(float(plain.float().mean()), abs=0.05)
    assert float(near.float().std()) == pytest.approx(float(plain.float().std()), rel=0.02)
    assert 0.7 < correlation(near.float(), plain.float()) < 0.9


def test_two_draws_of_one_generator_move_apart_from_one_another():
    with mixed_draws(STEPS):
        generator = torch.Generator().manual_seed(0)
        first, second = (torch.randn(50_000, generator=generator) for _ in range(2))
    assert abs(correlation(first, second)) < 0.02


def test_uniform_draws_stay():
    with mixed_draws(STEPS) as draws:
        near = torch.rand(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(near, torch.rand(8, generator=torch.Generator().manual_seed(0)))
    assert not draws.has_drawn


def grainy(image, seed):
    generator = torch.Generator().manual_seed(seed)
    grain = 0.05 * torch.randn(3, 24, 32, generator=generator)
    return 0.25 + 0.5 * image.repeat_interleave(2, 1).repeat_interleave(2, 2) + grain


def unseeded(image):
    return 0.25 + 0.5 * image + 0.05 * torch.randn_like(image)


class Unseeded(torch.nn.Module):
    def forward(self, image):
        return unseeded(image)


@pytest.mark.parametrize(("source", "options"), [
    (ldm, {"steps": 2, "eta": 1.0}), (lambda: grainy, {}), (lambda: unseeded, {"deterministic": False}),
    (Unseeded, {"deterministic": False}), (lambda: grainy, {"tile_px": 12, "tile_overlap_px": 4}),
], ids=["pipeline", "function", "without a seed", "network", "tiles"])  # fmt: skip
def test_a_restorer_near_a_seed(source, options):
    if "tile_px" in options:

        def source():
            return lambda image, seed: grainy_of_any_size(image, seed)

        options = options | {"scale": 2, "fingerprint": "tiles"}
    restorer = Restorer.from_pretrained(source(), **options)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = torch.get_rng_state().clone(), random.getstate(), np.random.get_state()[1].tobytes()

    def image(noise=(), seed=7):
        return next(iter(restorer.restore(LQ, [seed], noise=noise))).image

    plain, near, again, far = image(), image(STEPS), image(STEPS), image(seed=8)
    assert torch.equal(near, again)
    assert torch.equal(plain, image())
    assert not torch.equal(near, plain)
    assert float((near - plain).square().mean()) < float((far - plain).square().mean())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tobytes())


def grainy_of_any_size(image, seed):
    large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return 0.25 + 0.5 * large + 0.05 * torch.randn(large.shape, generator=torch.Generator().manual_seed(seed))


def test_sharpness_of_a_range_moves_like_that_of_a_number():
    steps = [NoiseStep(seed=9, amount=0.2)]
    for seed in range(20):
        for noise in ([], steps):
            whole, half = drawn_sharpness(seed, 1.0, noise), drawn_sharpness(seed, (0.0, 0.5), noise)
            assert half == pytest.approx((whole + 1) / 4)
    assert drawn_sharpness(3, (0.3, 0.3), steps) == 0.3


def test_sharpness_moves_little_by_little_and_stays_in_its_range():
    base = [drawn_sharpness(seed, 0.5) for seed in range(300)]
    near = [drawn_sharpness(seed, 0.5, [NoiseStep(seed=9, amount=0.2)]) for seed in range(300)]
    far = [drawn_sharpness(seed, 0.5, [NoiseStep(seed=9, amount=1.0)]) for seed in range(300)]
    assert all(abs(value) <= 0.5 for value in near + far)
    assert np.corrcoef(base, near)[0, 1] > 0.95
    assert abs(np.corrcoef(base, far)[0, 1]) < 0.15
    assert np.std(near) == pytest.approx(0.5 / 3**0.5, rel=0.1)  # uniform on [-0.5, 0.5]


def test_noise_that_cannot_be_moved_is_an_error():
    fixed = Restorer.from_pretrained(convolutions(scale=2))
    with pytest.raises(ValueError, match="takes no seed"):
        fixed.restore(LQ, [1], noise=STEPS)

    def of_numpy(image, seed):
        return 0.5 * image + float(np.random.default_rng(seed).random()) * 0.2

    numpy_noise = Restorer.from_pretrained(of_numpy)
    with pytest.raises(ValueError, match="draws no Gaussian noise through torch"):
        list(numpy_noise.restore(LQ, [1], noise=STEPS))
    for seed, amount in ((-1, 0.5), (0, 0.0), (0, 1.1)):
        with pytest.raises(ValueError, match="amount"):
            NoiseStep(seed=seed, amount=amount)


def test_a_deterministic_network_with_varied_sharpness_can_be_moved():
    varied = Restorer.from_pretrained(convolutions(scale=2), vary_sharpness=0.5)
    plain, near = (next(iter(varied.restore(LQ, [3], noise=noise))) for noise in ((), STEPS))
    assert plain.sharpness != near.sharpness
    assert not torch.equal(plain.image, near.image)
