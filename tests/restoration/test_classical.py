"""Classical candidates: their shape and range, and that each does to a photograph what its name says."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restoration import classical_candidates, degrade_for_demo
from restoration.degradation.classical import enlarge, noise_sigma
from restoration.demo import MAX_SIDE_PX, main, prepare
from zoomiqa_reward.images import load_image

NAMES = {
    "nearest", "bilinear", "bicubic", "lanczos", "unsharp", "oversharp", "deblur", "denoised", "total_variation",
    "oversmooth",
}  # fmt: skip


@pytest.fixture(scope="module")
def original(photograph):
    return load_image(photograph)


@pytest.fixture(scope="module")
def image_lq(original):
    return degrade_for_demo(original, scale=4)


def mse(a, b):
    return float((a - b).square().mean())


def detail(image):
    """Mean absolute difference of neighbours: what sharpening raises and smoothing lowers."""
    return float(image.diff(dim=1).abs().mean() + image.diff(dim=2).abs().mean())


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_range_and_names(image_lq, scale, channels):
    found = classical_candidates(image_lq[:channels, :40, :36], scale)
    assert set(found) == (NAMES if scale > 1 else {"input", *NAMES} - {"nearest", "bilinear", "bicubic", "lanczos"})
    for name, image in found.items():
        assert image.shape == (channels, 40 * scale, 36 * scale), name
        assert image.dtype == torch.float32, name
        assert 0 <= image.min() <= image.max() <= 1, name


def test_they_are_deterministic_and_all_different(image_lq):
    first, again = classical_candidates(image_lq, 4), classical_candidates(image_lq, 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(mse(a, b) > 1e-6 for a, b in itertools.combinations(first.values(), 2))


def test_each_does_what_its_name_says(image_lq, original):
    """By margins measured on this photograph (each about half of what was seen)."""
    found = classical_candidates(image_lq, 4)
    bicubic = found["bicubic"]
    assert detail(found["unsharp"]) > 1.1 * detail(bicubic)
    assert detail(found["oversharp"]) > 2 * detail(bicubic)
    assert detail(found["deblur"]) > 1.1 * detail(bicubic)
    assert detail(found["oversmooth"]) < 0.7 * detail(bicubic)
    assert detail(found["denoised"]) < detail(bicubic)
    assert mse(found["oversharp"], original) > 2 * mse(bicubic, original)
    assert mse(found["oversmooth"], original) > 1.5 * mse(bicubic, original)
    assert mse(found["bicubic"], original) < mse(found["nearest"], original)
    # Sharpening moderately must not destroy the image: NaN and black borders did, once.
    assert mse(found["unsharp"], original) < 1.5 * mse(bicubic, original)
    assert mse(found["deblur"], original) < 1.6 * mse(bicubic, original)


def test_denoising_helps_where_there_is_noise(original):
    noisy = (original + 0.06 * torch.randn(original.shape)).clamp(0, 1)
    found = classical_candidates(noisy, 1)
    assert mse(found["denoised"], original) < 0.6 * mse(noisy, original)
    assert mse(found["total_variation"], original) < 0.8 * mse(noisy, original)


@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_a_flat_image_stays_flat(kernel):
    flat = np.full((20, 30, 3), 0.3, dtype=np.float32)
    assert np.abs(enlarge(flat, 3, kernel) - 0.3).max() < 1e-5


@settings(max_examples=15, deadline=None)
@given(sigma=st.floats(0.005, 0.1), level=st.floats(0.4, 0.6), seed=st.integers(0, 99))
def test_noise_sigma_of_known_noise(sigma, level, seed):
    noise = np.random.default_rng(seed).standard_normal((128, 128, 3)).astype(np.float32)
    assert noise_sigma(level + sigma * noise) == pytest.approx(sigma, rel=0.1)


def test_degrading_is_seeded_smaller_and_worse(original):
    one, same, other = (degrade_for_demo(original, seed=seed) for seed in (1, 1, 2))
    assert one.shape == (3, 64, 64)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert degrade_for_demo(original[:1], scale=2).shape == (1, 128, 128)
    soft = degrade_for_demo(original, scale=1, blur_px=3.0, noise=0.0, quality=95)
    noisy = degrade_for_demo(original, scale=1, blur_px=0.3, noise=0.1, quality=95)
    blocky = degrade_for_demo(original, scale=1, blur_px=0.3, noise=0.0, quality=5)
    assert detail(soft) < 0.6 * detail(original) < detail(original) < 0.7 * detail(noisy)
    assert mse(blocky, original) > 1e-3


@pytest.mark.parametrize(
    ("image", "scale", "reason"),
    [
        (torch.zeros(3, 32, 32), 5, "scale=5"),
        (torch.zeros(3, 32, 32), 2.5, "scale=2.5"),
        (torch.zeros(32, 32), 2, "must be float CHW"),
        (torch.zeros(4, 32, 32), 2, "1 or 3 channels"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), 2, "uint8"),
        (torch.zeros(3, 32, 15), 2, "at least 16 px"),
    ],
)
def test_other_input_is_refused_by_name(image, scale, reason):
    with pytest.raises(ValueError, match=reason):
        classical_candidates(image, scale)


def test_the_smallest_image_works():
    assert classical_candidates(torch.rand(3, 16, 16), 2)["deblur"].shape == (3, 32, 32)


def test_prepare_limits_the_size_without_touching_a_low_quality_input():
    photograph = torch.rand(3, 1000, 701)
    original, image_lq = prepare(photograph, as_is=False)
    assert max(original.shape) <= MAX_SIDE_PX
    assert [4 * side for side in image_lq.shape[1:]] == list(original.shape[1:])
    nothing, image_lq = prepare(photograph, as_is=True)
    assert nothing is None
    assert image_lq.shape == (3, 160, 160)
    assert torch.equal(image_lq, photograph[:, 420:580, 270:430])


def test_demo_says_what_it_cannot_use(capsys, tmp_path):
    assert main(["--image", str(tmp_path / "none.png"), "--out", str(tmp_path)]) == 1
    assert "no such file" in capsys.readouterr().err
