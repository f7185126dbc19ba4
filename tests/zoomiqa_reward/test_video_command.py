"""`zoomiqa score` and `zoomiqa rank` of clips, with the embedded model and with a tiny one."""

import json

import pytest
from clips import write_clip
from PIL import Image
from tiny import tiny_checkpoint

from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.cli import main as cli
from zoomiqa_reward.images.filters import gaussian_blur
from zoomiqa_reward.images.loading import load_image, to_pil

pytestmark = pytest.mark.integration


@pytest.fixture
def clips(tmp_path, photograph, monkeypatch):
    """A sharp clip, and one that is blurred in its third second."""
    import numpy as np

    sharp = np.asarray(Image.open(photograph).convert("RGB").crop((0, 0, 160, 128)))
    blurred = np.asarray(to_pil(gaussian_blur(load_image(Image.fromarray(sharp))[None], 3.0)[0].clamp(0, 1)))
    write_clip(tmp_path / "sharp.mkv", [sharp] * 30)
    write_clip(tmp_path / "soft.mkv", [sharp] * 20 + [blurred] * 10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(capsys):
    return [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]


def test_score_names_the_blurred_second_and_agrees_with_the_rating_of_its_frames(nano, clips, capsys):
    assert cli.main(["score", "soft.mkv", "--json", "--device", "cpu"]) == 0
    [line] = lines(capsys)
    assert line["image"] == "soft.mkv"
    assert line["worst_second"]["start_s"] == 2
    assert [frame["time_s"] for frame in line["frames"]] == [0, 1, 2]
    assert line["num_frames"] == 30
    assert line["skipped"] == 0
    assert line["flicker"] < 0.1
    iqa = ZoomIQA.from_pretrained("nano", device="cpu")
    import av

    with av.open("soft.mkv") as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    for frame in line["frames"]:
        rating = iqa.rate([frames[frame["index"]]], strict=True)
        assert frame["rating"] == pytest.approx(float(rating.mean[0]), abs=1e-5)


def test_rank_puts_the_sharp_clip_first(nano, clips, capsys):
    assert cli.main(["rank", "soft.mkv", "sharp.mkv", "--json", "--device", "cpu"]) == 0
    rows = lines(capsys)
    assert [row["image"] for row in rows] == ["sharp.mkv", "soft.mkv"]
    assert [row["rank"] for row in rows] == [1, 2]
    assert all(row["worst_second"] for row in rows)


def test_a_table_for_people_and_a_clip_that_cannot_be_read(clips, capsys):
    (clips / "torn.mp4").write_text("no clip")
    options = ["--model", str(tiny_checkpoint()), "--device", "cpu", "--every", "2", "--keep-up"]
    assert cli.main(["score", "sharp.mkv", "torn.mp4", *options]) == 2
    out = capsys.readouterr().out
    assert "of 30 frames rated, 3.0 s, 160 x 128 px" in out
    assert out.splitlines()[0].split()[-1] == "clip"  # the head of the last column
    assert "worst second: 0:00:0" in out
    assert "torn.mp4: cannot be opened as a clip" in " ".join(out.split())
    assert cli.main(["rank", "torn.mp4", "sharp.mkv", "--json", *options]) == 2
    rows = lines(capsys)
    assert [row["image"] for row in rows] == ["sharp.mkv", "torn.mp4"]
    assert rows[1]["frames"] is None
    assert rows[1]["rank"] is None


def test_without_pyav_the_extra_is_named(clips, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    assert cli.main(["score", "sharp.mkv", "--model", str(tiny_checkpoint()), "--device", "cpu"]) == 1
    assert "pip install -e '.[video]'" in capsys.readouterr().err
