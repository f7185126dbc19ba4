"""`make demo`'s main job, with a tiny judge and an untrained pipeline, and with the embedded models."""

import json

import pytest
from PIL import Image
from tiny import tiny_checkpoint
from tiny_pipelines import small_nano

from restoration.demo import NUM_CANDIDATES, NUM_EXPLAINED, main

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Judge and restorer, both tiny."""
    folder = tmp_path_factory.mktemp("pipeline")
    small_nano().save_pretrained(folder)
    return ["--model", str(tiny_checkpoint()), "--restorer", str(folder), "--device", "cpu"]


def test_demo_writes_what_it_announces(tmp_path, photograph, options, capsys):
    assert main(["--image", str(photograph), "--out", str(tmp_path), *options]) == 0
    out, said = tmp_path / photograph.stem, capsys.readouterr().out
    run = json.loads((out / "run.json").read_text())
    assert run["finished"]
    assert len(run["ranking"]) == len(list((out / "candidates").glob("*.png"))) == NUM_CANDIDATES
    asked = (out / "cascade.jsonl").read_text().splitlines()
    assert len(asked) == NUM_EXPLAINED
    report = json.loads((out / "comparison.json").read_text())
    assert set(report["rating"]) == {"bicubic", "chosen", "original"}
    assert report["fsim"]["best_of_candidates"] >= max(report["fsim"]["chosen"], report["fsim"]["mean_of_candidates"])
    for name in ("sheet.png", "best.png", "input.png", "original.png"):
        with Image.open(out / name) as image:
            assert image.mode == "RGB"
    for name in ("sheet.png", "best.png", "run.json", "input.png"):
        assert str(out / name) in said
    before = (out / "candidates.jsonl").read_bytes()
    assert main(["--image", str(photograph), "--out", str(tmp_path), *options]) == 0
    assert (out / "candidates.jsonl").read_bytes() == before  # nothing is made twice


def test_as_is_has_no_original(tmp_path, photograph, options, capsys):
    small = tmp_path / "small.png"
    with Image.open(photograph) as image:
        image.resize((24, 20)).save(small)
    assert main(["--image", str(small), "--as-is", "--out", str(tmp_path / "demo"), *options]) == 0
    out = tmp_path / "demo" / "small"
    assert "fsim" not in json.loads((out / "comparison.json").read_text())
    assert not (out / "original.png").exists()
    with Image.open(out / "best.png") as image:
        assert image.size == (96, 80)


def test_another_image_of_that_name_is_refused(tmp_path, photograph, options, capsys):
    small = tmp_path / "small.png"
    with Image.open(photograph) as image:
        image.resize((20, 20)).save(small)
        assert main(["--image", str(small), "--as-is", "--out", str(tmp_path), *options]) == 0
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((20, 20)).save(small)
    assert main(["--image", str(small), "--as-is", "--out", str(tmp_path), *options]) == 1
    assert "another run" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_with_nano_is_sensible(tmp_path, nano):
    """On the bundled photograph: candidates differ, and the choice is above bicubic under what no rating saw."""
    assert main(["--out", str(tmp_path)]) == 0
    out = tmp_path / "astronaut"
    report = json.loads((out / "comparison.json").read_text())
    assert report["fsim"]["chosen"] > report["fsim"]["bicubic"]
    assert report["rating"]["original"] > report["rating"]["bicubic"]
