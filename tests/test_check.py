"""The check of a reward: ladders whose order is true, probes with known answers, verdicts that follow from numbers."""

import ast
import importlib.util
import json
import math
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from tiny import picture, tiny_checkpoint

from zoomiqa_reward import MetricReward, cli
from zoomiqa_reward.check import (
    Photograph,
    Thresholds,
    bundled_photographs,
    find_reward,
    ladder_figure,
    load_photographs,
    run_check,
)
from zoomiqa_reward.check.ascent import EPSILON, climb
from zoomiqa_reward.check.baselines import laplacian, laplacian_variance
from zoomiqa_reward.check.figure import CELL_PX, HEAD_PX, LABEL_PX
from zoomiqa_reward.check.ladders import DAMAGES, DETAIL, blur, make_pool, reduce, through_png
from zoomiqa_reward.check.order import deviation, mean, pair_scores, ratio
from zoomiqa_reward.check.scoring import Scorer
from zoomiqa_reward.check.verdict import judge
from zoomiqa_reward.composite import CompositeReward, Term
from zoomiqa_reward.images import load_image
from zoomiqa_reward.ratings import Scores

LAPLACIAN = "zoomiqa_reward.check.baselines:laplacian"
OPTIONS = (
    "--adapter --count --crop-px --device --figure --help --mode --model --num-samples --protocol --question "
    "--repeats --reward"
)


def photo(name="a", seed=0, height=80, width=72):
    """Detail on several scales, kept off black and white."""
    return Photograph(name=name, image=0.1 + 0.8 * picture(seed, height, width))


def wrapped(fn, name="r", **options):
    return MetricReward(fn, name, True, (-10, 10), **options)


def faithful(**options):
    """Better the closer to the photograph: always right, and smooth."""
    return wrapped(lambda image, hr: -(image - hr).square().mean(), "faithful", needs=("hr",), **options)


def verdicts(report):
    return {one.use: one.verdict for one in report.verdicts}


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


# Rewards with known answers


def test_a_faithful_reward_is_fit_for_everything():
    report = run_check(faithful(differentiable=True), [photo("a", 0), photo("b", 1)])
    measures = report.measures
    assert verdicts(report) == {"best-of-n": "fit", "dpo": "fit", "gradients": "fit"}
    assert measures.pairs_in_order == measures.far_pairs_in_order == measures.detail_in_order == 1
    assert measures.noise_to_signal == 0
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
    report = run_check(opposite, [photo()])
    assert report.measures.pairs_in_order == 0
    assert set(verdicts(report).values()) == {"not fit"}


def test_the_sharper_the_better_falls_for_noise_and_sharpening():
    report = run_check(laplacian(), [photo(seed=s) for s in range(2)])
    found = {ladder.kind: ladder.pairs_in_order for ladder in report.measures.ladders}
    assert found["oversharpen"] == found["noise"] == 0
    assert found["blur"] == found["downsample"] == found[DETAIL] == 1
    assert report.measures.detail_in_order == 1  # so that the right order of one pool is not enough
    assert set(verdicts(report).values()) == {"not fit"}
    reasons = {criterion.name for criterion in report.verdicts[1].reasons}
    assert "weakest_in_order" in reasons


def test_a_constant_has_no_signal():
    report = run_check(wrapped(lambda image: 0.0), [photo()])
    measures = report.measures
    assert measures.pairs_in_order == 0.5
    assert (measures.spread, measures.noise_to_signal) == (0, math.inf)
    assert all(way.order_kept == 1 for way in measures.transports)  # ties stay ties
    assert verdicts(report)["best-of-n"] == "not fit"
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["measures"]["noise_to_signal"] is None


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
    asked = 3 * 2 + 25 + 15
    assert report.measures.measured_share == pytest.approx(1 - len(report.errors) / asked)


