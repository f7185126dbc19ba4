"""The check's command: which reward a name finds, the figure, what is printed, and its page of the documentation."""

import ast
import importlib.util
import itertools
import json
import math
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from conftest import ROOT
from known_rewards import LAPLACIAN, Cut, faithful, photo, wrapped
from PIL import Image
from tiny import make_image, tiny_checkpoint

from zoomiqa_reward.check import Thresholds, find_reward, ladder_figure, run_check
from zoomiqa_reward.check.baselines import laplacian
from zoomiqa_reward.check.figure import CAPTION_PX, CELL_PX, GAP_PX, HEAD_PX, LABEL_PX
from zoomiqa_reward.check.ladders import DAMAGES, WORSENINGS
from zoomiqa_reward.cli import main as cli
from zoomiqa_reward.images import load_image

OPTIONS = (
    "--adapter --config --count --crop-px --device --dtype --figure --help --mode --model --num-samples --overwrite "
    "--protocol --question --repeats --reward"
)


# Finding a reward


def test_rewards_by_name():
    assert find_reward("niqe").name == "niqe"
    assert find_reward(LAPLACIAN).name == "laplacian"
    assert find_reward(f"{Cut.__module__}:Cut").name == "cut"  # a class is a factory


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
    monkeypatch.setattr("zoomiqa_reward.rewards.find.METRICS_MODULE", "no_such_package.metrics")
    with pytest.raises(ValueError, match=r"zoomiqa-reward\[restoration\]"):
        find_reward("niqe")


def test_the_core_needs_no_scipy_and_no_scikit_image():
    for file in (ROOT / "zoomiqa_reward" / "check").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.partition(".")[0] for name in names}
            allowed = {"skimage"} if file.name == "ladders.py" else set()  # where the images lie, if installed
            assert not roots & ({"scipy", "skimage", "cv2", "restoration"} - allowed), file.name


# The figure


@pytest.mark.integration
def test_the_figure_shows_the_images_and_marks_a_rise(tmp_path):
    report = run_check(laplacian(), [photo(height=160, width=200)])
    figure = ladder_figure(report, tmp_path / "check.png")
    assert torch.equal(load_image(tmp_path / "check.png"), load_image(figure))
    middle = load_image(figure.crop((LABEL_PX, HEAD_PX, LABEL_PX + CELL_PX, HEAD_PX + CELL_PX)))
    expected = report.shown.hr[:, 8 : 8 + CELL_PX, 28 : 28 + CELL_PX]
    assert float((middle - expected).abs().max()) <= 0.5 / 255 + 1e-6
    assert red_pixels(figure) > 20  # noise and sharpening rise
    assert red_pixels(ladder_figure(run_check(faithful(), [photo()]))) == 0


def test_the_figure_shows_what_was_emptied_and_marks_a_value_for_nothing():
    report = run_check(faithful(), [photo(height=160, width=200)])
    figure = ladder_figure(report)
    row_px = CELL_PX + CAPTION_PX + GAP_PX
    top = HEAD_PX + (len(DAMAGES) + len(WORSENINGS)) * row_px
    cells = [
        load_image(figure.crop((LABEL_PX + k * (CELL_PX + GAP_PX), top, LABEL_PX + k * (CELL_PX + GAP_PX) + CELL_PX,
                                top + CELL_PX)))
        for k in range(4)
    ]  # fmt: skip
    expected = report.shown.enlarged[:, 8 : 8 + CELL_PX, 28 : 28 + CELL_PX]
    assert float((cells[0] - expected).abs().max()) <= 0.5 / 255 + 1e-6
    assert [float(cell.mean()) for cell in cells[1:3]] == [0, 1]
    blank = figure.crop((LABEL_PX, top + CELL_PX, figure.width, top + row_px))
    assert red_pixels_of(blank) == 0
    contrast = run_check(wrapped(lambda image: image.std()), [photo(height=160, width=200)])
    blank = ladder_figure(contrast).crop((LABEL_PX, top + CELL_PX, figure.width, top + row_px))
    assert red_pixels_of(blank) > 20


@pytest.mark.parametrize("loses", [False, True])
def test_a_value_is_red_where_it_rises_itself(loses):
    """With `loses` the brighter photograph has no value from the third step on, so plain means would fall there."""

    def sharpness(image):
        strength = float(image.diff(dim=-1).abs().mean())
        is_lost = loses and float(image.mean()) > 0.6 and strength > 0.1
        return math.nan if is_lost else strength + float(image.mean())

    dark, bright = photo(), photo("b", seed=1)
    pair = [replace(dark, image=dark.image * 0.5), replace(bright, image=bright.image * 0.5 + 0.5)]
    report = run_check(wrapped(sharpness), pair)
    figure = ladder_figure(report)
    row_px = CELL_PX + CAPTION_PX + GAP_PX
    for index, ladder in enumerate([*report.measures.ladders, *report.measures.worsened]):
        pairs = [[after - before for before, after in itertools.pairwise(row)] for row in ladder.rows]
        for step in range(1, len(ladder.labels)):
            changes = [row[step - 1] for row in pairs if not math.isnan(row[step - 1])]
            left, top = LABEL_PX + step * (CELL_PX + GAP_PX), HEAD_PX + index * row_px + CELL_PX
            caption = np.asarray(figure.crop((left, top, left + CELL_PX, top + CAPTION_PX)), dtype=int)
            is_red = bool((caption[..., 0] - caption[..., 2] > 60).any())
            assert is_red == (not sum(changes) < 0), (ladder.kind, step)


