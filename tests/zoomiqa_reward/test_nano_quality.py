"""What the embedded model must be able to do, on photographs that a dependency brings."""

import numpy as np
import pytest
import torch
from skimage import data

from train_iqa.nano.degradations import DEGRADATIONS, Step, degrade, resize
from zoomiqa_reward import ZoomIQA

pytestmark = pytest.mark.integration

WEAK = pytest.mark.xfail(
    reason="light damage of photographs that never were JPEGs is rated above none (docs/notes/judge.md)"
)
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture(scope="module")
def iqa():
    return ZoomIQA.from_pretrained("nano")


@pytest.fixture(scope="module")
def photographs():
    found = []
    for name in PHOTOGRAPHS:
        image = getattr(data, name)().astype(np.float32) / 255
        height, width = image.shape[:2]
        top, left = (height - 252) // 2, (width - 308) // 2
        found.append(np.ascontiguousarray(image[top : top + 252, left : left + 308]))
    return found


def _rate(iqa, images):
    tensors = [torch.from_numpy(np.ascontiguousarray(i, dtype=np.float32)).permute(2, 0, 1) for i in images]
    return iqa.rate(tensors, strict=True).mean.numpy()


def _ladder(name, image):
    if name == "downsample":
        height, width = image.shape[:2]
        sizes = [(round(width / f), round(height / f)) for f in (2.0, 4.0)]
        return [image, *(resize(resize(image, *size, "bicubic"), width, height, "bicubic") for size in sizes)]
    return [image, *(DEGRADATIONS[name](image, s, np.random.default_rng(0))[0].clip(0, 1) for s in (0.4, 0.8))]


LADDERS = ("gaussian_blur", "gaussian_noise", "jpeg", "downsample")


def _mean_ratings(iqa, name, images):
    return np.mean([_rate(iqa, _ladder(name, image)) for image in images], axis=0)


@pytest.fixture(scope="module")
def stored(photographs):
    """The photographs as cameras store them, at quality 90."""
    return [DEGRADATIONS["jpeg"](p, -0.067, np.random.default_rng(0))[0] for p in photographs]


@pytest.mark.parametrize(
    "name",
    [*LADDERS[:3], pytest.param("downsample", marks=pytest.mark.xfail(reason="half the size and back: +0.05"))],
)
def test_mean_rating_falls_at_each_step_of_a_ladder(iqa, stored, name):
    """Finer steps: `benchmarks/ladders.py`."""
    means = _mean_ratings(iqa, name, stored)
    assert (np.diff(means) < -0.01).all(), means


@pytest.mark.parametrize("name", LADDERS)
def test_strong_damage_costs_half_a_rating(iqa, stored, name):
    means = _mean_ratings(iqa, name, stored)
    assert means[0] - means[-1] > 0.5, means


@WEAK
def test_mean_rating_falls_where_no_photograph_was_a_jpeg(iqa, photographs):
    assert all((np.diff(_mean_ratings(iqa, name, photographs)) < -0.1).all() for name in LADDERS)


def test_strict_is_bit_equal_in_any_company(iqa, photographs):
    tensors = [torch.from_numpy(p).permute(2, 0, 1) for p in photographs]
    together = iqa.rate([*tensors, torch.rand(3, 90, 71)], strict=True).mean
    assert torch.equal(together[:4], torch.cat([iqa.rate([t], strict=True).mean for t in tensors]))
    batched = iqa.rate(tensors, strict=False).mean
    assert float((batched - together[:4]).abs().max()) < 1e-4


def test_answers_are_readable_and_name_sections(iqa, photographs):
    blurred = [degrade(p, (Step(kind="motion_blur", severity=0.8),), np.random.default_rng(0))[0] for p in photographs]
    tensors = [torch.from_numpy(i).permute(2, 0, 1).contiguous() for i in [*photographs, *blurred]]
    assessments = iqa.assess(tensors)
    assert all(a.valid for a in assessments), [a.error for a in assessments]
    for assessment in assessments:
        assert len(assessment.turns[0].sections) == 4
        assert 1 <= assessment.rating <= 5
