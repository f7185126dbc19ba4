"""Conventions are chosen, not guessed, and stand in the results: border, channel, value range, lossy inputs."""

import numpy as np
import pytest
import torch
from PIL import Image

from restoration.evaluation.datasets import degraded_folder, load_preset
from restoration.evaluation.evaluate import BicubicRestorer, evaluate, with_conventions
from restoration.metrics.registry import conventions, measure
from restoration.restorer.image_io import RestorationError
from restoration.restorer.restorer import Restorer
from zoomiqa_reward.images.loading import conversions


def photo(side: int = 96, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")[0]


def save(image: torch.Tensor, file) -> None:
    Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(file)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_border_is_the_scale_and_stands_in_the_results(tmp_path, scale):
    (tmp_path / "hr").mkdir()
    save(photo(), tmp_path / "hr" / "a.png")
    data = degraded_folder(tmp_path / "hr", "bicubic", scale=scale)
    found = evaluate(BicubicRestorer(scale=scale), data, ["psnr_y", "ssim_y", "fsim"], n=1)
    pair = data.load(0)
    image = next(iter(BicubicRestorer(scale=scale).restore(pair.lq, [0]))).image
    image = image.mul(255).add(0.5).floor() / 255
    for name in ("psnr_y", "ssim_y"):
        expected = measure([name], image, hr=pair.hr, options={name: {"border_px": scale}})[name].value
        assert found.report()["rows"]["bicubic"][name]["value"] == pytest.approx(expected, abs=1e-9)
        assert found.settings["conventions"][name] == {"border_px": scale, "channel": "y"}
    assert found.settings["conventions"]["fsim"] == {"border_px": 0, "channel": "rgb"}


def test_realsr_is_measured_to_its_edges(tmp_path):
    for camera in ("Canon", "Nikon"):
        folder = tmp_path / camera / "Test" / "4"
        folder.mkdir(parents=True)
        save(photo(64), folder / f"{camera}_1_HR.png")
        save(photo(16), folder / f"{camera}_1_LR4.png")
    data = load_preset("realsr", tmp_path)
    assert with_conventions(data, ["psnr_y", "ssim_y", "niqe"]) == {
        name: {"border_px": 0, "channel": "y"} for name in ("psnr_y", "ssim_y")
    }
    assert with_conventions(data.take(1), ["psnr_y"])["psnr_y"]["border_px"] == 0
    assert with_conventions(data, ["psnr_y"], {"psnr_y": {"border_px": 4}})["psnr_y"]["border_px"] == 4


def test_border_and_channel_are_options_of_the_metrics():
    image, other = photo(), photo(seed=1)
    inner = [one[:, 8:-8, 8:-8] for one in (image, other)]
    for name in ("fsim", "haarpsi", "mdsi", "vif"):
        cut = measure([name], image, hr=other, options={name: {"border_px": 8}})[name].value
        assert cut == measure([name], inner[0], hr=inner[1])[name].value
    values = [measure(["psnr_y"], image, hr=other, options={"psnr_y": {"channel": c}})["psnr_y"].value for c in "y"]
    rgb = measure(["psnr_y"], image, hr=other, options={"psnr_y": {"channel": "rgb", "border_px": 0}})["psnr_y"].value
    levels = [one.mul(255).round() for one in (image, other)]
    assert rgb == pytest.approx(20 * np.log10(255 / float((levels[0] - levels[1]).square().mean().sqrt())), abs=1e-5)
    assert values[0] != rgb
    assert conventions(["niqe", "psnr_y"], {"psnr_y": {"border_px": 1}})["psnr_y"] == {"border_px": 1, "channel": "y"}
    with pytest.raises(ValueError, match="channel"):
        measure(["psnr_y"], image, hr=other, options={"psnr_y": {"channel": "luma"}})


class Writes(torch.nn.Module):
    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, x):
        return torch.nn.functional.interpolate(x, scale_factor=2) * self.factor + self.offset


IMAGES = {
    "ordinary": photo(),
    "bright": 0.5 + 0.5 * photo(),
    "night": 0.003 * photo(),
    "flat": torch.full((3, 9, 9), 0.7),
}


@pytest.mark.parametrize("which", IMAGES)
@pytest.mark.parametrize(("factor", "offset", "value_range"), [(2, -1, "signed"), (255, 0, "bytes")])
def test_another_value_range_is_refused_on_every_image_or_declared(which, factor, offset, value_range):
    network, image = Writes(factor, offset), IMAGES[which]
    with pytest.raises(RestorationError, match="value_range='signed'"):
        list(Restorer.from_pretrained(network).restore(image, [0]))
    [made] = Restorer.from_pretrained(network, value_range=value_range).restore(image, [0])
    assert torch.allclose(made.image, torch.nn.functional.interpolate(image[None], scale_factor=2)[0], atol=1e-5)


def test_a_network_that_overshoots_is_clamped_and_a_range_is_part_of_the_fingerprint():
    network = Writes(1.3, -0.15)
    [made] = Restorer.from_pretrained(network).restore(IMAGES["ordinary"], [0])
    assert made.image.min() >= 0
    ranges = {Restorer.from_pretrained(network, value_range=one).fingerprint for one in ("unit", "signed", "bytes")}
    assert len(ranges) == 3
    with pytest.raises(ValueError, match="value_range"):
        Restorer.from_pretrained(network, value_range="[-1, 1]")


def test_what_reading_gives_up_is_noted(tmp_path):
    rgba = Image.new("RGBA", (20, 20), (1, 2, 3, 90))
    rgba.save(tmp_path / "alpha.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "profile.png", icc_profile=b"Display P3")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "plain.png")
    assert conversions(tmp_path / "alpha.png") == ("transparency is put on white",)
    assert conversions(tmp_path / "profile.png") == ("its colour profile is not applied",)
    assert conversions(tmp_path / "two.gif") == ("only the first of 2 frames is read",)
    assert conversions(tmp_path / "plain.png") == ()
    assert conversions(rgba) == ("transparency is put on white",)
    assert conversions(Image.new("RGBA", (20, 20), (1, 2, 3, 255))) == ()
    (tmp_path / "hr").mkdir()
    (tmp_path / "alpha.png").rename(tmp_path / "hr" / "alpha.png")
    done = evaluate(BicubicRestorer(scale=2), degraded_folder(tmp_path / "hr", "bicubic", scale=2), ["psnr_y"], n=1)
    assert done.settings["notes"] == ["alpha.png: transparency is put on white"]
