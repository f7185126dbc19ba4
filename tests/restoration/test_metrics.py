"""Metrics: closed forms, their laws, what is too small or not there, and the registry."""

import itertools
import math

import pytest
import torch
from tiny import make_image

from restoration.metrics import (
    METRICS,
    MetricUnavailable,
    as_reward,
    find_metrics,
    fsim,
    haarpsi,
    lpips,
    lr_consistency,
    measure,
    niqe,
    psnr_y,
    ssim_y,
    vif,
)
from restoration.metrics.fidelity import mdsi
from restoration.metrics.perceptual import _SLICES, backbone_hash
from zoomiqa_reward.images import load_image, to_pil
from zoomiqa_reward.images.filters import gaussian_blur
from zoomiqa_reward.images.loading import ImageError

LUMA_SPAN = 219.0
"""BT.601 luma of RGB 0..1 is 16 + 219 v for grey v, of 255."""


def flat(value, side=32):
    return torch.full((3, side, side), value / 255)


def noisy(image, sigma, seed=0):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (image + sigma * noise).clamp(0, 1)


def test_psnr_of_flat_greys_by_hand():
    """Grey 100 against 110 of 255: luma differs by 219 * 10 / 255 = 8.588; 20 log10(255 / 8.588) = 29.452."""
    expected = 20 * math.log10(255 / (LUMA_SPAN * 10 / 255))
    assert psnr_y(flat(100), flat(110)) == pytest.approx(expected, abs=1e-3)
    assert psnr_y(flat(100), flat(100)) == 100


def test_ssim_of_flat_greys_by_hand():
    """Without variance SSIM is (2ab + c1) / (a^2 + b^2 + c1) of the two lumas."""
    a, b, c1 = (16 + LUMA_SPAN * 100 / 255, 16 + LUMA_SPAN * 180 / 255, (0.01 * 255) ** 2)
    assert ssim_y(flat(100), flat(180)) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-5)
    assert ssim_y(make_image(), make_image()) == pytest.approx(1)


METRIC_FUNCTIONS = [psnr_y, ssim_y, fsim, vif, haarpsi, mdsi, niqe, lr_consistency]


@pytest.mark.parametrize("fn", METRIC_FUNCTIONS)
def test_half_precision_is_measured_in_float32_and_no_number_is_none(fn):
    """VIF of a bfloat16 image was 0.65 instead of 0.55, and PSNR took a pixel that is NaN for black."""
    image = noisy(make_image(0, 96, 200), 0.05).bfloat16()
    pair = [] if fn is niqe else [make_image(0, 96, 200).bfloat16()]
    assert fn(image, *pair) == fn(image.float(), *(other.float() for other in pair))
    for value in (math.nan, math.inf):
        spoilt = image.clone()
        spoilt[0, 40, 40] = value
        assert math.isnan(fn(spoilt, *pair))


def measured(fn, image, other):
    return fn(image) if fn is niqe else fn(image, other)


@pytest.mark.parametrize("fn", METRIC_FUNCTIONS)
def test_grey_counts_as_three_equal_channels(fn):
    """PSNR-Y of a grey tensor was 1.3 dB lower than that of its file, and FSIM failed."""
    clean = make_image(0, 96, 200).mean(dim=0, keepdim=True)
    pair = noisy(clean, 0.05), clean
    expected = measured(fn, *(image.repeat(3, 1, 1) for image in pair))
    assert measured(fn, *pair) == expected
    assert measured(fn, *(image[None] for image in pair)) == expected  # a batch of one


@pytest.mark.parametrize("fn", METRIC_FUNCTIONS)
@pytest.mark.parametrize("spread", [
    lambda x: 255 * x, lambda x: (255 * x).byte(), lambda x: 2 * x - 1, lambda x: torch.stack([x, x]),
    lambda x: x.permute(1, 2, 0),
])  # fmt: skip
def test_another_range_or_form_is_refused(fn, spread):
    """PSNR, SSIM, NIQE and LR-consistency measured images of 0..255 or -1..1 with all that lies outside cut off."""
    clean = make_image(0, 96, 200)
    with pytest.raises(ImageError):
        measured(fn, spread(noisy(clean, 0.05)), spread(clean))


@pytest.mark.parametrize("measure_pair", [psnr_y, ssim_y])
def test_the_border_is_not_looked_at(measure_pair):
    image, reference = noisy(make_image(), 0.05), make_image()
    spoilt = image.clone()
    spoilt[:, :4], spoilt[:, :, -4:] = 0, 1
    assert measure_pair(spoilt, reference) == measure_pair(image, reference)
    assert measure_pair(spoilt, reference, border_px=3) < measure_pair(image, reference, border_px=3)


@pytest.mark.parametrize(("metric", "best"), [(fsim, 1), (vif, 1), (haarpsi, 1), (mdsi, 0)])
def test_equal_images_are_best_and_noise_is_worse(metric, best):
    reference = make_image(1, 96, 100)
    values = [metric(noisy(reference, sigma), reference) for sigma in (0, 0.02, 0.1, 0.3)]
    assert values[0] == pytest.approx(best, abs=1e-4)
    steps = [b - a for a, b in itertools.pairwise(values)]
    assert all(step > 0.005 if best == 0 else step < -0.005 for step in steps)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y, fsim, vif, haarpsi, mdsi, lpips])