def test_nothing_measured_is_no_verdict_of_fitness():
    report = run_check(wrapped(lambda image: math.nan), [photo()])
    assert report.measures.measured_share == 0
    assert math.isnan(report.measures.pairs_in_order)
    assert report.measures.weakest_kind is None
    assert set(verdicts(report).values()) == {"not fit"}
    # The verdict itself, with everything else in order: no value is neither fit nor a failure.
    measures = replace(report.measures, measured_share=1.0)
    assert judge(measures)[0].verdict == "not measured"
    assert "pairs_in_order not measured" in str(judge(measures)[0].reasons[0])


def test_thresholds_decide():
    report = run_check(laplacian(), [photo()])
    lenient = Thresholds(min_pairs=0, min_far_pairs=0, min_weakest_chosen=0, min_weakest_trained=0)
    assert [one.verdict for one in judge(report.measures, lenient)][:2] == ["fit", "fit"]
    at_the_edge = replace(report.measures, noise_to_signal=0.5)
    assert judge(at_the_edge, lenient)[0].verdict == "fit"
    assert judge(replace(report.measures, noise_to_signal=0.51), lenient)[0].verdict == "not fit"
    assert judge(replace(report.measures, noise_to_signal=0.51), lenient)[1].verdict == "fit"


def test_everything_needed_is_given(pool):
    seen = {}

    def look(image, lq, hr, prompt):
        seen.update(lq=lq, hr=hr, prompt=prompt)
        return 0.0

    Scorer(wrapped(look, needs=("lq", "hr", "prompts")))([pool.hr], pool)
    assert torch.equal(seen["lq"], pool.lq)
    assert torch.equal(seen["hr"], pool.hr)
    assert seen["prompt"] == ""


def test_a_sum_within_groups_is_refused():
    composite = CompositeReward([Term(laplacian(), 1.0, "z")])
    with pytest.raises(ValueError, match="check its terms one by one"):
        run_check(composite, [photo()])


def test_wrong_calls_say_what_is_wrong():
    with pytest.raises(ValueError, match="no photographs"):
        run_check(laplacian(), [])
    with pytest.raises(ValueError, match="repeats=1"):
        run_check(laplacian(), [photo()], repeats=1)


# Adversarial probe


def test_ascent_of_a_linear_reward_is_known(pool):
    """Value w·x with |w| = 1: from x inside the range the limit is reached everywhere, so the rise is epsilon n."""
    start = pool.ladders[DETAIL][-1]
    signs = torch.sign(torch.randn(start.shape, generator=torch.Generator().manual_seed(3)))
    linear = wrapped(lambda image: (image.double() * signs).sum().float(), differentiable=True)
    found = climb(linear, pool, Scorer(linear))
    inside = float(((start + EPSILON * signs).clamp(0, 1) - start).double().mul(signs).sum())
    assert inside > 0.9 * EPSILON * start.numel()  # hardly any value is stopped at black or white
    assert found.rise == pytest.approx(inside, rel=1e-3)
    assert abs(found.random - found.start) < 0.1 * found.rise
    assert found.has_gradient


def test_a_gradient_of_zero_is_none(pool):
    flat = wrapped(lambda image: 0 * image.sum(), differentiable=True)
    found = climb(flat, pool, Scorer(flat))
    assert (found.rise, found.has_gradient) == (0, False)
    report = run_check(flat, [photo()])
    assert report.measures.ascent.gradient_share == 0
    assert "not every picture has a gradient" in report.notes[0]


def test_not_differentiable_says_so():
    report = run_check(wrapped(lambda image: float(image.mean())), [photo()])
    assert report.measures.ascent.error == "not differentiable"
    assert math.isnan(report.measures.ascent.rise)
    last = report.verdicts[2]
    assert last.verdict == "not fit"
    assert "gradient_share 0 (not differentiable), wanted at least 1" in [str(one) for one in last.reasons]


