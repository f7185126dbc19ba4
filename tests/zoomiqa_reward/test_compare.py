"""`zoomiqa compare A B`: pairs by name, the statistics by hand, damaged and unpaired files, and the sheet."""

import json
import math
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import run

from zoomiqa_reward.cli.compare import pair_files
from zoomiqa_reward.images.pair_sheet import CELL_PX, MARGIN_PX, SheetPair, _differing, pair_sheet
from zoomiqa_reward.runs.outputs import made_here
from zoomiqa_reward.runs.paired import paired_difference
from zoomiqa_reward.runs.tables import read_table


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Gray images, judged by their mean: A is lighter in two of three pairs by 51 and 102 of 255, and ties in one."""
    monkeypatch.chdir(tmp_path)
    for side in "AB":
        Path(side, "sub").mkdir(parents=True)
    for name, a, b in (("f2", 153, 102), ("f10", 204, 102), ("f1", 100, 100), ("sub/x", 10, 250)):
        Image.new("RGB", (32, 40), (a,) * 3).save(f"A/{name}.png")
        Image.new("RGB", (32, 40), (b,) * 3).save(f"B/{name}.bmp")
    return tmp_path


@pytest.fixture
def by_mean(tmp_path, monkeypatch):
    (tmp_path / "mean_of_image.py").write_text(
        "from zoomiqa_reward import MetricReward\n"
        "def make():\n    return MetricReward(lambda image: float(image.mean()), 'mean', True, (0, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "mean_of_image:make"


def test_the_result_is_what_one_counts_by_hand(capsys, folders, by_mean):
    code, out, _ = run(capsys, "compare", "A", "B", "--reward", by_mean, "--json", "--out", "t.jsonl")
    result = json.loads(out)
    assert code == 0
    assert (result["count"], result["wins"], result["ties"], result["losses"]) == (3, 2, 1, 0)
    assert result["difference"] == pytest.approx((51 + 102) / 255 / 3)
    assert result["win_rate"] == pytest.approx(2.5 / 3)
    assert result["means"][0] - result["means"][1] == pytest.approx(result["difference"])
    assert result["p_value"] == 0.5  # of 8 sign patterns the two of one sign, each twice for the tie
    assert [row["name"] for row in result["largest"]] == ["f10", "f2", "f1"]
    assert [row["name"] for row in read_table(Path("t.jsonl"))] == ["f1", "f2", "f10"]


def test_few_pairs_have_no_interval_which_could_exclude_zero(capsys, folders, by_mean):
    Image.new("RGB", (32, 40), (90,) * 3).save("B/f1.bmp")
    _, out, _ = run(capsys, "compare", "A", "B", "--reward", by_mean, "--json")
    result = json.loads(out)
    assert (result["p_value"], result["difference_interval"]) == (0.25, [None, None])
    _, out, _ = run(capsys, "compare", "A", "B", "--reward", by_mean)
    assert "no interval, because fewer than 6 pairs differ" in " ".join(out.split())
    gaps = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert paired_difference(gaps, [0.0] * 6).difference_interval[0] > 0
    assert math.isnan(paired_difference([*gaps[:5], 0.0], [0.0] * 6).difference_interval[0])  # five differ


def test_subfolders_are_compared_on_request(capsys, folders, by_mean):
    _, out, _ = run(capsys, "compare", "A", "B", "--reward", by_mean, "--json", "--recursive", "--top", "1")
    result = json.loads(out)
    assert (result["count"], result["losses"]) == (4, 1)
    assert [row["name"] for row in result["largest"]] == ["sub/x"]


def test_what_is_damaged_or_alone_is_named_and_the_rest_goes_on(capsys, folders, by_mean):
    Path("A/f2.png").write_bytes(Path("A/f2.png").read_bytes()[:40])
    Image.new("RGB", (9, 9)).save("B/alone.png")
    code, out, err = run(capsys, "compare", "A", "B", "--reward", by_mean)
    assert code == 2
    assert "unpaired: B/alone.png" in err
    assert "not measured: A/f2.png:" in err
    assert "2, by mean" in out
    Image.new("RGB", (9, 9)).save("B/f2.png")
    code, _, err = run(capsys, "compare", "A", "B", "--reward", by_mean)
    assert code == 1
    assert "two images of one name" in err


def test_two_files_are_told_to_use_rank(capsys, folders, by_mean):
    code, _, err = run(capsys, "compare", "A/f2.png", "B/f2.bmp", "--reward", by_mean)
    assert code == 1
    assert "A/f2.png: is a file, but compare takes two folders; zoomiqa rank compares files" in err
    assert "B/f2.bmp: is a file" in run(capsys, "compare", "A", "B/f2.bmp", "--reward", by_mean)[2]


def test_the_tie_counts_and_a_model_has_the_one_of_rank(capsys, folders, by_mean):
    _, out, _ = run(capsys, "compare", "A", "B", "--reward", by_mean, "--json", "--tie", "0.2")
    assert json.loads(out)["ties"] == 2  # a difference of 0.2 is a tie of 0.2


@pytest.mark.integration
def test_a_model_compares_a_sharp_folder_with_a_soft_one(capsys, tmp_path, monkeypatch, photograph, nano):
    monkeypatch.chdir(tmp_path)
    image = Image.open(photograph)
    for side, shrink in (("sharp", 1), ("soft", 5)):
        Path(side).mkdir()
        for k in range(2):
            crop = image.crop((96 * k, 64, 96 * k + 128, 192))
            crop.resize((128 // shrink,) * 2).resize((128, 128)).save(f"{side}/{k}.png")
    code, out, err = run(capsys, "compare", "sharp", "soft", "--json", "--sheet", "sheet.png")
    result = json.loads(out)
    assert code == 0
    assert (result["win_rate"], result["tie"]) == (1.0, 0.01)
    assert result["difference"] > 0.3
    assert made_here(Path("sheet.png"))
    assert "sheet: sheet.png" in err


def test_the_sheet_shows_a_left_and_b_right(folders):
    pairs, _ = pair_files(Path("A"), Path("B"), recursive=False)
    sheet = pair_sheet([SheetPair(name=p.name, files=p.files, values=(1.0, 2.0)) for p in pairs], ("A", "B"), "mean")
    pixels = np.asarray(sheet)
    left, right = pixels[:, MARGIN_PX + CELL_PX // 2, 0], pixels[:, 2 * MARGIN_PX + CELL_PX + CELL_PX // 2, 0]

    def levels(column):
        """The gray levels that fill an image, from top to bottom: 40 px, drawn x9."""
        return [int(k) for k, run in groupby(column) if len(list(run)) > 300]

    assert (levels(left), levels(right)) == ([100, 153, 204], [100, 102, 102])
    with pytest.raises(ValueError, match="no pairs"):
        pair_sheet([], ("A", "B"), "mean")


def test_the_detail_of_a_pair_is_where_it_differs_most():
    one = Image.new("RGB", (800, 600))
    other = one.copy()
    other.paste((255, 255, 255), (600, 450, 640, 480))
    x, y = _differing(one, other)
    assert 600 / 800 - 96 / 800 <= x <= 640 / 800 + 96 / 800
    assert 450 / 600 - 32 / 600 <= y <= 480 / 600 + 32 / 600
    assert _differing(one, one.resize((3, 1)))  # of any size


def test_the_statistics_keep_their_laws():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 60), rng.normal(0, 1, 60)
    one, other = paired_difference(a, b, tie=0.1), paired_difference(b, a, tie=0.1)
    assert one.difference == pytest.approx(-other.difference)
    assert one.win_rate == pytest.approx(1 - other.win_rate)
    assert one.p_value == other.p_value
    assert one.difference_interval[0] < one.difference < one.difference_interval[1]
    low, high = paired_difference([2.0, 3.0, 4.0], [1.0, 1.0, 1.0]).win_rate_interval
    assert (round(low, 2), high) == (0.44, 1.0)  # three wins of three show little; it was 1.00 to 1.00
    assert paired_difference(a, a).p_value == 1
    assert paired_difference(a, a).win_rate == 0.5
    assert paired_difference(a + 1, a).p_value == pytest.approx(1e-4)
    assert math.isnan(paired_difference([1.0], [2.0]).p_value)
    shares = [paired_difference(*rng.normal(size=(2, 10))).p_value < 0.1 for _ in range(300)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.05)  # alike, so one in ten is below 0.1
    for wrong in (([1.0], [1.0, 2.0]), ([math.nan], [1.0])):
        with pytest.raises(ValueError, match="no NaN"):
            paired_difference(*wrong)


def test_infinite_values_win_lose_or_tie_and_have_no_part_in_the_mean():
    inf = math.inf
    result = paired_difference([inf, 1.0, inf, -inf, 5.0, 7.0], [inf, inf, 2.0, -inf, 3.0, 3.0])
    assert (result.count, result.infinite) == (6, 4)
    assert (result.wins, result.ties, result.losses) == (3, 2, 1)
    assert result.difference == 3.0
    assert result.win_rate == 4 / 6
    assert math.isnan(paired_difference([inf], [1.0]).difference)


REWARDS = """
import math
from zoomiqa_reward import MetricReward
def measure(image):
    level = round(float(image.mean()) * 255)
    if level == 204:
        raise RuntimeError("kernel larger than the image")
    return math.inf if level == 153 else level