def test_other_sizes_are_refused(metric):
    with pytest.raises(ValueError, match="sizes must be equal"):
        metric(flat(1, 64), flat(1, 60))


def test_what_is_too_small_has_no_value():
    assert all(math.isnan(value) for value in (
        psnr_y(flat(1, 8), flat(2, 8)), ssim_y(flat(1, 18), flat(2, 18)), vif(flat(1, 40), flat(2, 40)),
        haarpsi(flat(1, 15), flat(2, 15)), niqe(make_image(0, 96, 191)), niqe(flat(1, 192)),
        lr_consistency(flat(1, 16), flat(1, 4)),
    ))  # fmt: skip
    assert math.isfinite(ssim_y(flat(1, 19), flat(2, 19)))
    assert math.isfinite(niqe(make_image(0, 96, 192)))


def test_lr_consistency_by_hand():
    """A flat image stays flat when reduced and blurred: grey 100 against 110 as in PSNR-Y; equal is the cap."""
    expected = 20 * math.log10(255 / (LUMA_SPAN * 10 / 255))
    for blur_px in (0.0, 1.0):
        assert lr_consistency(flat(100, 64), flat(110, 16), blur_px=blur_px) == pytest.approx(expected, abs=1e-3)
        assert lr_consistency(flat(100, 64), flat(100, 16), blur_px=blur_px) == 50


def test_lr_consistency_does_not_reward_keeping_noise():
    clean_hr = make_image(2, 128, 128)
    clean_lq = torch.nn.functional.interpolate(clean_hr[None], size=(32, 32), mode="bicubic", antialias=True)[0]
    lq = noisy(clean_lq.clamp(0, 1), 0.08)
    kept = torch.nn.functional.interpolate(lq[None], size=(128, 128), mode="nearest")[0]
    with_blur = [lr_consistency(image, lq) for image in (clean_hr, kept)]
    without = [lr_consistency(image, lq, blur_px=0.0) for image in (clean_hr, kept)]
    assert with_blur[0] > without[0] + 6  # a Gaussian of 1 px passes 1 / (4 pi) of white noise: 11 dB inside
    assert with_blur[1] - with_blur[0] < without[1] - without[0] + 6
    moved = lr_consistency(clean_hr.roll(8, dims=2), lq)
    assert moved < with_blur[0] - 3


def test_lr_consistency_cuts_two_pixels_and_wants_a_whole_scale():
    hr, lq = make_image(4, 64, 64), make_image(5, 16, 16)
    spoilt = lq.clone()
    spoilt[:, :2], spoilt[:, :, -2:] = 0, 1
    assert lr_consistency(hr, spoilt, blur_px=0.0) == lr_consistency(hr, lq, blur_px=0.0)
    with pytest.raises(ValueError, match="whole number"):
        lr_consistency(make_image(4, 60, 64), lq)
    with pytest.raises(ValueError, match="blur_px=-1"):
        lr_consistency(hr, lq, blur_px=-1)


def test_gaussian_blur_by_hand():
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    blurred = gaussian_blur(point, 1.0)
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert blurred[0, 0, 10, 10] == pytest.approx(1 / (2 * math.pi), abs=1e-3)
    assert blurred[0, 0, 10, 11] / blurred[0, 0, 10, 10] == pytest.approx(math.exp(-0.5), abs=1e-5)


def test_lpips_reads_a_local_backbone(backbone, tmp_path):
    reference, before = make_image(1, 64, 64), torch.get_rng_state()
    values = [lpips(noisy(reference, sigma), reference, weights=backbone) for sigma in (0, 0.05, 0.3)]
    assert values[0] == 0 < values[1] < values[2]
    assert torch.equal(torch.get_rng_state(), before)
    assert math.isnan(lpips(flat(1, 31), flat(2, 31), weights=backbone))
    stored = torch.load(backbone)
    torch.save({name: 2 * value for name, value in stored.items()}, tmp_path / "other.pth")
    assert lpips(noisy(reference, 0.05), reference, weights=tmp_path / "other.pth") != pytest.approx(values[1])
    assert backbone_hash(backbone) != backbone_hash(tmp_path / "other.pth")


def test_lpips_is_that_of_the_library(backbone):
    """The five slices against the network itself: features after each ReLU, unit length, weighted by the library."""
    import lpips as library
    from torchvision.models import alexnet

    images = make_image(1, 64, 64), noisy(make_image(1, 64, 64), 0.1)
    network = alexnet(weights=None)
    network.load_state_dict(torch.load(backbone), strict=False)
    linear = torch.load(f"{library.__path__[0]}/weights/v0.1/alex.pth", map_location="cpu")
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    taps = [(2 * image[None] - 1 - shift) / scale for image in images]
    total, place = 0.0, 0
    with torch.no_grad():
        for k, layer in enumerate(_SLICES):
            taps = [network.features[place : layer + 2](x).clone() for x in taps]
            place = layer + 2
            unit = [x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in taps]
            total += float(((unit[0] - unit[1]) ** 2 * linear[f"lin{k}.model.1.weight"]).sum(dim=1).mean())
    assert lpips(images[1], images[0], weights=backbone) == pytest.approx(total, rel=1e-4)