def red_pixels(figure):
    return red_pixels_of(figure.crop((LABEL_PX, HEAD_PX, *figure.size)))


def red_pixels_of(image):
    return int((np.asarray(image) == (232, 92, 92)).all(axis=-1).sum())


# The command


@pytest.fixture
def registered(monkeypatch):
    point = EntryPoint(name="check", value="zoomiqa_reward.cli.check:check", group=cli.GROUP)
    monkeypatch.setattr(cli, "commands", lambda: {"check": point})


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.png", 0), ("b.png", 1)):
        board = (torch.arange(80)[:, None] // 16 + torch.arange(90) // 16) % 2  # edges that outlive the blur ladder
        image = (0.5 * make_image(seed, 80, 90) + 0.5 * board) * 255
        Image.fromarray(image.byte().permute(1, 2, 0).numpy()).save(name)
    return tmp_path


def run(capsys, *args):
    code = cli.main(["check", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_on_stdout_and_a_table_on_stderr(capsys, files, registered):
    code, out, err = run(capsys, "a.png", "b.png", "--reward", LAPLACIAN, "--figure", "check.png", "--crop-px", "72")
    assert code == 2  # two photographs are too few for a verdict
    [line] = out.splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert found["reward"] == "laplacian"
    assert found["photographs"] == ["a.png", "b.png"]
    assert {use: one["verdict"] for use, one in found["verdicts"].items()} == {
        "best-of-n": "too few images", "dpo": "too few images", "gradients": "too few images"
    }  # fmt: skip
    by_name = {one["name"]: one for one in found["verdicts"]["dpo"]["criteria"]}
    assert by_name["weakest_in_order"]["met"] is False  # what decides is there all the same
    assert by_name["contentless_rated"]["value"] == 1
    assert by_name["measured_share"]["low"] == by_name["measured_share"]["high"] == 1
    assert found["measures"]["weakest_in_order"] == 0
    for words in ("oversharpen", "noise to signal", "weakest_in_order 0", "images per second", "check.png",
                  "too few images (2, at least 20 are needed)", "edges on jpeg", "empty before honest"):  # fmt: skip
        assert words in err
    assert (files / "check.png").exists()


def test_photographs_that_are_smaller_than_the_square_are_noted(capsys, files, registered):
    _, out, err = run(capsys, "a.png", "b.png", "--reward", LAPLACIAN, "--crop-px", "4096")
    note = (
        "smaller than the square that was asked for (crop_px), and used as far as they reach: 2 photographs, the first "
        "a.png, 90 x 80 px instead of 4096 x 4096"
    )
    assert json.loads(out)["notes"] == [note]
    assert note in " ".join(err.split())
    assert json.loads(run(capsys, "a.png", "--reward", LAPLACIAN, "--crop-px", "80")[1])["notes"] == []


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
    assert (code, json.loads(out)["reward"]) == (2, "bright")


@pytest.mark.integration
def test_the_exit_code_is_0_where_every_use_has_a_verdict(capsys, files, registered, tmp_path):
    names = [f"{letter}{k}.png" for k in range(10) for letter in "ab"]
    for name in names:
        (tmp_path / name).write_bytes((files / f"{name[0]}.png").read_bytes())
    options = ("--reward", LAPLACIAN, "--crop-px", "64", "--repeats", "2")
    code, out, _ = run(capsys, *names, *options)
    assert {one["verdict"] for one in json.loads(out)["verdicts"].values()} == {"not fit"}
    assert code == 0
    code, out, _ = run(capsys, *names, "--count", "19", *options)
    assert {one["verdict"] for one in json.loads(out)["verdicts"].values()} == {"too few images"}
    assert code == 2


@pytest.mark.integration
def test_the_model_is_checked_by_default(capsys, files, registered):
    arguments = ("--model", str(tiny_checkpoint()), "--device", "cpu", "--crop-px", "64", "--repeats", "2")
    code, out, _ = run(capsys, "a.png", "b.png", "--count", "1", *arguments)
    found = json.loads(out)
    assert code == 2  # one photograph is too few
    assert found["photographs"] == ["a.png"]
    assert found["reward"].endswith("-direct")
    measures, ascent = found["measures"], found["measures"]["ascent"]
    assert measures["measured_share"] == 1  # the strongest blur leaves nothing of 64 px, which is no failure
    assert measures["contentless_rated"] == 0
    assert measures["repeat_deviation"] == 0
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
