"""`zoomiqa score FOLDER --out`: a table that a second call goes on with, whatever its format."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import test_cli
from photographs import photograph
from PIL import Image
from test_cli import Scripted, run

from zoomiqa_reward.cli import inputs, score_table
from zoomiqa_reward.errors import OutputError
from zoomiqa_reward.images.listing import list_images
from zoomiqa_reward.runs.outputs import made_here
from zoomiqa_reward.runs.tables import claim_table, read_table, write_table

FORMATS = ["jsonl", "csv", "parquet"]


class Counting(Scripted):
    """A model with a fingerprint that counts the images it was asked about."""

    def __init__(self, fingerprint="0"):
        self.fingerprint, self.asked = fingerprint, 0

    def rate(self, images, **options):
        self.asked += len(images)
        return super().rate(images, **options)


@pytest.fixture
def counting(monkeypatch):
    def load(fingerprint="0"):
        model = Counting(fingerprint)
        monkeypatch.setattr(inputs, "load_model", lambda *_, **__: model)
        return model

    return load


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """dark 64, mid 128 and white 255, grey 100 in a subfolder; torn.png cannot be read."""
    monkeypatch.chdir(tmp_path)
    Path("in/deep/er").mkdir(parents=True)
    for name, level in (("dark", 64), ("mid", 128), ("white", 255), ("deep/er/grey", 100)):
        Image.new("RGB", (32, 40), (level,) * 3).save(f"in/{name}.png")
    Path("in/torn.png").write_bytes(Path("in/mid.png").read_bytes()[:40])
    return tmp_path


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_second_call_measures_only_what_is_new(capsys, folder, counting, suffix):
    model = counting()
    command = ("score", "in", "--out", f"t.{suffix}")
    code, out, err = run(capsys, *command)
    assert (code, model.asked) == (2, 3)
    assert "not measured: in/torn.png" in err
    assert err.count("torn.png") == 1  # its name once
    assert "4, 3 of them measured" in " ".join(out.split())
    rows = read_table(Path(f"t.{suffix}"))
    assert [row["image"] for row in rows] == ["in/dark.png", "in/mid.png", "in/torn.png", "in/white.png"]
    assert float(rows[1]["rating"]) == pytest.approx(1 + 4 * 128 / 255)
    assert rows[2]["rating"] is None

    Path("in/mid.png").rename("in/middle.png")  # the same bytes
    Image.new("RGB", (32, 40), (65,) * 3).save("in/dark.png")  # other bytes
    Image.new("RGB", (32, 40), (200,) * 3).save("in/new.png")
    model.asked = 0
    code, out, err = run(capsys, *command)
    assert (code, model.asked) == (2, 2)
    assert f"t.{suffix}: 5 images, 2 of them measured before" in err
    again = {row["image"]: row for row in read_table(Path(f"t.{suffix}"))}
    assert again["in/middle.png"]["rating"] == rows[1]["rating"]
    assert float(again["in/dark.png"]["rating"]) == pytest.approx(1 + 4 * 65 / 255)

    other = counting("1")  # another model measures all of them anew
    run(capsys, *command)
    assert other.asked == 4


def save_photograph(path):
    image = photograph(0, 96, 128)
    Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(path)


@pytest.mark.integration
@pytest.mark.parametrize("command", ["score", "rank", "assess"])
def test_the_dtype_that_is_named_is_the_one_that_rates(capsys, folder, monkeypatch, command):
    loaded, load = [], inputs.load_model
    monkeypatch.setattr(
        inputs, "load_model", lambda *given, **options: loaded.append(load(*given, **options)) or loaded[-1]
    )
    save_photograph("in/photograph.png")
    for dtype in ("float32", "bfloat16"):
        code, _, err = run(capsys, command, "in/photograph.png", "--device", "cpu", "--dtype", dtype)
        assert code == 0, err
    assert [str(iqa.checkpoint.dtype) for iqa in loaded] == ["torch.float32", "torch.bfloat16"]
    single, half = (float(iqa.rate(["in/photograph.png"]).mean[0]) for iqa in loaded)
    assert single != half
    assert abs(single - half) < 0.05


def test_a_table_is_not_continued_in_another_dtype(capsys, folder):
    save_photograph("in/photograph.png")
    command = ("score", "in/photograph.png", "--out", "t.jsonl", "--device", "cpu")
    assert run(capsys, *command)[0] == 0
    (before,) = read_table(Path("t.jsonl"))
    assert run(capsys, *command, "--dtype", "bfloat16")[0] == 0
    (after,) = read_table(Path("t.jsonl"))
    assert before["fingerprint"] != after["fingerprint"]
    assert before["rating"] != after["rating"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_of_other_images_stay(capsys, folder, counting, suffix):
    model = counting()
    run(capsys, "score", "in/dark.png", "--out", f"t.{suffix}")
    run(capsys, "score", "in/mid.png", "--out", f"t.{suffix}", "--json")
    assert [row["image"] for row in read_table(Path(f"t.{suffix}"))] == ["in/mid.png", "in/dark.png"]
    run(capsys, "score", "in/dark.png", "--out", f"t.{suffix}")
    assert model.asked == 2


def test_an_interrupt_keeps_what_was_measured(capsys, folder, counting, monkeypatch):
    model = counting()
    rate = Counting.rate

    def interrupted(self, images, **options):
        if self.asked == 2:
            raise KeyboardInterrupt
        return rate(self, images, **options)

    monkeypatch.setattr(Counting, "rate", interrupted)
    assert run(capsys, "score", "in", "--out", "t.csv")[0] == 130
    assert [row["image"] for row in read_table(Path("t.csv"))] == ["in/dark.png", "in/mid.png", "in/torn.png"]
    monkeypatch.setattr(Counting, "rate", rate)
    model.asked = 0
    assert run(capsys, "score", "in", "--out", "t.csv")[0] == 2
    assert model.asked == 1


def test_an_interrupt_of_a_second_call_keeps_what_the_first_measured(capsys, folder, counting, monkeypatch):
    counting()
    run(capsys, "score", "in/mid.png", "in/white.png", "--out", "t.csv")
    monkeypatch.setattr(score_table, "SAVE_EVERY_S", -1)
    table = score_table.ScoreTable(Path("t.csv"), "0")
    records = score_table.measure_into(
        table, Counting(), ["in/deep/er/grey.png", "in/dark.png", "in/mid.png", "in/white.png"], chunk=1, mode="direct"
    )
    table.open()
    next(records), next(records)
    kept = {"in/mid.png", "in/white.png"}
    assert {row["image"] for row in read_table(Path("t.csv"))} == {"in/deep/er/grey.png", *kept}  # a kill
    records.close()  # an interrupt
    assert {row["image"] for row in read_table(Path("t.csv"))} == {"in/deep/er/grey.png", "in/dark.png", *kept}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_overwrite_replaces_a_table_that_is_not_ours_or_damaged(capsys, folder, counting, suffix):
    counting()
    for text in ("image,sha256\na.png,0\n" if suffix == "csv" else '{"sha256": "0"}\n', '{"sha\n"'):
        Path(f"t.{suffix}").write_text(text)
        assert run(capsys, "score", "in/mid.png", "--out", f"t.{suffix}", "--overwrite")[0] == 0
        assert [row["image"] for row in read_table(Path(f"t.{suffix}"))] == ["in/mid.png"]


def test_a_table_is_written_while_the_work_goes_on(folder, counting, monkeypatch):
    monkeypatch.setattr(score_table, "SAVE_EVERY_S", -1)
    table = score_table.ScoreTable(Path("t.csv"), "f")
    records = score_table.measure_into(table, Counting(), ["in/dark.png", "in/mid.png"], chunk=1, mode="direct")
    next(records), next(records)
    assert len(read_table(Path("t.csv"))) == 1  # a kill here costs the second image


def test_other_programs_read_what_csv_and_json_hold(capsys, folder, counting):
    counting()
    run(capsys, "score", "in", "--recursive", "--out", "t.csv")
    run(capsys, "score", "in", "--recursive", "--out", "t.jsonl")
    with open("t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line, parse_constant=pytest.fail) for line in Path("t.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [line["image"] for line in lines]
    assert "in/deep/er/grey.png" in [row["image"] for row in rows]
    assert [*test_cli.FIELDS, "sha256", "fingerprint", "made_by"] == list(rows[0]) == list(lines[0])


def test_the_summary_counts():
    records = [a_record(f"{k}.png", float(k)) for k in range(1, 8)] + [a_record("bad.png", None)]
    summary = score_table.summarize(records)
    assert (summary["count"], summary["measured"], summary["mean"]) == (8, 7, 4.0)
    assert summary["percentiles"]["50"] == 4.0
    assert summary["percentiles"]["25"] == 2.5
    assert [row["image"] for row in summary["worst"]] == ["1.png", "2.png", "3.png", "4.png", "5.png"]
    assert summary["not_measured"] == [{"image": "bad.png", "error": "why"}]
    assert score_table.summarize([])["mean"] is None


def a_record(image="a.png", rating=1.0):
    from zoomiqa_reward.model.measuring import RatedImage

    if rating is None:
        return RatedImage(image=image, valid=False, error="why", mode="direct", model="m")
    return RatedImage(image=image, rating=rating, std=0.5, valid=True, mode="direct", model="m")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_table_of_the_user_stays(capsys, folder, counting, suffix):
    counting()
    mine = folder / f"mine.{suffix}"
    mine.write_text("image,mos\na.png,3\n" if suffix == "csv" else '{"image": "a.png"}\n')
    before = mine.read_bytes()
    assert run(capsys, "score", "in", "--out", mine.name)[0] == 1
    assert mine.read_bytes() == before
    assert not made_here(mine)
    write_table(folder / f"ours.{suffix}", [{"image": "a", "notes": ["x", "y"], "rating": float("nan")}])
    assert made_here(folder / f"ours.{suffix}")
    [row] = read_table(folder / f"ours.{suffix}")
    assert row["notes"] in (["x", "y"], "x; y")
    assert row["rating"] is None


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_table_of_another_command_stays(capsys, folder, counting, suffix):
    """Both are ours: hours of `score` must not go for a `compare`, and `score` cannot go on with such a table."""
    counting()
    table = folder / f"out.{suffix}"
    write_table(table, [{"name": "a", "a": 1.0, "b": 2.0, "a_file": "a.png"}])
    before = table.read_bytes()
    assert run(capsys, "score", str(folder), "--out", str(table))[0] == 1
    with pytest.raises(OutputError, match="table of another command"):
        claim_table(table, columns=score_table.COLUMNS)
    assert table.read_bytes() == before
    assert claim_table(table, columns=["a_file"]) == table
    assert run(capsys, "score", str(folder), "--out", str(table), "--overwrite")[0] != 1
    assert all("sha256" in row and "a_file" not in row for row in read_table(table))


def test_a_damaged_table_is_named(folder):
    for name, text in (("a.jsonl", '{"made_by": "zoomiqa-reward"}\n{"im'), ("b.parquet", "PAR1xx")):
        (folder / name).write_text(text)
        with pytest.raises(OutputError, match=name):
            read_table(folder / name)


def test_parquet_without_pyarrow_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputError, match=r"zoomiqa-reward\[restoration\]"):
        claim_table("t.parquet")
    assert claim_table("t.csv") == Path("t.csv")


def test_a_name_that_is_no_unicode_is_kept(folder):
    name = "a\udcff.png"
    for suffix in ("jsonl", "csv"):
        write_table(folder / f"t.{suffix}", [{"image": name}])
        assert read_table(folder / f"t.{suffix}")[0]["image"] == name
    write_table(folder / "t.parquet", [{"image": name}])
    assert read_table(folder / "t.parquet")[0]["image"] == r"a\xff.png"


def test_a_folder_is_searched_through(folder):
    Path("in/.hidden").mkdir()
    Image.new("RGB", (9, 9)).save("in/.hidden/a.png")
    Path("in/link").symlink_to(Path("in/deep").absolute())
    Path("in/deep/back").symlink_to(Path("in").absolute())  # a circle
    assert [path.name for path in list_images(Path("in"), recursive=True)] == [
        "dark.png", "grey.png", "mid.png", "torn.png", "white.png"
    ]  # fmt: skip
    assert len(list_images(Path("in"))) == 4


@pytest.mark.integration
def test_completion_knows_commands_options_and_choices():
    def complete(words):
        code = "import sys; from zoomiqa_reward.cli.main import main; sys.exit(main([]))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True,
            env={"_ZOOMIQA_COMPLETE": "complete_bash", "COMP_WORDS": words, "PATH": "",
                 "COMP_CWORD": str(len(words.split(" ")) - 1), "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert complete("zoomiqa sc") == ["score"]
    assert complete("zoomiqa score --mo") == ["--model", "--mode"]
    assert complete("zoomiqa score --mode r") == ["reason"]
    assert "--config" in complete("zoomiqa protocol import --")


def test_a_subfolder_that_may_not_be_opened_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    for name in ("a", "closed"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "x.png")
    listed = Path.iterdir

    def iterdir(folder):  # tests may run as a user whom no mode keeps out
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert list_images(tmp_path, recursive=True) == [tmp_path / "a" / "x.png", tmp_path / "closed"]
    with pytest.raises(PermissionError):
        list_images(tmp_path / "closed")
