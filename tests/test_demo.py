"""`make demo`'s main job, with the tiny checkpoint and with the embedded model."""

import json

import pytest
from PIL import Image
from tiny import tiny_checkpoint

from restoration.demo import main


def test_demo_writes_what_it_announces(tmp_path, photograph, capsys):
    out = tmp_path / "demo"
    args = ["--image", str(photograph), "--out", str(out), "--model", str(tiny_checkpoint()), "--device", "cpu"]
    assert main(args) == 0
    said = capsys.readouterr().out
    report = json.loads((out / "ranking.json").read_text())
    files = sorted(file.name for file in (out / "candidates").iterdir())
    assert len(files) == len(report["candidates"]) == 10
    ratings = [row["rating"] for row in report["candidates"]]
    assert ratings == sorted(ratings, reverse=True)
    assert report["original"]["valid"]
    for name in ("sheet.png", "input_lq.png", "original.png"):
        with Image.open(out / name) as image:
            assert image.mode == "RGB"
    for name in ("sheet.png", "ranking.json", "input_lq.png"):
        assert str(out / name) in said


def test_as_is_has_no_original(tmp_path, photograph):
    small = tmp_path / "small.png"
    with Image.open(photograph) as image:
        image.resize((48, 40)).save(small)
    out = tmp_path / "demo"
    args = ["--image", str(small), "--as-is", "--scale", "2", "--out", str(out), "--model", str(tiny_checkpoint())]
    assert main([*args, "--device", "cpu"]) == 0
    assert json.loads((out / "ranking.json").read_text())["original"] is None
    assert not (out / "original.png").exists()
    with Image.open(out / "candidates" / "bicubic.png") as image:
        assert image.size == (96, 80)


@pytest.mark.slow
def test_demo_with_nano_ranks_sensibly(tmp_path, nano):
    """On the bundled photograph: the original above all candidates; what is smoothed or sharpened too far, low."""
    assert main(["--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "ranking.json").read_text())
    order = [row["image"].rsplit("/", 1)[-1].removesuffix(".png") for row in report["candidates"]]
    assert report["original"]["rating"] > report["candidates"][0]["rating"]
    assert order.index("oversmooth") >= 5
    assert order.index("oversharp") >= 5
