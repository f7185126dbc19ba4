"""A table of `zoomiqa score` that others write to: a second command, a spreadsheet, its user; and odd file names."""

from pathlib import Path

import pytest
import test_score_table
from PIL import Image
from test_cli import run
from test_score_table import FORMATS, Counting

from zoomiqa_reward.runs.tables import read_table, write_table

counting, folder = test_score_table.counting, test_score_table.folder


def images_of(table):
    return [row["image"] for row in read_table(Path(table))]


def test_two_commands_that_write_one_table_keep_each_others_rows(capsys, folder, counting, monkeypatch):
    model = counting()
    rate = Counting.rate

    def rate_while_another_writes(self, images, **options):
        monkeypatch.setattr(Counting, "rate", rate)
        assert run(capsys, "score", "in/white.png", "--out", "t.csv")[0] == 0
        return rate(self, images, **options)

    monkeypatch.setattr(Counting, "rate", rate_while_another_writes)
    assert run(capsys, "score", "in/dark.png", "in/mid.png", "--out", "t.csv")[0] == 0
    assert images_of("t.csv") == ["in/dark.png", "in/mid.png", "in/white.png"]
    assert model.asked == 3
    assert sorted(path.name for path in folder.iterdir()) == ["in", "t.csv"]  # no lock file


def add_column(table):
    rows = [row | {"label": f"mine {k}"} for k, row in enumerate(read_table(Path(table)))]
    write_table(Path(table), rows)


@pytest.mark.parametrize("suffix", FORMATS)
def test_columns_of_the_user_stay_with_their_images(capsys, folder, counting, suffix):
    counting()
    run(capsys, "score", "in/dark.png", "in/mid.png", "--out", f"t.{suffix}")
    add_column(f"t.{suffix}")
    for names in (["in/mid.png", "in/white.png"], ["in/white.png"], ["in/dark.png"]):
        assert run(capsys, "score", *names, "--out", f"t.{suffix}")[0] == 0
        labels = {row["image"]: row["label"] for row in read_table(Path(f"t.{suffix}"))}
        assert labels == {"in/mid.png": "mine 1", "in/white.png": None, "in/dark.png": "mine 0"}


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_image_under_three_names_is_one_row(capsys, folder, counting, suffix):
    model, table = counting(), f"t.{suffix}"
    run(capsys, "score", "in/dark.png", "in/mid.png", "--out", table)
    add_column(table)
    absolute = str(Path("in/dark.png").absolute())
    for names in (["./in/dark.png"], [absolute], [absolute, "in/dark.png", "./in/dark.png"]):
        assert run(capsys, "score", *names, "--out", table)[0] == 0
        labels = {row["image"]: row["label"] for row in read_table(Path(table))}
        assert labels == {names[0].removeprefix("./"): "mine 0", "in/mid.png": "mine 1"}
    assert model.asked == 2


def test_rows_of_another_working_folder_stay(capsys, folder, counting, monkeypatch):
    counting()
    table = str(folder / "t.csv")
    run(capsys, "score", "in/dark.png", "--out", table)
    monkeypatch.chdir("in")
    assert run(capsys, "score", "mid.png", "--out", table)[0] == 0
    assert images_of(table) == ["in/mid.png", "in/dark.png"]


def test_a_table_that_a_spreadsheet_saved_goes_on(capsys, folder, counting):
    model = counting()
    run(capsys, "score", "in/dark.png", "in/torn.png", "--out", "t.csv")
    saved = Path("t.csv").read_text().replace("True", "TRUE").replace("False", "FALSE")
    Path("t.csv").write_text(saved, encoding="utf-8-sig")
    model.asked = 0
    run(capsys, "score", "in/dark.png", "in/mid.png", "--out", "t.csv")
    assert model.asked == 1
    assert [row["valid"] for row in read_table(Path("t.csv"))] == ["True", "True", "False"]


@pytest.mark.parametrize(("old", "new", "words"), [
    ("True", "WAHR", "row 1: valid is 'WAHR'; must be true or false"),
    ("direct,0,", "direct,none,", "row 1: rounds is 'none'; must be a number"),
    ("zoomiqa-reward", "zoomiqa-reward,more", "line 2 has more cells than the header"),
])  # fmt: skip
def test_cells_that_cannot_be_read_are_named_and_the_table_stays(capsys, folder, counting, old, new, words):
    model = counting()
    run(capsys, "score", "in/dark.png", "--out", "t.csv")
    Path("t.csv").write_text(before := Path("t.csv").read_text().replace(old, new))
    model.asked = 0
    code, _, err = run(capsys, "score", "in/mid.png", "--out", "t.csv")
    assert (code, model.asked) == (1, 0)
    assert words in err
    assert Path("t.csv").read_text() == before


def test_a_table_with_other_columns_is_refused_before_the_work(capsys, folder, counting):
    write_table(Path("summary.csv"), [{"image": "a.png", "score": 1.0, "sha256": "0"}])  # as best-of-n has it
    code, _, err = run(capsys, "score", "in", "--out", "summary.csv")
    assert code == 1
    assert "table of another command, for it has no column 'rating'" in err


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_name_that_a_file_may_have_is_one_row(capsys, folder, counting, suffix):
    model = counting()
    Path("odd").mkdir()
    for k, name in enumerate(("caf\udce9.png", "a\rb.png", "x\r\ny.png", "u\u2028v.png")):
        Image.new("RGB", (32, 40), (90 + k,) * 3).save(f"odd/{name}")
    for _ in range(3):
        assert run(capsys, "score", "odd", "--out", f"t.{suffix}")[0] == 0
    assert (len(images_of(f"t.{suffix}")), model.asked) == (4, 4)


def test_images_of_one_name_from_two_working_folders_keep_their_rows(capsys, folder, counting, monkeypatch):
    model = counting()
    for _ in range(2):
        for level, side in ((64, "x"), (128, "y")):
            Path(side, "photos").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 40), (level,) * 3).save(f"{side}/photos/1.png")
            monkeypatch.chdir(folder / side)
            code, _, err = run(capsys, "score", "photos", "--out", "../all.csv")
            assert (code, "other bytes" in err) == (0, False)
            monkeypatch.chdir(folder)
    assert sorted(images_of("all.csv")) == ["x/photos/1.png", "y/photos/1.png"]
    assert model.asked == 2
    monkeypatch.chdir("x/photos")
    assert run(capsys, "score", "../../y/photos/1.png", "--out", "../../all.csv")[0] == 0
    assert images_of("../../all.csv") == ["y/photos/1.png", "x/photos/1.png"]
    Image.new("RGB", (32, 40), (200,) * 3).save("1.png")
    assert "files with other bytes than before: 1.png" in run(capsys, "score", "1.png", "--out", "../../all.csv")[2]


def test_a_table_behind_a_link_is_the_one_that_is_written(capsys, folder, counting):
    counting()
    Path("real").mkdir()
    for name in ("in/dark.png", "in/mid.png"):  # first the link leads to nothing
        if not Path("link.csv").is_symlink():
            Path("link.csv").symlink_to("real/scores.csv")
        assert run(capsys, "score", name, "--out", "link.csv")[0] == 0
    assert Path("link.csv").is_symlink()
    assert images_of("real/scores.csv") == ["../in/mid.png", "../in/dark.png"]
