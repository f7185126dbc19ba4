"""The program `zoomiqa`: JSON lines, exit codes, and that one bad file never stops the others."""

import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_checkpoint

from zoomiqa_reward.cli import inputs, ranking_output
from zoomiqa_reward.cli import main as cli
from zoomiqa_reward.cli.inputs import expand
from zoomiqa_reward.images import ImageError, load_image
from zoomiqa_reward.model.ratings import Assessment, Ratings
from zoomiqa_reward.model.turns import Turn

FIELDS = ["image", "rating", "std", "score_0_100", "valid", "error", "mode", "rounds", "model", "notes"]
WORDS = ["sections", "bbox", "crop_box", "texts"]
OPTIONS = {
    "score": "--adapter --batched --config --device --dtype --every --help --json --keep-up --mode --model --out "
    "--overwrite --protocol --question --ray --recursive --shared --strict",
    "assess": "--adapter --batched --config --device --dtype --help --json --model --protocol --question --strict",
    "rank": "--adapter --batched --config --device --dtype --every --help --json --keep-up --lq --mode --model "
    "--overwrite --protocol --question --reference,--hr --sheet --strict",
}


class Scripted:
    """A model that rates by mean brightness and says nothing about a black image."""

    name = "scripted"

    def rate(self, images, mode, strict, question=None):
        mean = torch.tensor([1 + 4 * float(image.mean()) for image in images])
        valid = mean > 1
        nan = torch.tensor(math.nan)
        std = torch.where(valid, torch.full_like(mean, 0.25), nan)
        return Ratings(value=torch.where(valid, mean, nan), std=std, valid=valid, std_kind="token")

    def assess(self, images, question=None, strict=False):
        return [self._answer(load_image(image), question) for image in images]

    def _answer(self, image, question):
        rating = 1 + 4 * float(image.mean())
        if rating == 1:
            turn = _turn("garbled", {}, None, None, math.nan)
            return Assessment(rating=math.nan, std=math.nan, turns=(turn,), valid=False, error="round 1: no answer")
        turns = (
            _turn("one", {"Image Quality Summary": question or "Soft."}, (0.1, 0.2, 0.5, 0.6), None, rating),
            _turn("two", {"Final Decision & Rationale": "Blurred eyes."}, None, (2, 3, 20, 30), rating),
        )
        return Assessment(rating=rating, std=math.nan, turns=turns, valid=True)


def _turn(text, sections, bbox, crop_box, rating):
    return Turn(prompt="p", text=text, sections=sections, bbox=bbox, crop_box=crop_box, tool=None, rating=rating)


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(inputs, "load_model", lambda *_, **__: Scripted())


@pytest.fixture
def grays(tmp_path, monkeypatch):
    """Files by brightness: black.png cannot be rated, torn.png not read."""
    monkeypatch.chdir(tmp_path)
    for name, level in (("black", 0), ("dark", 64), ("mid", 128), ("white", 255)):
        Image.new("RGB", (32, 40), (level,) * 3).save(f"{name}.png")
    Path("torn.png").write_bytes(Path("mid.png").read_bytes()[:40])
    return tmp_path


def run(capsys, *args):
    code = cli.main([*args])
    out, err = capsys.readouterr()
    return code, out, err


def lines(out):
    return [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]


def test_score_prints_the_documented_json(capsys, photograph):
    code, out, _ = run(capsys, "score", str(photograph), "--model", str(tiny_checkpoint()), "--json", "--device", "cpu")
    [record] = lines(out)
    assert code == 0
    assert list(record) == FIELDS
    assert record["image"] == str(photograph)
    assert 1 <= record["rating"] <= 5
    assert record["std"] > 0
    assert record["score_0_100"] == pytest.approx((record["rating"] - 1) * 25)
    assert (record["valid"], record["error"], record["mode"], record["rounds"]) == (True, None, "direct", 0)


def test_an_unreadable_file_is_a_line_and_the_others_are_measured(capsys, grays, scripted):
    code, out, _ = run(capsys, "score", "torn.png", "mid.png", "none.png", "black.png", "--json")
    torn, mid, none, black = lines(out)
    assert code == 2
    assert mid["rating"] == pytest.approx(1 + 4 * 128 / 255)
    for record, reason in ((torn, "torn.png"), (none, "no such file"), (black, "half of the probability")):
        assert record["valid"] is False
        assert record["rating"] is record["std"] is record["score_0_100"] is None
        assert reason in record["error"]
        assert "\n" not in record["error"]


