"""Best of N for less: a second reward for the few best only, and no more draws than are worth it."""

import math

import numpy as np
import pytest
import torch
from brightness_runs import run, same
from scipy import integrate, stats

from restoration.restorer.restorer import Restorer
from restoration.selection.best_of_n import Cascade, best_of_n
from restoration.selection.early_stop import EarlyStop, expected_improvement
from zoomiqa_reward.rewards.metric import MetricReward


def test_cascade_asks_about_the_few_best_and_they_come_first(tmp_path):
    asked = []

    def contrary(image):
        asked.append(float(image.mean()))
        return -float(image.mean())

    second = MetricReward(contrary, "contrary", True, (-1, 0), fingerprint="contrary")  # its closure grows
    cascade = Cascade(reward=second, top=3)
    plain = run(n=6)
    result = run(n=6, cascade=cascade, out=tmp_path)
    best = [one.index for one in plain.order]
    assert [one.index for one in result.order] == [*best[2::-1], *best[3:]]
    assert len(asked) == 3
    assert [one.cascade_score for one in result.order[:3]] == pytest.approx(sorted((-a for a in asked), reverse=True))
    assert all(math.isnan(one.cascade_score) for one in result.order[3:])
    assert same(run(n=6, cascade=cascade, out=tmp_path), result)
    assert len(asked) == 3
    assert same(run(n=6, out=tmp_path), plain)
    assert same(run(n=6, keep=1, cascade=cascade), result)  # without a folder the images are held for it


@pytest.mark.parametrize(("n", "keep", "top", "models"), [(6, 4, 3, 3), (8, 4, 3, 4), (3, 1, 3, 3), (9, 1, 2, 3)])
def test_a_cascade_over_several_deterministic_restorers_asks_about_each_image_once(n, keep, top, models):
    """Their copies held images of their own once, so that those of other restorers were gone when asked for."""

    def network(k):
        def enlarge(image):
            return (0.9 - 0.1 * k) * torch.nn.functional.interpolate(image[None], scale_factor=2)[0]

        return Restorer.from_pretrained(enlarge, name=f"network{k}", scale=2)

    asked = []

    def contrary(image):
        asked.append(float(image.mean()))
        return -asked[-1]

    lq = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    first = MetricReward(lambda image: float(image.mean()), "mean", True, (0, 1))
    cascade = Cascade(reward=MetricReward(contrary, "contrary", True, (-1, 0)), top=top)
    pool = [network(k) for k in range(models)]
    result = best_of_n(pool, lq, first, n=n, keep=keep, cascade=cascade, progress=False)
    assert len(asked) == top
    assert result.best.restorer == f"network{top - 1}"
    held = {one.pixels for one in result.candidates if one.has_image()}
    assert len(held) == min(models, max(keep, top))


def test_a_cascade_that_cannot_tell_leaves_the_first_order():
    blind = MetricReward(lambda image: math.nan, "blind", True, (0, 1))
    result = run(cascade=Cascade(reward=blind, top=2))
    assert [one.index for one in result.order] == [one.index for one in run().order]
    assert "blind returned nan" in result.best.cascade_error


@pytest.mark.parametrize("scores", [[2.0, 3.0, 4.0], [1.0, 1.2, 0.7, 3.9, 2.0], [0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.1]])
def test_expected_improvement_is_its_integral(scores):
    for best in (max(scores), max(scores) + 0.3, sum(scores) / len(scores)):
        scale = np.std(scores, ddof=1) * math.sqrt(1 + 1 / len(scores))
        centre, freedom = np.mean(scores), len(scores) - 1
        value, _ = integrate.quad(
            lambda x, b=best, c=centre, s=scale, v=freedom: (x - b) * stats.t.pdf((x - c) / s, v) / s, best, np.inf
        )
        assert expected_improvement(scores, best) == pytest.approx(value, rel=1e-6)


def test_early_stopping_follows_its_rule_and_resumes_alike(tmp_path):
    rule = EarlyStop(min_gain=0.004, min_draws=4)
    full = [one.score for one in run(n=40).candidates]
    first = next(m for m in range(4, 41) if expected_improvement(full[:m], max(full[:m])) < 0.004)
    assert 4 < first < 40
    result = run(n=40, early_stop=rule, out=tmp_path)
    assert len(result.candidates) == first
    assert result.stopped_early
    assert f"stopped after {first} of 40" in result.notes[0]
    assert same(run(n=40, early_stop=rule, out=tmp_path), result)
    assert not run(n=first, early_stop=rule).stopped_early


def test_early_stopping_looks_at_each_source():
    rule = EarlyStop(min_gain=0.01)
    tight, wide = [1.0, 1.001, 0.999, 1.0], [0.0, 0.9, 0.1, 0.5]
    assert rule.says_stop([tight])
    assert not rule.says_stop([tight, wide])
    assert not rule.says_stop([tight, tight[:3]])
    assert rule.says_stop([tight, [0.2, 0.2, 0.2, 0.2]])
    assert not rule.says_stop([])
