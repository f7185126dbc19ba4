"""The check's probes beyond order: ascent along the gradient, and what transport changes."""

import math

import pytest
import torch
from known_rewards import Cut, photo, verdicts, wrapped

from zoomiqa_reward.check import run_check
from zoomiqa_reward.check.ascent import EPSILON, climb
from zoomiqa_reward.check.baselines import laplacian
from zoomiqa_reward.check.ladders import DETAIL, make_pool, through_png
from zoomiqa_reward.check.scoring import CheckScorer

# Adversarial probe


def test_ascent_of_a_linear_reward_is_known():
    """Value w·x with |w| = 1: from x inside the range the limit is reached everywhere, so the rise is epsilon n."""
    pool = make_pool(photo())
    start = pool.ladders[DETAIL][-1]
    signs = torch.sign(torch.randn(start.shape, generator=torch.Generator().manual_seed(3)))
    linear = wrapped(lambda image: (image.double() * signs).sum().float(), differentiable=True)
    found = climb(linear, pool, CheckScorer(linear))
    inside = float(((start + EPSILON * signs).clamp(0, 1) - start).double().mul(signs).sum())
    assert inside > 0.9 * EPSILON * start.numel()  # hardly any value is stopped at black or white
    assert found.rise == pytest.approx(inside, rel=1e-3)
    assert abs(found.random - found.start) < 0.1 * found.rise
    assert found.has_gradient


def test_a_gradient_of_zero_is_none():
    pool = make_pool(photo())
    flat = wrapped(lambda image: 0 * image.sum(), differentiable=True)
    found = climb(flat, pool, CheckScorer(flat))
    assert (found.rise, found.has_gradient) == (0, False)
    report = run_check(flat, [photo()])
    assert report.measures.ascent.gradient_share == 0
    assert "not every image has a gradient" in report.notes[0]


def test_not_differentiable_says_so():
    report = run_check(wrapped(lambda image: float(image.mean())), [photo()])
    assert report.measures.ascent.error == "not differentiable"
    assert math.isnan(report.measures.ascent.rise)
    last = report.verdicts[2]
    assert last.verdict == "not fit"
    assert "gradient_share 0 (not differentiable), wanted at least 1" in [str(one) for one in last.reasons]


def test_a_cut_graph_is_found():
    report = run_check(Cut(), [photo()])
    assert "cut the graph" in report.measures.ascent.error
    assert report.measures.ascent.gradient_share == 0
    assert verdicts(report)["gradients"] == "not fit"


# Transport


def test_png_rounds_and_nothing_else():
    pool = make_pool(photo())
    sent = through_png(pool.hr)
    assert 0 < float((sent - pool.hr).abs().max()) <= 0.5 / 255 + 1e-6
    assert torch.equal(through_png(sent), sent)


def test_transport_by_hand():
    report = run_check(wrapped(lambda image: image.shape[2]), [photo(width=70, height=70)])
    shifts = {way.name: way.shift for way in report.measures.transports}
    assert shifts == {"png": 0, "jpeg 75": 0, "resize 7/8": round(70 * 7 / 8) - 70}


def test_jpeg_disturbs_what_png_does_not():
    png, jpeg, resize = run_check(laplacian(), [photo(seed=s) for s in range(2)]).measures.transports
    assert png.change_to_spread < 0.01 < jpeg.change_to_spread
    assert png.order_kept == 1
    assert resize.shift < 0 or resize.shift > 0