@pytest.mark.parametrize("how", ["--strict", "--batched"])
def test_an_image_that_the_model_refuses_fails_alone(capsys, grays, monkeypatch, how):
    class Picky(Scripted):
        def rate(self, images, **options):
            if any(image.mean() > 0.9 for image in images):
                raise ValueError("too bright\nfor me")
            return super().rate(images, **options)

    monkeypatch.setattr(inputs, "load_model", lambda *_, **__: Picky())
    code, out, _ = run(capsys, "score", "dark.png", "white.png", "mid.png", "--json", how)
    assert code == 2
    assert [record["valid"] for record in lines(out)] == [True, False, True]
    assert lines(out)[1]["error"] == "too bright for me"


def test_batched_scores_in_chunks_and_in_order(capsys, grays, monkeypatch):
    sizes = []

    class Counting(Scripted):
        def rate(self, images, **options):
            sizes.append(len(images))
            return super().rate(images, **options)

    monkeypatch.setattr(inputs, "load_model", lambda *_, **__: Counting())
    files = ["dark.png", "mid.png", "white.png"] * 4
    code, out, _ = run(capsys, "score", *files, "none.png", "--json", "--batched")
    assert (code, sizes) == (2, [8, 4])
    assert [record["image"] for record in lines(out)] == [*files, "none.png"]
    assert [record["rating"] for record in lines(out)][:3] == sorted(record["rating"] for record in lines(out)[:3])


def test_reason_counts_rounds_and_has_no_spread(capsys, grays, scripted):
    code, out, _ = run(capsys, "score", "mid.png", "black.png", "--mode", "reason", "--json")
    mid, black = lines(out)
    assert code == 2
    assert (mid["mode"], mid["rounds"], mid["std"]) == ("reason", 2, None)
    assert (black["rounds"], black["error"]) == (1, "round 1: no answer")


def test_assess_adds_the_words(capsys, grays, scripted):
    code, out, _ = run(capsys, "assess", "mid.png", "none.png", "--json", "--question", "How?")
    mid, none = lines(out)
    assert code == 2
    assert list(mid) == FIELDS + WORDS
    assert mid["sections"] == [{"Image Quality Summary": "How?"}, {"Final Decision & Rationale": "Blurred eyes."}]
    assert (mid["bbox"], mid["crop_box"], mid["texts"]) == ([0.1, 0.2, 0.5, 0.6], [2, 3, 20, 30], ["one", "two"])
    assert [none[key] for key in WORDS] == [[], None, None, []]


def test_assess_never_prints_text_that_could_not_be_read(capsys, grays, scripted):
    code, out, _ = run(capsys, "assess", "black.png", "mid.png")
    assert code == 2
    assert "garbled" not in out
    assert "no section could be read" in out
    assert "Blurred eyes." in out
    _, out, _ = run(capsys, "assess", "black.png", "--json")
    assert lines(out)[0]["texts"] == ["garbled"]


def test_tables_for_people_say_what_failed(capsys, grays, scripted):
    for command in ("score", "assess", "rank"):
        code, out, _ = run(capsys, command, "mid.png", "none.png")
        assert code == 2
        assert "3.01" in out
        assert "no such file" in out
        assert "nan" not in out.lower()


def test_rank_puts_the_best_first_and_failures_last(capsys, grays, scripted):
    code, out, err = run(capsys, "rank", "torn.png", "dark.png", "white.png", "mid.png", "mid.png", "--json")
    records = lines(out)
    assert code == 2
    assert list(records[0]) == [*FIELDS, "rank"]
    assert [Path(record["image"]).stem for record in records] == ["white", "mid", "mid", "dark", "torn"]
    assert [record["rank"] for record in records] == [1, 2, 2, 4, None]
    assert "1.992 above the second" in err


