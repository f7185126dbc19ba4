"""The check of a reward: statistics by hand, rewards with known answers, verdicts that follow from numbers."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from known_rewards import faithful, photo, verdicts, wrapped

from zoomiqa_reward import MetricReward
from zoomiqa_reward.check import Thresholds, run_check
from zoomiqa_reward.check.baselines import laplacian
from zoomiqa_reward.check.degenerate import EMPTYINGS
from zoomiqa_reward.check.ladders import DAMAGES, DETAIL, WORSENINGS, make_pool
from zoomiqa_reward.check.measures import measure_answers
from zoomiqa_reward.check.probes import Answers, Ascent, CheckScorer
from zoomiqa_reward.check.tallies import deviation, mean, pair_scores, ratio
from zoomiqa_reward.check.verdict import Criterion, judge
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.runs.bootstrap import bootstrap

# Statistics


def test_pairs_by_hand():
    assert pair_scores([4, 3, 3, 5]) == [1, 1, 0, 0.5, 0, 0]
    assert pair_scores([4, 3, 3, 5], most_apart=1) == [1, 0.5, 0]
    assert pair_scores([4, 3, 3, 5], least_apart=3) == [0]
    assert pair_scores([4, math.nan, 3]) == [1]
    assert pair_scores([math.nan, 1]) == []
    assert mean([0.5, 1, math.nan]) == 0.75
    assert deviation([1, 2, 3, math.nan], unbiased=True) == 1
    assert math.isnan(deviation([1], unbiased=True))
    assert ratio(1, 0) == math.inf


def answers_of(detail, sent, repeats=((1.0, 3.0),)):
    ladders = {damage.kind: tuple(range(len(damage.labels()), 0, -1)) for damage in DAMAGES} | {DETAIL: detail}
    empty = {way.kind: (1.0, *[math.nan for _ in way.steps]) for way in EMPTYINGS}
    return Answers(
        ladders=ladders, worsened={one.damage.kind: (5.0, 4.0, 3.0, 2.0, 1.0) for one in WORSENINGS}, empty=empty,
        contentless={kind: (False, *[True for _ in row[1:]]) for kind, row in empty.items()}, repeats=repeats,
        sent={"jpeg": sent}, ascent=Ascent(), num_asked=10, num_failed=0,
    )  # fmt: skip


def measured(*answers):
    return measure_answers(answers, images_per_s=1.0, megapixels_per_s=1.0)


TWO = Thresholds(min_images=2)
"""For rewards whose outcome is known, so that two photographs say enough."""


def two():
    return [photo("a", 0), photo("b", 1)]


@pytest.mark.integration
def test_the_intervals_are_those_of_the_measures_on_resampled_photographs():
    rng = np.random.default_rng(3)
    answers = [
        answers_of(rng.random(5).tolist(), (4, 3, 2, 1, 0), ((1.0, 1.0 + float(rng.random())),)) for _ in range(12)
    ]
    found = measured(*answers)
    again = bootstrap(
        lambda index: {"it": mean(s for k in index for s in pair_scores(answers[k].ladders[DETAIL]))}, np.arange(12)
    )
    assert found.intervals["detail_in_order"] == pytest.approx(again["it"])
    assert found.intervals["detail_in_order"][0] < found.detail_in_order < found.intervals["detail_in_order"][1]
    of_noise = bootstrap(lambda index: {"it": measured(*[answers[k] for k in index]).noise_to_signal}, np.arange(12),
                         draws=40)  # fmt: skip
    low, high = of_noise["it"]
    assert found.intervals["noise_to_signal"] == pytest.approx((low, high), rel=0.3)
    assert found.intervals["measured_share"] == (1, 1)
    assert measured(answers[0]).intervals == {}


def test_noise_of_few_repeats_is_not_made_small_by_their_number():
    """1 and 3 have the deviation sqrt(2) as a sample, 1 only as a population; the root of the mean square over rows."""
    found = measured(answers_of((4, 3, 2, 1), (4, 3, 2, 1), repeats=((1.0, 3.0), (5.0, 5.0))))
    assert found.repeat_deviation == pytest.approx(1.0)  # sqrt((2 + 0) / 2)
    assert found.noise_to_signal == pytest.approx(1.0 / found.spread)


def test_an_order_is_kept_where_ties_stay_ties_and_pairs_their_direction():
    """Before 4, 3, 3, 1: one tie. Sent: the tie becomes an order, one pair a tie, and the last one turns round."""
    [transport] = measured(answers_of((4, 3, 3, 1), (4, 4, 3, 5))).transports
    # pairs 01: > to =; 02: kept; 03: > to <; 12: = to >; 13: > to <; 23: > to <
    assert transport.order_kept == pytest.approx(1 / 6)
    assert transport.shift == pytest.approx((0 + 1 + 0 + 4) / 4)
    [rising] = measured(answers_of((3, 3, 2, 1), (3, 4, 2, 1))).transports  # the tie falls the other way
    assert rising.order_kept == pytest.approx(5 / 6)


# Rewards with known answers


def test_a_faithful_reward_is_fit_for_everything():
    report = run_check(faithful(differentiable=True), two(), thresholds=TWO)
    measures = report.measures
    assert verdicts(report) == {"best-of-n": "fit", "dpo": "fit", "gradients": "fit"}
    assert measures.pairs_in_order == measures.far_pairs_in_order == measures.detail_in_order == 1
    assert measures.noise_to_signal == 0
    assert measures.weakest_worsened_in_order == 1
    assert measures.degenerate_preferred == 0
    assert 0 < measures.ascent.rise_to_spread < 1
    assert measures.ascent.random_change < 0
    assert (report.errors, report.notes) == ((), ())
    # Blending shares s of the way leave errors that grow with s^2: the spread within one source by hand.
    pools = [make_pool(photo("a", 0)), make_pool(photo("b", 1))]
    whole = [float((p.ladders[DETAIL][4] - p.hr).square().mean()) for p in pools]
    squares = torch.tensor([0, 0.25, 0.5, 0.75, 1.0]).square()
    expected = float(squares.std(correction=0)) * math.sqrt(sum(w * w for w in whole) / 2)
    assert measures.spread == pytest.approx(expected, rel=1e-3)


def test_its_opposite_is_fit_for_nothing():
    opposite = wrapped(lambda image, hr: (image - hr).square().mean(), needs=("hr",))
    report = run_check(opposite, two(), thresholds=TWO)
    assert report.measures.pairs_in_order == 0
    assert report.measures.degenerate_preferred == 1
    assert set(verdicts(report).values()) == {"not fit"}


def test_the_sharper_the_better_falls_for_noise_and_sharpening():
    report = run_check(laplacian(), two(), thresholds=TWO)
    found = {ladder.kind: ladder.pairs_in_order for ladder in report.measures.ladders}
    assert found["oversharpen"] == found["noise"] == 0
    assert found["blur"] == found["downsample"] == found[DETAIL] == 1
    assert report.measures.detail_in_order == 1  # so that the right order of one pool is not enough
    assert set(verdicts(report).values()) == {"not fit"}
    reasons = {criterion.name for criterion in report.verdicts[1].reasons}
    assert "weakest_in_order" in reasons


def test_a_constant_has_no_signal():
    report = run_check(wrapped(lambda image: 0.0), two(), thresholds=TWO)
    measures = report.measures
    assert measures.pairs_in_order == measures.degenerate_preferred == 0.5
    assert measures.contentless_rated == 1
    assert (measures.spread, measures.noise_to_signal) == (0, math.inf)
    assert all(way.order_kept == 1 for way in measures.transports)  # ties stay ties
    assert verdicts(report)["best-of-n"] == "not fit"
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["measures"]["noise_to_signal"] == "Infinity"


def test_noise_is_measured_and_a_false_promise_named():
    generator = torch.Generator().manual_seed(0)
    sigma = 0.3

    def noisy(image, hr):
        return -(image - hr).square().mean() + sigma * torch.randn((), generator=generator)

    reward = MetricReward(noisy, "noisy", True, (-10, 10), needs=("hr",), deterministic=True)
    report = run_check(reward, [photo()], repeats=60)
    assert report.measures.repeat_deviation == pytest.approx(sigma, rel=0.25)  # 118 degrees of freedom: 6.5 % each
    assert report.measures.noise_to_signal == report.measures.repeat_deviation / report.measures.spread
    [note] = report.notes
    assert "deterministic=True" in note
    honest = MetricReward(noisy, "noisy", True, (-10, 10), needs=("hr",), deterministic=False)
    assert run_check(honest, [photo()]).notes == ()


def test_a_failure_is_counted_and_is_no_value():
    def fails_on_heavy_noise(image, hr):
        error = float((image - hr).square().mean())
        return math.nan if error > 0.02 else -error

    report = run_check(wrapped(fails_on_heavy_noise, "shy", needs=("hr",)), [photo("here")])
    noise = next(ladder for ladder in report.measures.ladders if ladder.kind == "noise")
    assert math.isnan(noise.means[4])
    assert noise.pairs_in_order == 1
    assert len(report.errors) > 0
    assert report.errors[0] == "here: shy returned nan"
    asked = 3 * 2 + 25 + 4 * 5 + 15
    assert report.measures.measured_share == pytest.approx(1 - len(report.errors) / asked)


def test_nothing_measured_is_no_verdict_of_fitness():
    report = run_check(wrapped(lambda image: math.nan), two(), thresholds=TWO)
    assert report.measures.measured_share == 0
    assert (report.measures.contentless_rated, report.measures.degenerate_preferred) == (0, 0)
    assert math.isnan(report.measures.pairs_in_order)
    assert report.measures.weakest_kind is None
    assert set(verdicts(report).values()) == {"not fit"}
    # The verdict itself, with everything else in order: no value is neither fit nor a failure.
    measures = replace(report.measures, measured_share=1.0, intervals={})
    assert judge(measures, TWO)[0].verdict == "not measured"
    assert "pairs_in_order not measured" in str(judge(measures, TWO)[0].reasons[0])


def test_thresholds_decide():
    report = run_check(laplacian(), two())
    lenient = Thresholds(min_images=2, min_pairs=0, min_far_pairs=0, min_weakest_chosen=0, min_weakest_trained=0,
                         max_degenerate_preferred=1, max_contentless_rated=1)  # fmt: skip
    assert [one.verdict for one in judge(report.measures, lenient)][:2] == ["fit", "fit"]
    at_the_edge = replace(report.measures, noise_to_signal=0.5, intervals={})
    assert judge(at_the_edge, lenient)[0].verdict == "fit"
    above = replace(at_the_edge, noise_to_signal=0.51)
    assert judge(above, lenient)[0].verdict == "not fit"
    assert judge(above, lenient)[1].verdict == "fit"


# Verdicts, intervals and the least number of images


def test_value_and_interval_decide_together():
    def met(value, low, high, **wanted):
        return Criterion(name="x", value=value, low=low, high=high, **wanted).met

    assert met(0.92, 0.9, 0.95, at_least=0.9) is True
    assert met(0.92, 0.89, 0.95, at_least=0.9) is None  # the interval holds the threshold
    assert met(0.88, 0.85, 0.91, at_least=0.9) is None
    assert met(0.88, 0.85, 0.89, at_least=0.9) is False
    assert met(math.inf, math.nan, math.nan, at_most=1.0) is False
    assert met(math.nan, 0.5, 0.6, at_least=0.1) is None
    # Never and always: one counterexample decides, although the interval reaches the threshold.
    assert met(0.01, 0.0, 0.03, at_most=0.0) is False
    assert met(0.99, 0.95, 1.0, at_least=1.0) is False
    text = str(Criterion(name="x", value=0.92, low=0.89, high=0.95, at_least=0.9))
    assert text == "x 0.92 [0.89, 0.95], wanted at least 0.9"


def test_an_interval_that_holds_the_threshold_is_undecided():
    report = run_check(faithful(), two(), thresholds=TWO)
    unsure = replace(report.measures, intervals=report.measures.intervals | {"pairs_in_order": (0.8, 1.0)})
    verdict = judge(unsure, TWO)[0]
    assert (verdict.verdict, verdict.is_reached) == ("undecided", False)
    assert [one.name for one in verdict.reasons] == ["pairs_in_order"]
    assert judge(unsure, TWO)[1].verdict == "fit"


@pytest.mark.parametrize("reward", [faithful(), laplacian()])
def test_below_the_least_number_of_images_no_use_has_a_verdict(reward):
    report = run_check(reward, two(), thresholds=Thresholds(min_images=3))
    assert set(verdicts(report).values()) == {"too few images"}
    found = report.as_json()["verdicts"]["dpo"]
    assert (found["verdict"], found["num_images"], found["min_images"]) == ("too few images", 2, 3)
    assert report.measures.detail_in_order == 1  # measured all the same
    assert set(verdicts(run_check(reward, two())).values()) == {"too few images"}
    assert "too few images" not in [one.verdict for one in judge(report.measures, TWO)]
    with pytest.raises(ValueError, match="min_images=1"):
        Thresholds(min_images=1)


def test_everything_needed_is_given():
    pool = make_pool(photo())
    seen = {}

    def look(image, lq, hr, prompt):
        seen.update(lq=lq, hr=hr, prompt=prompt)
        return 0.0

    CheckScorer(wrapped(look, needs=("lq", "hr", "prompts")))([pool.hr], pool)
    assert torch.equal(seen["lq"], pool.lq)
    assert torch.equal(seen["hr"], pool.hr)
    assert seen["prompt"] == ""


@pytest.mark.parametrize(("width", "height"), [(128, 128), (130, 97)])
def test_a_source_is_always_a_whole_number_of_times_smaller(width, height):
    """Some rewards refuse anything else, the conditioned one among them."""
    sizes = set()

    def look(image, lq):
        sizes.add((tuple(image.shape[1:]), tuple(lq.shape[1:])))
        return 0.0

    run_check(wrapped(look, needs=("lq",)), [photo(width=width, height=height)])
    assert len(sizes) == 2  # as it is, and resized
    assert all((4 * low[0], 4 * low[1]) == high for high, low in sizes)


def test_a_sum_within_groups_is_refused():
    composite = CompositeReward([Term(laplacian(), 1.0, "z")])
    with pytest.raises(ValueError, match="use its terms one by one"):
        run_check(composite, [photo()])


def test_wrong_calls_say_what_is_wrong():
    with pytest.raises(ValueError, match="no photographs"):
        run_check(laplacian(), [])
    with pytest.raises(ValueError, match="repeats=1"):
        run_check(laplacian(), [photo()], repeats=1)
