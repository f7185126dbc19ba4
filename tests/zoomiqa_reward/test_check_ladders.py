"""What a reward is checked on: photographs, and ladders of damage whose order is true."""

import sys

import pytest
import torch
from known_rewards import photo
from tiny import make_image

from zoomiqa_reward.check import bundled_photographs, load_photographs
from zoomiqa_reward.check.baselines import laplacian_variance
from zoomiqa_reward.check.ladders import DAMAGES, DETAIL, blur, make_pool, reduce


@pytest.fixture(scope="module")
def pool():
    return make_pool(photo())


# Ladders


def test_every_step_is_further_from_the_photograph(pool):
    assert [damage.kind for damage in DAMAGES] == list(pool.ladders)
    for kind, steps in pool.ladders.items():
        assert steps[0] is pool.hr
        assert len(steps) == 5
        errors = [float((step - pool.hr).square().mean()) for step in steps]
        assert errors == sorted(set(errors)), kind
        for step in steps:
            assert step.shape == pool.hr.shape
            assert 0 <= float(step.min()) <= float(step.max()) <= 1


def test_candidates_of_one_source_show_the_same_source(pool):
    assert pool.lq.shape == (3, 20, 18)
    # Blending is linear, so all candidates lie between the photograph and the enlargement.
    steps = pool.ladders[DETAIL]
    torch.testing.assert_close(steps[2], (steps[0] + steps[4]) / 2)
    for step in steps:
        assert float((reduce(step, 4) - pool.lq).abs().mean()) < 0.02  # of a contrast of 0.2


def test_ladders_are_the_same_every_time(pool):
    again = make_pool(photo())
    assert all(torch.equal(a, b) for kind in pool.ladders for a, b in
               zip(pool.ladders[kind], again.ladders[kind], strict=True))  # fmt: skip


def test_sharpening_and_noise_add_what_blur_takes(pool):
    def sharpness(kind):
        return [float(laplacian_variance(step)) for step in pool.ladders[kind]]

    for kind in ("blur", "downsample", DETAIL):
        assert sharpness(kind) == sorted(sharpness(kind), reverse=True), kind
    for kind in ("noise", "oversharpen"):
        assert sharpness(kind) == sorted(sharpness(kind)), kind


def test_blur_spreads_a_point_by_sigma():
    point = torch.zeros(3, 65, 65)
    point[:, 32, 32] = 1
    spread = blur(point, 2.0)[1]
    place = torch.arange(65.0) - 32
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float((spread.sum(0) * place**2).sum()) == pytest.approx(4.0, rel=0.03)  # cut at 3 sigma
    assert float((spread.sum(1) * place**2).sum()) == pytest.approx(4.0, rel=0.03)


def test_laplacian_variance_by_hand():
    bars = torch.tensor([0.0, 1.0]).repeat(4).expand(3, 6, 8)  # 1 between zeros gives -2, 0 between ones gives 2
    assert float(laplacian_variance(bars)) == pytest.approx(4.0, rel=1e-4)


# Photographs


def test_the_middle_is_used_and_what_cannot_be_is_named(tmp_path):
    whole = make_image(0, 100, 120)
    small, flat = torch.rand(3, 40, 90), torch.full((3, 80, 80), 0.5)
    found, refused = load_photographs([whole, small, flat, str(tmp_path / "none.png")], crop_px=80)
    assert torch.equal(found[0].image, whole[:, 10:90, 20:100])
    assert ["90 x 40 px" in refused[0][1], "flat" in refused[1][1], "no such file" in refused[2][1]] == [True] * 3
    for path in (str(tmp_path), tmp_path):  # of a text it took every letter
        [(name, reason)] = load_photographs(path)[1]
        assert (name, reason.startswith(f"{tmp_path}: is a folder")) == (str(tmp_path), True)
    assert load_photographs([whole], crop_px=500)[0][0].image.shape == whole.shape
    with pytest.raises(ValueError, match="crop_px=32"):
        load_photographs([whole], crop_px=32)


def test_the_bundled_photographs_can_be_used():
    found, refused = load_photographs(bundled_photographs())
    assert len(found) == 4
    assert refused == []
    assert {photograph.image.shape for photograph in found} == {(3, 288, 288)}


def test_without_photographs_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"zoomiqa-reward\[demo\]"):
        bundled_photographs()
