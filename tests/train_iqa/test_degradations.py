"""Synthetic degradations: seeded, in range, stronger when told so, and only where told so."""

import numpy as np
import pytest

from train_iqa.nano.degradations import DEGRADATIONS, Step, degrade, sample_box, sample_steps


@pytest.fixture(scope="module")
def photograph():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:96, 0:128] / 96
    waves = np.stack([np.sin(9 * x + 5 * y), np.cos(21 * x * y), np.sin(33 * y)], axis=-1)
    return (0.5 + 0.25 * waves + 0.1 * rng.standard_normal((96, 128, 1))).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_each_kind_is_seeded_in_range_and_grows(kind, photograph):
    def error(severity, seed):
        out, record = degrade(photograph, (Step(kind=kind, severity=severity),), np.random.default_rng(seed))
        assert out.shape == photograph.shape
        assert out.dtype == np.float32
        assert out.min() >= 0
        assert out.max() <= 1
        assert record.steps[0].params
        return float(np.abs(out - photograph).mean()), out

    assert np.array_equal(error(0.6, 3)[1], error(0.6, 3)[1])
    weak, strong = (np.mean([error(s, seed)[0] for seed in range(4)]) for s in (0.1, 0.9))
    assert strong > 1.2 * weak > 0


def test_local_degradation_leaves_the_rest_alone(photograph):
    box = (0.25, 0.25, 0.75, 0.75)
    stored = (photograph * 255 + 0.5).astype(np.uint8).astype(np.float32) / 255
    out, record = degrade(photograph, (Step(kind="gaussian_noise", severity=1.0),), np.random.default_rng(0), box)
    changed = np.abs(out - stored).max(axis=2) > 1e-6
    assert record.box == box
    assert changed[30:66, 40:88].mean() > 0.95
    changed[22:74, 30:98] = False  # the region with its seam
    assert not changed.any()


def test_sampled_boxes_have_the_promised_areas_and_stay_inside():
    rng = np.random.default_rng(1)
    boxes = np.array([sample_box(rng) for _ in range(500)])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert 0.049 < area.min() < 0.07
    assert 0.37 < area.max() < 0.401
    assert abs(area.mean() - 0.225) < 0.015


def test_sampled_steps_are_different_kinds():
    rng = np.random.default_rng(2)
    chains = [sample_steps(rng) for _ in range(300)]
    assert {len(c) for c in chains} == {1, 2, 3}
    assert all(len({s.kind for s in c}) == len(c) for c in chains)
    assert {s.kind for c in chains for s in c} == set(DEGRADATIONS)
