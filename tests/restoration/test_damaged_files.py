"""Damaged and odd files among good ones: none is lost, each is named, the good ones are measured.

ZOOMIQA_DAMAGED=2000 tries as many files; by default fewer.
"""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoomiqa_reward.cli.main import main

COUNT = int(os.environ.get("ZOOMIQA_DAMAGED", "60"))
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".tiff": "TIFF", ".ppm": "PPM"}
MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "LA")
ODD_NAMES = ("two\nlines", "tab\t", "[1]", "a*b", "sp ace", "\u7167\u7247", "e\u0301", "-dash", "quote'\"", "x" * 200)


def damaged(rng: random.Random, folder: Path, number: int) -> Path:
    """Write one file: cut, flipped, garbage, empty, of another kind, an odd mode, or sound."""
    suffix = rng.choice(list(FORMATS))
    name = f"{number:04d}{rng.choice(ODD_NAMES) if number % 3 == 0 else ''}"
    if number % 41 == 40:
        name = f"{number:04d}" + b"\xff".decode("utf-8", "surrogateescape")
    file = folder / f"{name}{suffix}"
    pixels = np.random.default_rng(number).integers(
        0, 256, (rng.choice((1, 3, 24)), rng.choice((1, 5, 24)), 3), np.uint8
    )
    image, mode = Image.fromarray(pixels), rng.choice(MODES)
    try:
        image.convert(mode if mode != "I;16" else "I").save(file, FORMATS[suffix])
    except (OSError, ValueError):
        image.save(file, FORMATS[suffix])
    held = bytearray(file.read_bytes())
    how = rng.choice(("cut", "flip", "garbage", "empty", "text", "sound", "long"))
    if how == "cut":
        held = held[: rng.randrange(len(held))]
    elif how == "flip":
        for _ in range(rng.randint(1, 9)):
            held[rng.randrange(len(held))] = rng.randrange(256)
    elif how == "garbage":
        held = bytearray(rng.randbytes(rng.randrange(300)))
    elif how == "text":
        held = bytearray(b"<html>404</html>")
    elif how == "long":
        held += rng.randbytes(200)
    file.write_bytes(b"" if how == "empty" else held)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = random.Random(18)
    home = tmp_path / "many"
    home.mkdir()
    for number in range(COUNT):
        damaged(rng, home, number)
    (home / "._0001.png").write_bytes(b"\0\5\x16\7")
    (home / "folder.png").mkdir()
    os.mkfifo(home / "pipe.png")
    (home / "link.png").symlink_to(home / "nowhere.png")
    return home


def listed(folder: Path) -> set[str]:
    left_out = {"._0001.png", "folder.png", "pipe.png"}
    return {file.name for file in folder.iterdir() if file.name not in left_out}


def test_score_and_rank_name_every_file(folder, capsys, tmp_path):
    for command in (["score"], ["rank", "--sheet", str(tmp_path / "sheet.png")] if COUNT <= 100 else ["rank"]):
        assert main([*command, str(folder), "--json"]) == 2
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {Path(row["image"]).name for row in rows} == listed(folder)
        assert len(rows) == COUNT + 1
        assert all(row["error"] for row in rows if not row["valid"])
        assert all(1 <= row["rating"] <= 5 for row in rows if row["valid"])


def test_evaluate_names_every_file(folder, capsys, tmp_path):
    out = tmp_path / "out"
    command = [
        "evaluate",
        str(folder),
        "--degradation",
        "bicubic",
        "--restorer",
        "bicubic",
        "--reward",
        "none",
        "--n",
        "1",
    ]
    assert main([*command, "--metrics", "psnr_y", "--out", str(out), "--json"]) == 2
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    named = {json.loads(line)["image"] for line in (out / "records.jsonl").read_text().splitlines()}
    assert len(named) == COUNT + 1
    failed = [one["image"] for one in results["problems"]["failed"]]
    assert len(failed) == len(set(failed))
    assert all(one["error"] for one in results["problems"]["failed"])
