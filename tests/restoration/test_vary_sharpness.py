"""Candidates that see their input softer or sharper: what makes those of a deterministic restorer differ."""

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny import make_image
from tiny_pipelines import small_nano

from restoration.restorer.image_io import drawn_sharpness, sharpened
from restoration.restorer.restorer import Restorer
from restoration.restorer.rng import candidate_seed
from restoration.selection.best_of_n import best_of_n
from zoomiqa_reward.rewards.metric import MetricReward

SEEDS = [candidate_seed(3, k) for k in range(4)]
BRIGHTNESS = MetricReward(lambda image: float(image.mean()), "brightness", True, (0, 1))


def doubled(**options):
    return Restorer.from_pretrained(torch.nn.Upsample(scale_factor=2), **options)


def test_the_candidates_of_a_deterministic_network_differ_and_each_belongs_to_its_seed():
    image = make_image(0, 20, 24)
    plain = [one.image for one in doubled().restore(image, SEEDS)]
    assert all(torch.equal(one, plain[0]) for one in plain)

    varied = doubled(vary_sharpness=1.0)
    four = list(varied.restore(image, SEEDS))
    assert not varied.deterministic
    assert len({one.image.numpy().tobytes() for one in four}) == 4
    assert [one.sharpness for one in four] == [drawn_sharpness(seed, 1.0) for seed in SEEDS]
    alone = next(varied.restore(image, SEEDS[2:3], strict=False, batch_size=4))
    assert torch.equal(alone.image, four[2].image)


def test_in_a_shared_call_every_candidate_still_sees_an_image_of_its_own():
    varied = Restorer.from_pretrained(small_nano(), steps=2, vary_sharpness=0.5)
    image = make_image(1, 16, 16)
    strict = list(varied.restore(image, SEEDS))
    shared = list(varied.restore(image, SEEDS, strict=False, batch_size=4))
    assert [one.sharpness for one in shared] == [one.sharpness for one in strict]
    assert all(torch.equal(one.image, other.image) for one, other in zip(shared, strict, strict=True))


def test_sharpness_adds_and_takes_away_what_a_blur_takes_away():
    """At -1 the blurred image is left; at s the difference to it grows by the factor 1 + s, up to black and white."""
    image = torch.from_numpy(np.random.default_rng(0).uniform(0.4, 0.6, (3, 12, 15)).astype(np.float32))
    blurred = np.stack([gaussian_filter(plane, 0.8, mode="mirror") for plane in image.numpy()])
    np.testing.assert_allclose(sharpened(image, -1.0).numpy(), blurred, atol=1e-6)
    np.testing.assert_allclose(sharpened(image, 0.5).numpy() - blurred, 1.5 * (image.numpy() - blurred), atol=1e-6)
    assert sharpened(image, 0.0) is image
    black_and_white = (image > 0.5).float()
    assert float(sharpened(black_and_white, 1.0).min()) >= 0.0
    assert float(sharpened(black_and_white, 1.0).max()) <= 1.0


def test_amounts_are_uniform_around_none():
    amounts = np.array([drawn_sharpness(candidate_seed(0, k), 0.5) for k in range(2000)])
    assert abs(amounts).max() <= 0.5
    assert abs(amounts.mean()) < 0.03
    assert abs(amounts.std() - 0.5 / 3**0.5) < 0.015  # of U(-a, a): a / sqrt(3)


@pytest.mark.parametrize("amount", [-0.1, 1.5, float("nan"), (0.5, 0.2), (0.0, 1.5)])
def test_an_amount_out_of_range_is_refused(amount):
    with pytest.raises(ValueError, match="vary_sharpness"):
        doubled(vary_sharpness=amount)


def test_the_colour_fix_is_that_of_the_image_as_given():
    image = torch.from_numpy(np.random.default_rng(1).uniform(0.3, 0.7, (3, 16, 16)).astype(np.float32))
    wanted = torch.nn.functional.interpolate(image[None], scale_factor=2, mode="bicubic")[0].std(dim=(1, 2))
    for one in doubled(vary_sharpness=1.0, colour_fix="adain").restore(image, SEEDS):
        torch.testing.assert_close(one.image.std(dim=(1, 2)), wanted, atol=2e-3, rtol=0)


def test_a_run_records_the_amounts_and_goes_on_with_them(tmp_path):
    image = make_image(0, 20, 24)
    best_of_n(doubled(vary_sharpness=1.0), image, BRIGHTNESS, n=2, out=tmp_path, progress=False)
    result = best_of_n(doubled(vary_sharpness=1.0), image, BRIGHTNESS, n=4, out=tmp_path, progress=False)
    assert not result.identical
    assert len({one.pixels for one in result.candidates}) == 4
    rows = [json.loads(line) for line in (tmp_path / "candidates.jsonl").read_text().splitlines()]
    assert [row["sharpness"] for row in rows] == [drawn_sharpness(row["seed"], 1.0) for row in rows]
    with pytest.raises(ValueError, match="another run"):
        best_of_n(doubled(), image, BRIGHTNESS, n=4, out=tmp_path, progress=False)