def test_a_pattern_may_match_folders_and_a_link_to_nothing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/one", "runs/two/deep"):
        Path(name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(f"{name}/a.png")
    assert expand(["runs/*"]) == [
        "runs/one/a.png",
        "runs/two",
    ]  # the folder without images is named, as the shell would
    assert expand(["runs/**"]) == expand(["runs"], recursive=True)  # a folder and its files both match
    assert expand(["runs/*"], recursive=True) == ["runs/one/a.png", "runs/two/deep/a.png"]
    Path("link.png").symlink_to("nowhere.png")
    with pytest.raises(ImageError, match="link to a file that is missing"):
        load_image("link.png")


def test_a_sheet_does_not_lie_among_the_images_that_are_ranked(capsys, grays, scripted):
    code, _, err = run(capsys, "rank", ".", "--sheet", "sheet.png")
    assert code == 1
    assert "name a place outside of it" in err
    assert not Path("sheet.png").exists()


def test_images_of_one_name_are_told_apart_on_a_sheet(capsys, grays, scripted, monkeypatch):
    for method, source in (("a", "dark.png"), ("b", "white.png")):
        Path(method).mkdir()
        shutil.copy(source, f"{method}/x.png")
    shown = []
    monkeypatch.setattr(ranking_output, "contact_sheet", lambda images, entries, *args, **how: shown.extend(entries))
    assert run(capsys, "rank", "a/x.png", "b/x.png", "mid.png", "--sheet", "sheet.png")[0] == 0
    assert sorted(entry.name for entry in shown) == ["a/x.png", "b/x.png", "mid.png"]


def test_rank_writes_a_sheet(capsys, grays, scripted):
    code, _, _ = run(capsys, "rank", "dark.png", "white.png", "torn.png", "--sheet", "sheet.png")
    assert code == 2
    with Image.open("sheet.png") as sheet:
        assert sheet.mode == "RGB"


def test_images_of_a_ranking_are_opened_one_at_a_time(capsys, grays, scripted, monkeypatch):
    openers = []
    monkeypatch.setattr(ranking_output, "contact_sheet", lambda images, *args, **how: openers.extend(images))
    run(capsys, "rank", "dark.png", "torn.png", "--sheet", "sheet.png")
    assert [opener() is None for opener in openers] == [False, True]


def test_rank_of_one_file_needs_no_second(capsys, grays, scripted):
    code, out, err = run(capsys, "rank", "dark.png", "--json")
    assert (code, len(lines(out))) == (0, 1)
    assert "above" not in err


def test_folders_and_patterns_expand_in_order(grays):
    Path("notes.txt").write_text("no image")
    Path("a[1].png").write_bytes(Path("mid.png").read_bytes())
    here = ["a[1].png", "black.png", "dark.png", "mid.png", "torn.png", "white.png"]
    assert expand(["."]) == here
    assert expand(["?a*.png", "mid.png"]) == ["dark.png", "mid.png"]
    assert expand(["mid.png", "mid.png"]) == ["mid.png", "mid.png"]
    assert expand(["./mid.png", "*d*.png", "mid.png"]) == ["./mid.png", "dark.png"]
    assert expand([str(Path("mid.png").absolute()), "."])[1:] == [name for name in here if name != "mid.png"]
    assert expand(["a[1].png"]) == ["a[1].png"]
    assert expand(["*.gif"]) == ["*.gif"]


def test_images_of_other_kinds_in_a_folder_are_counted(capsys, grays, scripted):
    for name in ("a.heic", "b.HEIC", "c.jxl", ".d.heic", "notes.txt"):
        Path(name).write_text("x")
    _, _, err = run(capsys, "score", ".")
    assert ".: 3 files of other kinds were left out (.heic 2, .jxl 1); convert them to PNG" in err


@pytest.mark.parametrize("command", ["score", "assess", "rank"])
def test_an_empty_question_is_none(capsys, grays, command):
    code, _, err = run(capsys, command, "mid.png", "--question", " ")
    assert code == 1
    assert "--question" in err
    assert "must be a text" in err


def test_lines_come_as_they_are_measured(capsys, grays, monkeypatch):
    seen = []

    class Watching(Scripted):
        def rate(self, images, **options):
            seen.append(len(capsys.readouterr().out.splitlines()))
            return super().rate(images, **options)

    monkeypatch.setattr(inputs, "load_model", lambda *_, **__: Watching())
    cli.main(["score", "dark.png", "mid.png", "white.png", "--json"])
    assert seen == [0, 1, 1]


def test_an_interrupt_is_130_and_keeps_what_was_measured(capsys, grays, monkeypatch):
    class Interrupted(Scripted):
        def rate(self, images, **options):
            if images[0].mean() > 0.9:
                raise KeyboardInterrupt
            return super().rate(images, **options)

    monkeypatch.setattr(inputs, "load_model", lambda *_, **__: Interrupted())
    for more in ((), ("--json",)):
        code, out, _ = run(capsys, "score", "mid.png", "white.png", *more)
        assert code == 130
        assert "mid.png" in out
        assert "white.png" not in out


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["score"], "images"),
        (["score", "a.png", "--nonsense"], "--nonsense"),
        (["score", "a.png", "--mode", "other"], "--mode"),
        (["no-such-command"], "no-such-command"),
        (["score", "a.png", "--model", "./no/such/folder"], "no/such/folder"),
        (["protocol", "import", "no-such-file.py"], "no-such-file.py"),
    ],
)
def test_what_cannot_run_is_1_with_a_reason(capsys, args, reason):
    code, out, err = run(capsys, *args)
    assert (code, out) == (1, "")
    assert reason in err
    assert "Traceback" not in err


