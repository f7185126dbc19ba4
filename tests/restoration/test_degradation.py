"""Low-quality copies: what a seed decides, that nothing leaks, and that the numbers drawn are those of the recipe."""

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ambient import AMBIENT
from tiny import make_image

from restoration.degradation import PRESETS, Degradation, DegradationStage, degrade
from restoration.degradation.pipeline import filtered
from restoration.metrics.basicsr_library import basicsr_module
from restoration.metrics.fidelity import psnr_y
from zoomiqa_reward.images import load_image

SLIGHT = {
    "sigma_px": (0.2, 0.4), "resize_probs": (0.0, 0.0, 1.0), "resize_range": (0.9, 1.1), "noise_range": (0.01, 0.02),
    "poisson_range": (0.001, 0.002), "jpeg_range": (98.0, 99.0),
}  # fmt: skip


def states():
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes(), np.geterr()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_seed_decides_everything_and_nothing_leaks(preset):
    image, before = make_image(3, 96, 112), states()
    first, record = degrade(image, preset, seed=5)
    assert states() == before
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    again, same = degrade(image, preset, seed=5)
    assert torch.equal(first, again)
    assert record == same == json.loads(json.dumps(record))
    other, _ = degrade(image, preset, seed=6)
    assert torch.equal(first, other) == PRESETS[preset].is_clean
    assert first.shape == (3, 24, 28)
    assert first.dtype == torch.float32
    assert torch.equal(first, (first * 255).round() / 255)
    assert 0 <= first.min() <= first.max() <= 1


def test_bicubic_is_antialiased_and_nothing_else():
    """Single black and white columns: reduced by 4 they are grey; without antialiasing they would alias."""
    stripes = (torch.arange(64) % 2).float().expand(3, 64, 64)
    lq, record = degrade(stripes, "bicubic")
    assert (lq[:, 2:-2, 2:-2] - 0.5).abs().max() < 0.01
    aliased = F.interpolate(stripes[None], size=(16, 16), mode="nearest")[0]
    assert (aliased - 0.5).abs().max() > 0.4
    assert record["steps"] == []
    flat, _ = degrade(torch.full((3, 8, 8), 100 / 255), "bicubic")
    assert torch.equal(flat, torch.full((3, 2, 2), 100 / 255))


def test_numbers_stay_in_their_ranges_and_come_at_their_rates():
    recipe = PRESETS["realesrgan"]
    records = [degrade(make_image(0, 80, 80), recipe, seed=seed)[1]["steps"] for seed in range(60)]
    for steps in records:
        assert [step["step"] for step in steps].count("jpeg") == 2
        assert sum(step["step"] in ("gaussian", "poisson") for step in steps) == 2
        assert [step["step"] for step in steps].count("resize") == 3
    drawn = [step for steps in records for step in steps]
    assert all(30 <= step["quality"] <= 95 for step in drawn if step["step"] == "jpeg")
    assert all(1 <= step["strength"] <= 30 for step in drawn if step["step"] == "gaussian")
    assert all(0.05 <= step["strength"] <= 3 for step in drawn if step["step"] == "poisson")
    assert all(step["side_px"] in range(7, 22, 2) for step in drawn if step["step"] == "blur")
    # Both orders of the end; 120 noises, half of them Gaussian, 40 % grey (3 sigma: 16 of 120).
    assert {steps[-1]["step"] for steps in records} >= {"jpeg", "blur"}
    noises = [step for step in drawn if step["step"] in ("gaussian", "poisson")]
    assert abs(sum(step["step"] == "gaussian" for step in noises) - 60) < 17
    assert abs(sum(step["gray"] for step in noises) - 48) < 17
    # First reduced (0.7), enlarged (0.2) or kept (0.1): of 60, at least 30 reduced.
    first = [next(step for step in steps if step["step"] == "resize") for steps in records]
    assert sum(step["height"] < 80 for step in first) >= 30
    assert min(step["height"] for step in first) >= 0.15 * 80 - 1


def test_presets_are_of_rising_strength(photograph):
    """PSNR-Y against pure bicubic, mean of six seeds; 32.9, 29.4 and 25.7 dB were measured."""
    hr = load_image(photograph)
    clean, _ = degrade(hr, "bicubic")

    def closeness(preset):
        return np.mean([psnr_y(degrade(hr, preset, seed=seed)[0], clean) for seed in range(6)])

    mild, moderate, strong = (closeness(preset) for preset in ("mild", "moderate", "realesrgan"))
    assert mild > moderate + 1
    assert moderate > strong + 2


def test_edges_are_not_darkened_by_the_codec():
    """24 and 28 px are no multiples of 16: padded with black, the last columns would be off by several levels."""
    flat = torch.full((3, 96, 112), 128 / 255)  # luma whose DC coefficient is zero: no rounding of blocks
    for seed in range(4):
        lq, _ = degrade(
            flat, Degradation(stages=(DegradationStage(**SLIGHT | {"jpeg_range": (10.0, 12.0)}),)), seed=seed
        )
        assert (lq[:, :, -1].mean() - lq[:, :, :16].mean()).abs() < 0.005
        assert (lq[:, -1].mean() - lq[:, :16].mean()).abs() < 0.005


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiples of scale=4"):
        degrade(torch.zeros(3, 82, 80))
    with pytest.raises(ValueError, match="at least 80 px"):
        degrade(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match="bicubic, realesrgan"):
        degrade(torch.zeros(3, 80, 80), "nothing")
    with pytest.raises(ValueError, match="seed=-1"):
        degrade(torch.zeros(3, 80, 80), seed=-1)
    for change, message in (({"jpeg_range": (30, 101)}, "at most 100"), ({"sigma_px": (3, 1)}, "the lower first"),
                            ({"blur_prob": 2}, "probability"), ({"resize_range": (0.1, 1.2)}, "0.15"),
                            ({"kernel_probs": (1.0,)}, "for 6 kernels")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            DegradationStage(**SLIGHT | change)
    with pytest.raises(ValueError, match="at most 2"):
        Degradation(stages=(DegradationStage(**SLIGHT),) * 3)


def test_the_fast_filter_is_basicsrs():
    rng = torch.Generator().manual_seed(0)
    for side, height, width in ((7, 40, 31), (21, 24, 57)):
        image = torch.rand(1, 3, height, width, generator=rng)
        kernel = torch.rand(side, side, generator=rng)
        kernel /= kernel.sum()
        wanted = basicsr_module("utils.img_process_util").filter2D(image, kernel[None])
        torch.testing.assert_close(filtered(image, kernel), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["autocast_bfloat16", "default_float64", "conv_bfloat16"])
@pytest.mark.parametrize("preset", ["bicubic", "moderate", "realesrgan"])
def test_the_callers_numerics_change_no_copy(preset, name):
    image = make_image(3, 96, 96)
    plain = degrade(image, preset, seed=2)[0]
    with AMBIENT[name]():
        inside = degrade(image, preset, seed=2)[0]
    assert torch.equal(inside, plain)
