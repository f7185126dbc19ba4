"""Dense energy targets, and the state of a run."""

import numpy as np
import pytest
import torch

from train_iqa.nano.labels import FLOOR, NUM_BANDS, band_energies, band_targets
from zoomiqa_reward.runs.training_folder import RunFolder, RunningMeans


def _grating(period_px, amplitude):
    """BCHW of one image, 84 x 112 px."""
    wave = 0.5 + amplitude * torch.sin(2 * torch.pi * torch.arange(112.0) / period_px)
    return wave.expand(1, 3, 84, 112).clone()


def test_twice_the_contrast_is_four_times_the_energy():
    weak, strong = (band_energies(_grating(4, a)) for a in (0.05, 0.1))
    assert weak.shape == (1, 3, 4, NUM_BANDS)
    assert (strong - weak)[0, 1:, 1:3, 0].numpy() == pytest.approx(np.log10(4), abs=0.01)


@pytest.mark.parametrize(("period_px", "band"), [(2.5, 0), (4, 1), (8, 2), (16, 3)])
def test_each_period_is_strongest_in_its_band(period_px, band):
    energies = band_energies(_grating(period_px, 0.1))[0, 1, 1:3, :4].mean(0)
    assert int(energies.argmax()) == band


def test_fine_colour_has_a_band_of_its_own():
    grey, coloured = _grating(3, 0.1), _grating(3, 0.1)
    coloured[:, 2] = 1 - coloured[:, 2]
    assert (band_energies(grey)[..., 4] < np.log10(2 * FLOOR)).all()
    assert (band_energies(coloured)[..., 4] > -3).all()


def test_an_untouched_image_differs_by_nothing():
    targets = band_targets(_grating(4, 0.1), _grating(4, 0.1))
    assert torch.equal(targets[..., :NUM_BANDS], targets[..., NUM_BANDS : 2 * NUM_BANDS])
    assert targets[..., 2 * NUM_BANDS :].numpy() == pytest.approx(np.log10(FLOOR))


def test_a_run_goes_on_from_its_last_save(tmp_path):
    run, means, layer = RunFolder(tmp_path / "run"), RunningMeans(0.5), torch.nn.Linear(2, 2)
    assert run.load({"means": means, "layer": layer}) == 0
    means.update({"loss": 4.0})
    means.update({"loss": 2.0})
    run.save(7, {"means": means, "layer": layer})
    other, again = torch.nn.Linear(2, 2), RunningMeans(0.5)
    assert RunFolder(tmp_path / "run").load({"means": again, "layer": other}) == 7
    assert again.means == {"loss": 3.0}
    assert torch.equal(other.weight, layer.weight)
    assert not (tmp_path / "run/state.tmp").exists()
    run.log({"step": 7, "loss": 1 / 3})
    assert (tmp_path / "run/log.jsonl").read_text() == '{"step": 7.0, "loss": 0.333333}\n'
