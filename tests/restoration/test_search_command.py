"""`zoomiqa search`: both ways from a shell, and how they go on."""

import json

import pytest
from PIL import Image
from tiny import make_image, tiny_checkpoint
from tiny_pipelines import small_nano

from restoration.cli import options
from zoomiqa_reward.cli import main as cli
from zoomiqa_reward.images import save_png
from zoomiqa_reward.images.loading import to_pil

pytestmark = pytest.mark.integration


@pytest.fixture
def arguments(tmp_path):
    small_nano().save_pretrained(tmp_path / "pipeline")
    save_png(to_pil(make_image(2, 24, 32)), tmp_path / "lq.png")
    return ["search", str(tmp_path / "lq.png"), "--restorer", str(tmp_path / "pipeline"), "--device", "cpu",
            "--steps", "1", "--model", str(tiny_checkpoint()), "--out", str(tmp_path / "out"), "--json"]  # fmt: skip


def lines(capsys):
    printed = capsys.readouterr()
    return [json.loads(line, parse_constant=pytest.fail) for line in printed.out.splitlines()], printed.err


def test_by_noise(arguments, tmp_path, capsys):
    given = [*arguments, "--by", "noise", "--per-round", "3"]
    assert cli.main([*given, "--n", "5"]) == 0
    rows, err = lines(capsys)
    by_index = {row["index"]: row for row in rows}
    assert [by_index[k]["parent"] is None for k in range(5)] == [True, True, True, False, False]
    assert "best score after each round of 3" in err
    assert cli.main([*given, "--n", "6"]) == 0
    more, _ = lines(capsys)
    assert {row["index"]: row["score"] for row in more if row["index"] < 5} == {
        k: by_index[k]["score"] for k in range(5)
    }
    with Image.open(tmp_path / "out" / "best.png") as best:
        assert best.size == (128, 96)


@pytest.mark.parametrize("command", ["search", "best-of-n", "refine"])
def test_a_large_image_is_told_before_the_work(command, arguments, monkeypatch, capsys):
    told = "32 x 24 px become 128 x 96 px: each restoration takes long"
    few = ["--rounds", "1", "--seeds-per-round", "1"] if command == "refine" else ["--n", "1", "--plain"]
    for limit, is_told in ((128 * 96, False), (128 * 96 - 1, True)):
        monkeypatch.setattr(options, "LARGE_PIXELS", limit)
        cli.main([command, *arguments[1:], *few])
        assert (told in capsys.readouterr().err) is is_told


def test_by_fusion(arguments, tmp_path, capsys):
    given = [*arguments, "--by", "fusion", "--n", "3", "--top", "2", "--view-px", "56"]
    for _ in range(2):  # the second one reads what the first one made
        assert cli.main(given) == 0
        rows, err = lines(capsys)
        assert [row["rank"] for row in rows[:-1]] == [1, 2, 3]
        assert rows[-1]["best_candidate_score"] == rows[0]["score"]
        assert sum(rows[-1]["shares"]) == pytest.approx(1, abs=0.01)
        assert "fused image: " in err
    assert {"best.png", "fused.png", "views.jsonl", "start"} <= {file.name for file in (tmp_path / "out").iterdir()}
    assert len((tmp_path / "out" / "views.jsonl").read_text().splitlines()) == 2
    assert cli.main([*given, "--softness", "0.5"]) == 1
    assert "softness was" in capsys.readouterr().err