class Cut:
    """A reward of somebody else's that has no `grad` argument, says that it is differentiable, and is not."""

    name, fingerprint, needs = "cut", "0", frozenset()
    score_range = (0.0, 1.0)
    higher_is_better = differentiable = deterministic = True

    def __call__(self, images, lq=None, hr=None, prompts=None):
        value = torch.stack([image.detach().mean() for image in images])
        return Scores(value=value, valid=torch.ones(len(images), dtype=torch.bool), std=value * math.nan)


def test_a_cut_graph_is_found():
    report = run_check(Cut(), [photo()])
    assert "cut the graph" in report.measures.ascent.error
    assert report.measures.ascent.gradient_share == 0
    assert verdicts(report)["gradients"] == "not fit"


# Transport


def test_png_rounds_and_nothing_else(pool):
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


# Photographs


def test_the_middle_is_used_and_what_cannot_be_is_named(tmp_path):
    whole = picture(0, 100, 120)
    small, flat = torch.rand(3, 40, 90), torch.full((3, 80, 80), 0.5)
    found, refused = load_photographs([whole, small, flat, str(tmp_path / "none.png")], crop_px=80)
    assert torch.equal(found[0].image, whole[:, 10:90, 20:100])
    assert ["90 x 40 px" in refused[0][1], "flat" in refused[1][1], "no such file" in refused[2][1]] == [True] * 3
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


# Finding a reward


def test_rewards_by_name():
    assert find_reward("niqe").name == "niqe"
    assert find_reward(LAPLACIAN).name == "laplacian"
    assert find_reward(f"{__name__}:Cut").name == "cut"  # a class is a factory


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nique", "must be among psnr_y"),
        ("no_such_package:x", "cannot import 'no_such_package'"),
        ("zoomiqa_reward.check.baselines:none", "has no 'none'"),
        ("zoomiqa_reward.check.baselines:MOST", "float, which is no reward: it lacks name"),
    ],
)
def test_a_wrong_name_says_why(name, reason):
    with pytest.raises(ValueError, match=reason):
        find_reward(name)


def test_a_metric_without_its_extra_names_it(monkeypatch):
    monkeypatch.setattr("zoomiqa_reward.check.find.METRICS_MODULE", "no_such_package.metrics")
    with pytest.raises(ValueError, match=r"zoomiqa-reward\[restoration\]"):
        find_reward("niqe")


def test_the_core_needs_no_scipy_and_no_scikit_image():
    for file in (ROOT / "zoomiqa_reward" / "check").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.partition(".")[0] for name in names}
            allowed = {"skimage"} if file.name == "photographs.py" else set()  # where the pictures lie, if installed
            assert not roots & ({"scipy", "skimage", "cv2", "restoration"} - allowed), file.name


# The figure


def test_the_figure_shows_the_pictures_and_marks_a_rise(tmp_path):
    report = run_check(laplacian(), [photo(height=160, width=200)])
    figure = ladder_figure(report, tmp_path / "check.png")
    assert torch.equal(load_image(tmp_path / "check.png"), load_image(figure))
    middle = load_image(figure.crop((LABEL_PX, HEAD_PX, LABEL_PX + CELL_PX, HEAD_PX + CELL_PX)))
    expected = report.shown.hr[:, 8 : 8 + CELL_PX, 28 : 28 + CELL_PX]
    assert float((middle - expected).abs().max()) <= 0.5 / 255 + 1e-6
    assert red_pixels(figure) > 20  # noise and sharpening rise
    assert red_pixels(ladder_figure(run_check(faithful(), [photo()]))) == 0


def red_pixels(figure):
    below_the_head = np.asarray(figure.crop((LABEL_PX, HEAD_PX, *figure.size)))
    return int((below_the_head == (232, 92, 92)).all(axis=-1).sum())


# The command


