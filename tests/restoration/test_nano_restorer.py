"""The embedded x4 restorer: it is there, it is small, it says what it was made of, and it is better than bicubic."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from restoration import Restorer
from restoration.degradation import degrade
from restoration.evaluation.measuring import bicubic
from restoration.metrics import fsim, lr_consistency, psnr_y, vif
from restoration.restorer.loading import NANO


@pytest.fixture(scope="module")
def pairs():
    """(LR, HR) of two photographs that never were JPEGs, 256 px, slightly degraded."""
    found = []
    for seed, image in enumerate((data.astronaut()[:256, 100:356], data.coffee()[60:316, 200:456])):
        hr = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        found.append((degrade(hr, "mild", seed=seed, scale=4)[0], hr))
    return found


def test_the_files_are_small_and_the_card_names_the_photographs():
    files = [file for file in NANO.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25e6
    assert not [file.name for file in files if file.suffix not in {".json", ".safetensors", ".md"}]
    card = (NANO / "README.md").read_text()
    assert all(name in card for name in ("CLIC 2025", "CID22", "Sun-Hays80"))


@pytest.fixture(scope="module")
def drawn(pairs):
    """Two samples of each."""
    restorer = Restorer.from_pretrained("nano")
    return [[one.image for one in restorer.restore(lq, seeds=[0, 1])] for lq, _ in pairs]


@pytest.mark.integration
def test_samples_differ_and_are_better_than_bicubic_under_every_judge(pairs, drawn):
    for (lq, hr), (first, second) in zip(pairs, drawn, strict=True):
        assert first.shape == hr.shape
        assert 0.002 < float((first - second).square().mean().sqrt()) < 0.1
        plain = bicubic(lq, 4)
        for judge, margin in ((psnr_y, 0.5), (fsim, 0.005), (vif, 0.01)):
            gain = np.mean([judge(x, hr) for x in (first, second)]) - judge(plain, hr)
            assert gain > margin, (judge.__name__, gain)


@pytest.mark.integration
def test_samples_agree_with_their_input_nearly_as_bicubic_does(pairs, drawn):
    for (lq, _), both in zip(pairs, drawn, strict=True):
        assert min(lr_consistency(x, lq) for x in both) > lr_consistency(bicubic(lq, 4), lq) - 1


@pytest.mark.integration
def test_any_size_is_restored_and_a_seed_is_an_image(tmp_path):
    restorer = Restorer.from_pretrained("nano")
    Image.fromarray(data.astronaut()[:37, :51]).save(tmp_path / "odd.png")
    first, again = (next(iter(restorer.restore(tmp_path / "odd.png", seeds=[3]))).image for _ in range(2))
    assert first.shape == (3, 148, 204)
    assert torch.equal(first, again)