def test_help_is_0(capsys):
    for args in ([], ["--help"], ["score", "--help"]):
        code, out, _ = run(capsys, *args)
        assert code == 0
        assert "score" in out
    assert run(capsys, "--version")[:2] == (0, "zoomiqa-reward 0.1.0\n")


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_options_are_frozen(capsys, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, command, "--help")
    found = {word.strip(",") for word in out.split() if word.startswith("--")}
    assert sorted(found) == OPTIONS[command].split()


def test_a_command_without_its_extra_names_it(capsys, monkeypatch):
    known = cli.commands()
    point = EntryPoint(name="dream", value="no_such_package.cli:dream [restoration]", group=cli.GROUP)
    monkeypatch.setattr(cli, "commands", lambda: known | {"dream": point})
    code, out, err = run(capsys, "dream", "--n", "8")
    assert (code, out) == (1, "")
    assert "pip install -e '.[restoration]'" in err
    assert run(capsys, "--help")[0] == 0


def test_a_command_that_lacks_its_extra_while_running_names_it(capsys, monkeypatch, tmp_path):
    (tmp_path / "late_command.py").write_text("def run():\n    import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint(name="late", value="late_command:run [train]", group=cli.GROUP)
    monkeypatch.setattr(cli, "commands", lambda: {"late": point})
    code, _, err = run(capsys, "late")
    assert code == 1
    assert "needs 'no_such_package'" in err
    assert "'.[train]'" in err


def test_protocol_import_writes_a_file_that_loads(capsys, tmp_path):
    from zoomiqa_reward.protocol import Protocol

    source = tmp_path / "protocol.py"
    source.write_text(
        textwrap.dedent("""
            STAGE1_PROMPT = "Rate it. {question}"
            STAGE2_PROMPT = "Again: {question} {{}}"
            RANDOM_QUESTIONS = ["How good is it?", "How bad?"]
        """)
    )
    code, out, _ = run(capsys, "protocol", "import", str(source), "--out", str(tmp_path / "mine.json"))
    assert (code, out.strip()) == (0, str(tmp_path / "mine.json"))
    protocol = Protocol.load(tmp_path / "mine.json")
    assert protocol.round2.render("x") == "Again: {question} {{}}"


@pytest.mark.integration
def test_stdout_holds_json_alone_and_a_closed_pipe_is_quiet(photograph):
    """In a process of its own: what transformers prints while loading must not end up between the lines."""
    command = [sys.executable, "-m", "zoomiqa_reward.cli.main", "score", *[str(photograph)] * 2, "--json"]
    command += ["--model", str(tiny_checkpoint()), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(lines(done.stdout)) == 2
    assert "loading" in done.stderr

    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    reader.stdout.close()
    _, err = reader.communicate()
    assert reader.returncode == 1
    assert "Error" not in err
    assert "Exception" not in err


@pytest.mark.integration
def test_help_starts_without_torch():
    code = "import sys; from zoomiqa_reward.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