def broken(image):
    raise RuntimeError("no such device")
def make():
    return MetricReward(measure, "level", True, (0, math.inf), fingerprint="1")
def make_broken():
    return MetricReward(broken, "broken", True, (0, math.inf), fingerprint="2")
"""


def test_an_infinite_value_and_an_error_of_one_image_lose_nothing_of_the_others(capsys, folders, monkeypatch):
    (folders / "level_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(folders)
    code, out, err = run(capsys, "compare", "A", "B", "--reward", "level_rewards:make", "--json", "--out", "t.csv")
    result = json.loads(out)
    assert code == 2
    assert (result["count"], result["infinite"], result["wins"], result["ties"]) == (2, 1, 1, 1)
    assert (result["difference"], result["means"]) == (0.0, [100.0, 100.0])
    assert "not measured: A/f10.png: RuntimeError: kernel larger than the image" in err
    assert len(read_table(Path("t.csv"))) == 3
    monkeypatch.setattr("zoomiqa_reward.runs.outputs._LONGEST_PX", {"WEBP": 9})
    code, out, err = run(capsys, "compare", "A", "B", "--reward", "level_rewards:make", "--sheet", "sheet.webp")
    assert (code, "WEBP holds 9 px" in err) == (1, True)  # and what was measured is printed all the same
    assert "an infinite value left out: 1" in " ".join(out.split())
    code, _, err = run(capsys, "compare", "A", "B", "--reward", "level_rewards:make_broken")
    assert code == 1
    assert "no such device" in err
    assert "no pair of" not in err  # it ended at the third image
