"""A reward over unseen copies: what a copy may change, that patterns no longer pay, and the contract of a reward."""

import numpy as np
import pytest
import torch
from known_rewards import Cut
from tiny import make_image

from zoomiqa_reward import MetricReward, RobustReward
from zoomiqa_reward.rewards.robust import unseen_copy


def mean_of(image):
    return image.mean()


def chequered(image):
    """How much of a 2 px chequerboard, fixed to the image's corner, is in it: a pattern that a shift destroys."""
    height, width = image.shape[1:]
    board = (-1.0) ** (torch.arange(height)[:, None] + torch.arange(width)[None])
    return (image * board).mean()


def reward_of(fn, **options):
    return MetricReward(fn, fn.__name__, True, (-1, 1), differentiable=True, **options)


def test_a_copy_has_the_size_and_nearly_the_pixels():
    image = torch.linspace(0.2, 0.8, 70).expand(3, 90, 70).contiguous()  # moved by 4 px it changes by 0.035
    for seed in range(5):
        copy = unseen_copy(image, np.random.default_rng(seed))
        assert copy.shape == image.shape
        assert float(copy.min()) >= 0
        assert float(copy.max()) <= 1
        assert not torch.equal(copy, image)
        inner = (slice(None), slice(12, -12), slice(12, -12))
        assert float((copy - image)[inner].abs().max()) < 0.035 + 4 * 1 / 255 + 0.02


def test_without_movement_noise_and_with_the_best_jpeg_it_is_the_image(monkeypatch):
    for name, value in (("SHIFT_PX", 0.0), ("ZOOM", (1.0, 1.0)), ("NOISE", 0.0), ("QUALITY", (98, 98))):
        monkeypatch.setattr(f"zoomiqa_reward.rewards.robust.{name}", value)
    grey = make_image(0, 48, 40).mean(dim=0, keepdim=True).expand(3, -1, -1).contiguous()  # JPEG halves colour
    torch.testing.assert_close(unseen_copy(grey, np.random.default_rng(0)), grey, atol=0.02, rtol=0)


def test_a_shift_goes_where_it_says(monkeypatch):
    """All shifts 2 px to the right and 1 px down: pixel (y, x) of the copy is (y + 1, x + 2) of the image."""
    for name, value in (("ZOOM", (1.0, 1.0)), ("NOISE", 0.0), ("QUALITY", (98, 98))):
        monkeypatch.setattr(f"zoomiqa_reward.rewards.robust.{name}", value)

    class Fixed:
        def uniform(self, low=0.0, high=1.0, size=None):
            return low if size is None else np.array([2.0, 1.0])

        def standard_normal(self, shape, dtype):
            return np.zeros(shape, dtype)

        def integers(self, low, high, endpoint):
            return low

    grey = make_image(0, 48, 40).mean(dim=0, keepdim=True).expand(3, -1, -1).contiguous()
    copy = unseen_copy(grey, Fixed())
    torch.testing.assert_close(copy[:, 4:-4, 4:-4], grey[:, 5:-3, 6:-2], atol=0.02, rtol=0)


def test_a_pattern_that_nobody_sees_no_longer_pays():
    image = 0.5 * torch.ones(3, 64, 64)
    board = (-1.0) ** (torch.arange(64)[:, None] + torch.arange(64)[None])
    hacked = image + 0.02 * board
    plain, robust = reward_of(chequered), RobustReward(reward_of(chequered), copies=8)
    assert float(plain([hacked]).value) == pytest.approx(0.02, abs=1e-4)
    assert abs(float(robust([hacked]).value)) < 0.005
    assert float(RobustReward(reward_of(mean_of))([image + 0.1]).value) == pytest.approx(0.6, abs=0.01)


def test_the_same_image_gets_the_same_value_in_any_company():
    robust = RobustReward(reward_of(chequered), copies=3)
    one, other = make_image(0, 40, 40), make_image(1, 40, 40)
    alone, both = robust([one]), robust([other, one])
    assert torch.equal(alone.value[0], both.value[1])
    assert torch.equal(alone.std[0], both.std[1])
    assert robust.name == "chequered-robust3"
    assert robust.deterministic
    assert robust.fingerprint != RobustReward(reward_of(chequered), copies=4).fingerprint
    assert robust.fingerprint != RobustReward(reward_of(mean_of), copies=3).fingerprint


def test_mean_and_deviation_are_those_of_the_copies():
    scores = RobustReward(reward_of(chequered), copies=5)([make_image(0, 40, 40)])
    own = scores.info["copies"][0]
    assert len(own) == 5
    assert len(set(own)) == 5
    assert float(scores.value) == pytest.approx(np.mean(own), abs=1e-6)
    assert float(scores.std) == pytest.approx(np.std(own), abs=1e-6)


def test_the_gradient_is_that_of_the_mean_through_the_movement():
    """Of the mean: moved copies still sum to about the image, so each inner pixel's slope is about 1 / pixels."""
    image = make_image(0, 40, 40).requires_grad_()
    scores = RobustReward(reward_of(mean_of), copies=4)(image[None], grad=True)
    scores.value.sum().backward()
    inner = image.grad[:, 12:-12, 12:-12]
    assert float(inner.mean()) == pytest.approx(1 / image.numel(), rel=0.1)
    with torch.no_grad():
        plain = RobustReward(reward_of(mean_of), copies=4)([image.detach()])
    assert float(scores.value.detach()) == pytest.approx(float(plain.value), abs=1e-6)


def test_what_cannot_be_read_or_measured_is_not_valid(tmp_path):
    broken = tmp_path / "a.png"
    broken.write_bytes(b"no image")
    scores = RobustReward(reward_of(mean_of))([broken, make_image(0, 40, 40)])
    assert scores.valid.tolist() == [False, True]
    assert torch.isnan(scores.value[0])
    assert "a.png" in scores.info["errors"][0]
    assert scores.info["errors"][1] is None

    def sometimes(image):
        return float("nan") if float(image[0, 0, 0]) != 0.25 else 1.0

    scores = RobustReward(reward_of(sometimes))([make_image(0, 40, 40)])
    assert not bool(scores.valid[0])
    assert "sometimes" in scores.info["errors"][0]


def test_what_it_refuses():
    with pytest.raises(ValueError, match="copies=0"):
        RobustReward(reward_of(mean_of), copies=0)
    with pytest.raises(ValueError, match="compares with hr"):
        RobustReward(MetricReward(lambda image, hr: 0.0, "full", True, (0, 1), ["hr"]))
    robust = RobustReward(Cut())
    with pytest.raises(ValueError, match="cut the graph"):
        robust(make_image(0, 40, 40)[None].requires_grad_(), grad=True)
    with pytest.raises(ValueError, match="prompts holds 1"):
        RobustReward(reward_of(mean_of))([make_image(0, 40, 40)] * 2, prompts=["a"])
    assert len(RobustReward(reward_of(mean_of))([]).value) == 0
