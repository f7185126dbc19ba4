"""Progressive Re-sampling against numbers worked out by hand, on KonIQ-10k's true distribution of scores."""

import numpy as np
import pytest

from train_iqa.rl.resampling import ResamplingConfig, draw_images, image_chances, level_of

KONIQ = (118, 656, 1607, 3440, 1237)
"""Images of each fifth of the scale in the official training split (7058 in all)."""
MOS = np.repeat([1.4, 2.2, 3.0, 3.8, 4.6], KONIQ)


def level_shares(alpha):
    return np.bincount(level_of(MOS, 5), weights=image_chances(MOS, 5, alpha))


def test_alpha_0_is_the_natural_distribution():
    """118 / 7058 = 0.016719 and so on; every image has 1 / 7058."""
    assert level_shares(0.0) == pytest.approx(np.array(KONIQ) / 7058)
    assert image_chances(MOS, 5, 0.0) == pytest.approx(np.full(7058, 1 / 7058))


def test_alpha_1_is_balanced():
    """Each level a fifth: an image of the lowest has 0.2 / 118 = 0.0016949, of the fourth 0.2 / 3440 = 0.00005814."""
    assert level_shares(1.0) == pytest.approx([0.2] * 5)
    chances = image_chances(MOS, 5, 1.0)
    assert chances[0] == pytest.approx(0.00169492, abs=1e-8)
    assert chances[118 + 656 + 1607] == pytest.approx(0.0000581395, abs=1e-10)


def test_alpha_one_half_by_hand():
    """n^(1/2): 10.8628, 25.6125, 40.0874, 58.6515, 35.1710; their sum is 170.3852."""
    shares = [10.8628 / 170.3852, 25.6125 / 170.3852, 40.0874 / 170.3852, 58.6515 / 170.3852, 35.1710 / 170.3852]
    assert level_shares(0.5) == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "alphas"),
    [("linear", [0, 0.25, 0.5, 1]), ("step", [0, 0, 1, 1]), ("cosine", [0, 0.146447, 0.5, 1])],
)
def test_schedules_by_hand(schedule, alphas):
    """Cosine at a quarter: (1 - cos 45 degrees) / 2 = (1 - 0.707107) / 2 = 0.146447."""
    forward, reverse = ResamplingConfig(schedule=schedule), ResamplingConfig(schedule=schedule, start=1.0, end=0.0)
    for progress, alpha in zip((0.0, 0.25, 0.5, 1.0), alphas, strict=True):
        assert forward.alpha(progress) == pytest.approx(alpha, abs=1e-6)
        assert reverse.alpha(progress) == pytest.approx(1 - alpha, abs=1e-6)


def test_levels_at_the_edges():
    assert level_of([1.0, 1.7999, 1.8, 2.6, 3.4, 4.2, 5.0], 5).tolist() == [0, 0, 1, 2, 3, 4, 4]


def test_drawn_images_are_different_repeatable_and_follow_alpha():
    def draw(seed, progress):
        return draw_images(MOS, 8, ResamplingConfig(), progress, np.random.default_rng(seed))

    assert len(set(draw(0, 1.0).tolist())) == 8
    assert draw(0, 0.5).tolist() == draw(0, 0.5).tolist()
    lowest = [np.mean([(draw(seed, progress) < 118).sum() for seed in range(150)]) / 8 for progress in (0.0, 1.0)]
    assert lowest == pytest.approx([118 / 7058, 0.2], abs=0.035)  # 1200 draws: 3 standard errors are 0.035


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="lower images_per_step"):
        draw_images([1.0, 2.0], 3, ResamplingConfig(), 0.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="alpha"):
        ResamplingConfig(end=2.0)
