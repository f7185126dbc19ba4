"""`zoomiqa rank --lq` and `--reference`: the order, the numbers, the failures, and what is not rated twice."""

import json

import pytest
import torch
from photographs import photograph
from tiny import tiny_checkpoint, tiny_iqa

from restoration.metrics import ConditionedReward, ReferencedReward
from zoomiqa_reward.cli import main as cli
from zoomiqa_reward.images.filters import gaussian_blur, resize_bicubic
from zoomiqa_reward.images.loading import load_image, save_png
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A clean photograph, its small input, and four candidates; one shows something else, one has another size."""
    clean = photograph(0, 96, 96)
    lq = resize_bicubic(clean, 48, 48).clamp(0, 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "candidates").mkdir()
    save_png(clean, "clean.png")
    save_png(lq, "input.png")
    save_png(resize_bicubic(lq, 96, 96).clamp(0, 1), "candidates/bicubic.png")
    save_png(gaussian_blur(clean[None], 3.0)[0].clamp(0, 1), "candidates/blurred.png")
    save_png(photograph(1, 96, 96), "candidates/other.png")
    save_png(clean[:, :90], "candidates/short.png")
    return tmp_path


def run(capsys, *options):
    command = ["rank", "candidates", "--model", str(tiny_checkpoint()), "--device", "cpu", *options]
    code = cli.main(command)
    return code, capsys.readouterr()


@pytest.mark.parametrize(("option", "file"), [("lq", "input.png"), ("reference", "clean.png")])
def test_values_are_those_of_the_reward(place, capsys, option, file):
    code, said = run(capsys, f"--{option}", file, "--json")
    assert code == 2, said.err  # short.png has no value
    rows = [json.loads(line) for line in said.out.splitlines()]
    kind, key = (ConditionedReward, "lq") if option == "lq" else (ReferencedReward, "hr")
    reward = kind(ZoomIQAReward(tiny_iqa()))
    for row in rows[:3]:
        alone = reward([row["image"]], **{key: [file]})
        assert row["value"] == pytest.approx(alone.value.item(), abs=1e-6)
        assert row["fidelity"] == pytest.approx(alone.info["fidelity"][0])
        assert row["rating"] == pytest.approx(ZoomIQAReward(tiny_iqa())(load_image(row["image"])).value.item())
        assert row[option] == file
    assert [row["value"] for row in rows[:3]] == sorted((row["value"] for row in rows[:3]), reverse=True)
    assert [row["rank"] for row in rows] == [1, 2, 3, None]
    assert rows[2]["image"].endswith("other.png")
    assert rows[3]["image"].endswith("short.png")
    assert rows[3]["valid"]
    assert "must be" in rows[3]["not_ranked"]


def test_the_table_names_both_numbers_and_reasons(place, capsys):
    _, said = run(capsys, "--reference", "clean.png")
    head = said.out.splitlines()[0].split()
    assert head == ["rank", "rating", "±", "0-100", "referenced", "fidelity", "image"]
    assert "not ranked: image (3, 90, 96)" in said.out


def test_nothing_is_rated_twice(place, capsys, monkeypatch):
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

    rated, real = [], ZoomIQA.rate

    def counting(self, images, *args, **options):
        rated.append(len(images))
        return real(self, images, *args, **options)

    monkeypatch.setattr(ZoomIQA, "rate", counting)
    run(capsys, "--lq", "input.png")
    assert sum(rated) == 5  # four candidates and the input, once each
    rated.clear()
    run(capsys, "--reference", "clean.png")
    assert sum(rated) == 4  # the reference is not rated


def test_an_input_that_shows_nothing_ranks_nothing(place, capsys):
    save_png(torch.full((3, 48, 48), 0.5), "grey.png")
    code, said = run(capsys, "--lq", "grey.png", "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert code == 2
    assert {row["rank"] for row in rows} == {None}
    assert "quality of lq: the image has no content" in rows[0]["not_ranked"]


@pytest.mark.integration
def test_the_sheet_says_what_the_order_is_by(place, capsys):
    code, said = run(capsys, "--lq", "input.png", "--sheet", "sheet.png")
    assert code == 2
    assert (place / "sheet.png").stat().st_size > 10_000
    assert "contact sheet" in said.err
