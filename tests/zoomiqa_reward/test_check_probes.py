"""The check's probes beyond order: ascent along the gradient, and what transport changes."""

import math

import pytest
import torch
from known_rewards import Cut, faithful, photo, verdicts, wrapped
from skimage import data

from zoomiqa_reward.check import Thresholds, run_check
from zoomiqa_reward.check.baselines import laplacian, laplacian_variance
from zoomiqa_reward.check.degenerate import HONEST, empty_rows
from zoomiqa_reward.check.ladders import DETAIL, Photograph, make_pool, through_png
from zoomiqa_reward.check.probes import EPSILON, CheckScorer, climb
from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.images.loading import load_image

TWO = Thresholds(min_images=2)

# Adversarial probe


def test_ascent_of_a_linear_reward_is_known():
    """Value w·x with |w| = 1: from x inside the range the limit is reached everywhere, so the rise is epsilon n."""
    pool = make_pool(photo())
    start = pool.ladders[DETAIL][-1]
    signs = torch.sign(torch.randn(start.shape, generator=torch.Generator().manual_seed(3)))
    linear = wrapped(lambda image: (image.double() * signs).sum().float(), score_range=(-999, 999), differentiable=True)
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
    report = run_check(wrapped(lambda image: float(image.mean())), [photo(), photo("b", 1)], thresholds=TWO)
    assert report.measures.ascent.error == "not differentiable"
    assert math.isnan(report.measures.ascent.rise)
    last = report.verdicts[2]
    assert last.verdict == "not fit"
    assert "gradient_share 0 [0, 0] (not differentiable), wanted at least 1" in [str(one) for one in last.reasons]


def test_a_cut_graph_is_found():
    report = run_check(Cut(), [photo(), photo("b", 1)], thresholds=TWO)
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
    assert shifts == {"png": 0, "jpeg 75": 0, "resize 7/8": 60 - 68}  # multiples of 4


def test_jpeg_disturbs_what_png_does_not():
    png, jpeg, resize = run_check(laplacian(), [photo(seed=s) for s in range(2)]).measures.transports
    assert png.change_to_spread < 0.01 < jpeg.change_to_spread
    assert png.order_kept == 1
    assert resize.shift < 0 or resize.shift > 0


# Emptied images

GONE = {
    "blank": (False, True, True, True), "dark": (False, False, True), "low contrast": (False, False, True),
    "blurred away": (False, True, True),
}  # fmt: skip


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_what_shows_nothing_is_contentless_and_what_shows_little_is_not(name):
    pool = make_pool(Photograph(name=name, image=load_image(getattr(data, name)()[60:348, 60:348].copy())))
    rows = empty_rows(pool.hr, pool.enlarged)
    assert {kind: tuple(contentless(image) is not None for image in row) for kind, row in rows.items()} == GONE
    for row in rows.values():
        assert row[0] is pool.enlarged
        assert all(image.shape == pool.hr.shape for image in row)
        errors = [float((image - pool.hr).square().mean()) for image in row]
        assert min(errors) == errors[0]  # the honest candidate is the closest


def checked(reward):
    return run_check(reward, [photo("a", 0), photo("b", 1)], thresholds=TWO)


def failed_criteria(report):
    return [{one.name for one in verdict.criteria if one.met is False} for verdict in report.verdicts]


def test_a_reward_that_likes_an_empty_image_fails_every_use():
    """The darker the better: black and dark before the honest candidate, white and the mean colour not."""
    report = checked(wrapped(lambda image: -image.mean(), "dark"))
    liked = {row.kind: dict(zip(row.labels, row.preferred, strict=True)) for row in report.measures.empty}
    assert liked["blank"]["black"] == liked["dark"]["1/8 as bright"] == liked["dark"]["1/32 as bright"] == 1
    assert liked["blank"]["white"] == liked["blank"][HONEST] == 0
    for names in failed_criteria(report):
        assert {"degenerate_preferred", "contentless_rated"} <= names
    [criterion] = [one for one in report.verdicts[0].criteria if one.name == "degenerate_preferred"]
    assert "blank: black" in criterion.note
    assert "white" not in criterion.note


def test_a_value_for_nothing_fails_and_no_value_passes():
    """Contrast is right about all empty images, and still a number for a black one is made up."""
    rated = wrapped(lambda image: image.std(), "contrast")
    silent = wrapped(lambda image: math.nan if contentless(image) else image.std(), "contrast")
    assert checked(rated).measures.contentless_rated == 1
    assert all("contentless_rated" in names for names in failed_criteria(checked(rated)))
    report = checked(silent)
    assert (report.measures.contentless_rated, report.measures.degenerate_preferred) == (0, 0)
    assert not any({"contentless_rated", "degenerate_preferred"} & names for names in failed_criteria(report))
    assert report.measures.measured_share == 1  # no value where there is nothing to value is no failure
    assert report.errors == ()


def test_a_reward_that_compares_may_rate_a_blank_image_as_long_as_it_is_worst():
    report = checked(faithful())
    assert report.measures.contentless_rated == 1
    assert verdicts(report)["dpo"] == "fit"
    upside_down = checked(wrapped(lambda image, hr: (image - hr).square().mean(), needs=("hr",)))
    assert all("degenerate_preferred" in names for names in failed_criteria(upside_down))


def test_where_only_the_honest_candidate_lacks_a_value_the_empty_one_is_preferred():
    """A reward without a value for soft images, and with one for faded ones: best-of-N would choose the faded one."""
    soft = make_pool(photo()).enlarged
    shy = wrapped(lambda image: math.nan if image.shape == soft.shape and torch.equal(image, soft) else 0.0, "shy")
    report = run_check(shy, [photo(), photo()], thresholds=TWO)
    assert report.measures.degenerate_preferred == 1


# Damage done to bad images


def test_what_raises_a_bad_image_is_found():
    """Exact about every ladder of a clean image; on a soft one, grain pays."""

    def reward(image, hr):
        error = (image - hr).square().mean()
        soft = float(laplacian_variance(image)) < 0.9 * float(laplacian_variance(hr))
        return -error if soft else 1 - error

    worst = checked(wrapped(reward, needs=("hr",))).measures
    assert worst.weakest_worsened_kind in ("noise on blur", "noise on soft")
    assert worst.weakest_worsened_in_order < 0.7
    assert checked(faithful()).measures.weakest_worsened_in_order == 1


def test_every_step_on_a_bad_image_is_further_from_the_photograph():
    pool = make_pool(photo())
    assert set(pool.worsened) == {"noise on blur", "noise on soft", "edges on noise", "edges on jpeg"}
    for kind, steps in pool.worsened.items():
        errors = [float((step - pool.hr).square().mean()) for step in steps]
        assert errors == sorted(set(errors)), kind
        assert errors[0] > 0