@pytest.fixture
def registered(monkeypatch):
    point = EntryPoint(name="check", value="zoomiqa_reward.commands.check:check", group=cli.GROUP)
    monkeypatch.setattr(cli, "commands", lambda: {"check": point})


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.png", 0), ("b.png", 1)):
        Image.fromarray((picture(seed, 80, 90) * 255).byte().permute(1, 2, 0).numpy()).save(name)
    return tmp_path


def run(capsys, *args):
    code = cli.main(["check", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_on_stdout_and_a_table_on_stderr(capsys, files, registered):
    code, out, err = run(capsys, "a.png", "b.png", "--reward", LAPLACIAN, "--figure", "check.png", "--crop-px", "72")
    assert code == 0
    [line] = out.splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert found["reward"] == "laplacian"
    assert found["photographs"] == ["a.png", "b.png"]
    assert {use: one["verdict"] for use, one in found["verdicts"].items()} == {
        "best-of-n": "not fit", "dpo": "not fit", "gradients": "not fit"
    }  # fmt: skip
    assert found["measures"]["weakest_in_order"] == 0
    for words in ("oversharpen", "noise to signal", "weakest_in_order 0", "images a second", "check.png"):
        assert words in err
    assert (files / "check.png").exists()


def test_a_photograph_that_cannot_be_used_is_2_and_none_is_1(capsys, files, registered):
    code, out, err = run(capsys, "a.png", "none.png", "--reward", LAPLACIAN)
    assert code == 2
    assert "no such file" in json.loads(out)["not_used"][0]
    assert "not used: none.png" in err
    code, out, err = run(capsys, "none.png", "--reward", LAPLACIAN)
    assert (code, out) == (1, "")
    assert "none of the photographs can be used" in err


def test_a_reward_beside_the_user(capsys, files, registered, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (files / "my_own_reward.py").write_text(
        "from zoomiqa_reward import MetricReward\n"
        "def make():\n    return MetricReward(lambda image: image.mean(), 'bright', True, (0, 1))\n"
    )
    code, out, _ = run(capsys, "a.png", "--reward", "my_own_reward:make")
    assert (code, json.loads(out)["reward"]) == (0, "bright")


def test_the_model_is_checked_by_default(capsys, files, registered):
    arguments = ("--model", str(tiny_checkpoint()), "--device", "cpu", "--crop-px", "64", "--repeats", "2")
    code, out, _ = run(capsys, "a.png", "b.png", "--count", "1", *arguments)
    found = json.loads(out)
    assert code == 0
    assert found["photographs"] == ["a.png"]
    assert found["reward"].endswith("-direct")
    measures, ascent = found["measures"], found["measures"]["ascent"]
    assert (measures["measured_share"], measures["repeat_deviation"]) == (1, 0)
    assert (ascent["gradient_share"], ascent["error"]) == (1, None)
    assert ascent["rise"] > max(0, ascent["random_change"])
    assert measures["megapixels_per_s"] == pytest.approx(measures["images_per_s"] * 64 * 64 / 1e6, rel=0.1)


def test_sampling_belongs_to_reason(capsys, registered):
    code, out, err = run(capsys, "--num-samples", "4")
    assert (code, out) == (1, "")
    assert "--mode reason" in err


def test_options_are_frozen(capsys, registered, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "--help")
    assert " ".join(sorted({word.strip(",") for word in out.split() if word.startswith("--")})) == OPTIONS


# The documentation


def test_the_page_holds_what_the_benchmarks_wrote(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("check_benchmark", ROOT / "benchmarks" / "check.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (ROOT / "docs" / "check.md").read_text()
    inside = text.split(script.START)[1].split(script.END)[0].strip()
    assert inside == script.markdown().strip(), "run `python benchmarks/check.py docs`"
    for name in ("min_pairs", "max_rise", *Thresholds.__dataclass_fields__):
        assert f"`{name}`" in text
        assert f"{getattr(Thresholds(), name):g}" in text.split(f"`{name}`")[1].splitlines()[0]
