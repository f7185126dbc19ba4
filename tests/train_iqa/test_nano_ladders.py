"""Ladders of damage: every rung is worse by construction, and the loss is the shortfall from the gaps."""

import numpy as np
import pytest
import torch

from train_iqa.nano import ladders
from train_iqa.nano.ladders import GAP, HEADROOM_SHARE, ON_SHARP, RUNGS, draw_ladder, ladder_batch, ladder_loss
from train_iqa.nano.language import PAIR_SCALE


def scene(side: int = 64) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    waves = 0.5 + 0.2 * np.sin(40 * x + 3 * y) + 0.15 * np.sin(9 * y)
    return np.stack([waves, waves**1.2, 0.9 * waves], axis=-1).astype(np.float32)


@pytest.mark.parametrize("damage", dict.fromkeys(ON_SHARP), ids=lambda damage: damage.__name__)
def test_more_strength_moves_further_from_the_image(damage):
    image = scene()
    moved = [
        float(np.abs(damage(image, strength, np.random.default_rng(3)) - image).mean()) for strength in (0.1, 0.5, 1.0)
    ]
    assert 0 < moved[0] < moved[1] < moved[2]


def test_a_ladder_starts_at_the_image_or_at_a_softer_one_and_its_gaps_sum_to_the_strongest_damage():
    image, soft = scene(), 0
    for seed in range(40):
        rungs, gaps = draw_ladder(image, np.random.default_rng(seed))
        assert len(rungs) == RUNGS
        assert len(gaps) == RUNGS - 1
        assert all(rung.shape == image.shape and rung.min() >= 0 and rung.max() <= 1 for rung in rungs)
        assert all(gap >= 0 for gap in gaps)
        assert sum(gaps) <= GAP * 1.1 + 1e-6
        soft += not np.array_equal(rungs[0], image)
    assert 10 <= soft <= 30


def test_only_good_crops_start_a_ladder_and_rungs_of_one_lie_together():
    class Held:
        device, count = torch.device("cpu"), 3
        labels = np.array([1.5, 4.5, 2.0, np.nan])
        images = torch.from_numpy(np.stack([scene() * 0, scene() * 255, scene() * 0, scene() * 0])).permute(0, 3, 1, 2)

    held = Held()
    held.images = held.images.to(torch.uint8)
    images, gaps = ladder_batch(held, 5, np.random.default_rng(0))  # type: ignore[arg-type]
    assert images.shape == (5 * RUNGS, 3, 64, 64)
    assert gaps.shape == (5, RUNGS - 1)
    assert (images.view(5, RUNGS, -1)[:, 0].mean(1) > 0.1).all()  # never the black crops
    held.labels = np.array([1.0, 2.0, 3.0])
    images, gaps = ladder_batch(held, 5, np.random.default_rng(0))  # type: ignore[arg-type]
    assert len(images) == len(gaps) == 0


def test_the_loss_is_the_shortfall_and_a_bad_image_needs_little():
    means = torch.tensor([[4.0, 3.9, 3.0], [1.5, 1.5, 1.5]], requires_grad=True)
    gaps = torch.tensor([[0.4, 0.2], [0.9, 0.9]])
    little = HEADROOM_SHARE * 0.5
    loss = ladder_loss(means, gaps)
    assert float(loss.detach()) == pytest.approx((0.3 + 0 + little + little) / 4 / PAIR_SCALE, rel=1e-5)
    loss.backward()
    assert means.grad is not None
    assert means.grad[0, 0] < 0 < means.grad[0, 1]  # the better one up, the worse one down
    assert means.grad[0, 2] == 0
    # A bad image's rating is no way to lower what is asked of it.
    torch.testing.assert_close(means.grad[1], torch.tensor([-1.0, 0.0, 1.0]) / (4 * PAIR_SCALE))


def test_the_noise_of_all_rungs_is_one_draw(monkeypatch):
    """Else a rung may be better than the one before it by chance."""
    for name in ("ON_ANY", "ON_SHARP"):
        monkeypatch.setattr(ladders, name, (ladders.add_noise,))
    for seed in range(8):
        (first, second, third), gaps = draw_ladder(0.4 + 0.2 * scene(), np.random.default_rng(seed))
        noises = [(rung - first).ravel() for rung in (second, third)]
        assert np.corrcoef(*noises)[0, 1] > 0.95
        assert np.std(noises[1]) > np.std(noises[0])
        assert gaps[0] > 0.1 * GAP