def test_lpips_without_backbone_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MetricUnavailable, match=r"alexnet-owt-7be5be79\.pth.*Nothing is fetched"):
        lpips(flat(1), flat(2))
    torch.save({"layer": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"holds no features\.0\.bias"):
        lpips(flat(1), flat(2), weights=tmp_path / "wrong.pth")
    found = measure(["fsim", "lpips"], make_image(), hr=make_image())
    assert math.isnan(found["lpips"].value)
    assert "no file" in found["lpips"].reason


def test_registry_says_who_may_judge():
    assert {name for name, metric in METRICS.items() if metric.is_label_metric} == {"haarpsi", "mdsi"}
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {"niqe", "lpips", "mdsi"}
    assert {name: metric.needs for name, metric in METRICS.items() if metric.needs != "hr"} == {
        "niqe": None, "lr_consistency": "lq",
    }  # fmt: skip
    assert (METRICS["psnr_y"].border_px, METRICS["lr_consistency"].border_px) == (4, 2)
    assert METRICS["fsim"].version().startswith("piq ")
    with pytest.raises(ValueError, match="must be among psnr_y"):
        find_metrics(["sharpness"])
    with pytest.raises(ValueError, match=r"give a list of names, as in \['vif'\]"):
        measure("vif", make_image(0, 48, 48))
    with pytest.raises(ValueError, match="named twice"):
        find_metrics(["fsim", "fsim"])


def test_measure_drops_nothing():
    image = make_image(0, 64, 64)
    found = measure(["psnr_y", "niqe", "lr_consistency", "fsim"], image, hr=image)
    assert list(found) == ["psnr_y", "niqe", "lr_consistency", "fsim"]
    assert (found["psnr_y"].value, found["psnr_y"].reason) == (100, None)
    assert "not defined for this image of 64 x 64" in found["niqe"].reason
    assert "needs lq" in found["lr_consistency"].reason
    assert all(math.isnan(found[name].value) for name in ("niqe", "lr_consistency"))
    assert (found["fsim"].value, found["fsim"].reason) == (pytest.approx(1), None)
    blurs = [{"lr_consistency": {"blur_px": blur}} for blur in (0.0, 1.0)]
    values = [measure(["lr_consistency"], image, lq=make_image(0, 16, 16), options=option) for option in blurs]
    assert values[0] != values[1]
    with pytest.raises(ValueError, match="must be among"):
        measure(["fsim"], image, hr=image, options={"nothing": {}})


def test_a_metric_as_reward_is_oriented(backbone):
    reference = make_image(1, 64, 64)
    images = [noisy(reference, 0.02), noisy(reference, 0.2)]
    for name, options in (("mdsi", {}), ("fsim", {}), ("lpips", {"weights": backbone})):
        scores = as_reward(name, **options)(images, hr=[reference, reference])
        assert bool(scores.valid.all())
        assert scores.value[0] > scores.value[1], name
    assert as_reward("mdsi").score_range == (-math.inf, 0)
    assert as_reward("fsim").name == "fsim"
    edge, inner = as_reward("fsim", border_px=4)(images, hr=[reference, reference]), {"fsim": {"border_px": 4}}
    measured = [measure(["fsim"], image, hr=reference, options=inner)["fsim"].value for image in images]
    assert edge.value.tolist() == pytest.approx(measured)
    assert edge.value.tolist() != as_reward("fsim")(images, hr=[reference, reference]).value.tolist()
    small = as_reward("niqe")([flat(1, 40)])
    assert not bool(small.valid[0])
    with pytest.raises(ValueError, match="needs hr"):
        as_reward("fsim")(images)
    prints = {as_reward("lr_consistency", blur_px=blur).fingerprint for blur in (0.0, 1.0)}
    assert len(prints | {as_reward("fsim").fingerprint}) == 3


def test_a_value_between_two_levels_is_measured_as_its_file():
    """Means of 8-bit images lie halfway between levels; a file rounds them up."""
    hr = load_image(to_pil(make_image(0, 64, 64)))
    other = (hr + (torch.arange(64) % 2) / 255).clamp(0, 1)
    between = (hr + other) / 2
    for measured in (psnr_y, ssim_y):
        assert measured(between, hr) == measured(load_image(to_pil(between)), hr)


def test_a_metric_that_is_not_defined_for_an_image_says_so_as_a_reward_too():
    image = torch.rand(3, 24, 32)
    [row] = [as_reward("niqe")([image]).errors]
    assert row == ("niqe is not defined for this image of 32 x 24 px",)
