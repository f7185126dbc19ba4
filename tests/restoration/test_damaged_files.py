"""Damaged and odd files among good ones: none is lost, each is named, the good ones are measured.

ZOOMIQA_DAMAGED=2000 tries as many files; by default fewer.
"""

import json
import os
import random
from pathlib import Path

import pytest
from damaged import KINDS, write_damaged, write_odd_entries

from zoomiqa_reward.cli.main import main
from zoomiqa_reward.images.loading import ImageError, load_image

COUNT = int(os.environ.get("ZOOMIQA_DAMAGED", "60"))
ALWAYS_READ = {"sound", "cmyk", "16 bit", "alpha", "animated", "turned", "broken exif", "bad profile"}
"""Kinds that hold an image which can be read faithfully, save for modes without a fixed range."""
NEVER_READ = {"garbage", "empty", "web page", "text", "zip", "no pixels", "enormous"}


def read(file: Path):
    try:
        return load_image(file), None
    except ImageError as error:
        return None, str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """Return the folder and the names that a listing of it holds."""
    rng, home = random.Random(18), tmp_path_factory.mktemp("damaged") / "many"
    home.mkdir()
    names = {write_damaged(rng, home, number).name for number in range(COUNT)}
    listed, passed_over = write_odd_entries(home)
    assert {file.name for file in home.iterdir()} == names | listed | passed_over
    return home, names | listed


def test_every_kind_is_among_them():
    assert len(KINDS) <= COUNT


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_is_read_or_refused_by_name(kind, tmp_path):
    rng = random.Random(kind)
    for number in range(12):
        file = tmp_path / f"{number}.png"
        file.write_bytes(KINDS[kind](rng, rng.choice((".png", ".jpg", ".webp", ".tiff", ".ppm", ".tga"))))
        image, why = read(file)
        if image is None:
            assert str(file) in why
            assert kind not in ALWAYS_READ or "mode F" in why or "only 16 bits" in why, why
            continue
        assert kind not in NEVER_READ
        assert image.shape[0] == 3
        assert 0 <= float(image.min()) <= float(image.max()) <= 1


@pytest.mark.integration
@pytest.mark.parametrize("command", ["score", "rank"])
def test_score_and_rank_name_every_file(folder, capsys, tmp_path, command):
    home, names = folder
    sheet = ["--sheet", str(tmp_path / "sheet.png")] if command == "rank" and COUNT <= 100 else []
    assert main([command, str(home), "--json", *sheet]) == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(row["image"]).name for row in rows} == names
    assert len(rows) == len(names)
    assert all(row["error"] for row in rows if not row["valid"])
    assert all(1 <= row["rating"] <= 5 for row in rows if row["valid"])
    assert any(row["valid"] for row in rows)


@pytest.mark.skipif(COUNT > 200, reason="a third pass over thousands of files says nothing more")
def test_tables_for_people_name_every_file(folder, capsys):
    """One line per file, whatever its name holds: control characters reach no terminal."""
    home, _ = folder
    assert main(["score", str(home)]) == 2
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    flat = "".join(shown.split())
    assert all(f"{number:04d}" in flat for number in range(COUNT))


def test_evaluate_names_every_file(folder, capsys, tmp_path):
    home, names = folder
    out = tmp_path / "out"
    command = ["evaluate", str(home), "--degradation", "bicubic", "--restorer", "bicubic", "--reward", "none"]
    assert main([*command, "--n", "1", "--metrics", "psnr_y", "--out", str(out), "--json"]) == 2
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    named = {json.loads(line)["image"] for line in (out / "records.jsonl").read_text().splitlines()}
    assert len(named) == len(names)
    failed = [one["image"] for one in results["problems"]["failed"]]
    assert len(failed) == len(set(failed))
    assert all(one["error"] for one in results["problems"]["failed"])


def test_a_name_that_no_file_can_have_is_a_line_too(capsys, tmp_path):
    """Named one by one: names that the system refuses fail alone, the others are measured."""
    listed, _ = write_odd_entries(tmp_path)
    given = ["x" * 300 + ".png", str(tmp_path / "target.png" / "below.png"), "", *(str(tmp_path / n) for n in listed)]
    assert main(["score", *given, "--json"]) == 2
    rows = {row["image"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == set(given)
    assert rows[str(tmp_path / "target.png")]["valid"]
    assert all(row["valid"] or row["error"] for row in rows.values())
