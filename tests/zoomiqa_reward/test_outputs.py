"""No output replaces an input, or a file that this program did not make; what it made itself it may replace."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from zoomiqa_reward.cli.main import main
from zoomiqa_reward.images.contact_sheet import SheetEntry, contact_sheet
from zoomiqa_reward.images.loading import save_png
from zoomiqa_reward.runs.folder import bind
from zoomiqa_reward.runs.json_lines import append_line, read_lines
from zoomiqa_reward.runs.outputs import OutputError, claim_file, claim_folder, made_here, require_folder, write_figure
from zoomiqa_reward.runs.program import message_of
from zoomiqa_reward.runs.progress import ProgressLines
from zoomiqa_reward.runs.settings import AnotherRun
from zoomiqa_reward.runs.tables import write_table


def photograph(file: Path, colour: tuple[int, int, int] = (90, 120, 40)) -> Path:
    Image.effect_noise((96, 80), 60).convert("RGB").point(lambda value: value // 2 + colour[0] // 2).save(file)
    return file


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_forgotten_argument_does_not_cost_a_photograph(tmp_path, capsys):
    files = [photograph(tmp_path / f"{name}.png") for name in "abc"]
    before = [digest(file) for file in files]
    for options in ([], ["--overwrite"]):
        for sheet, rest in ((files[0], files[1:]), (files[0], files)):
            if options and sheet not in rest:
                continue  # the user's own word, for a file that is no input
            assert main(["rank", "--sheet", str(sheet), *map(str, rest), *options]) == 1
    assert main(["rank", str(tmp_path), "--sheet", str(files[1]), "--overwrite"]) == 1  # an input by its folder
    assert main(["check", str(files[0]), "--figure", str(files[0]), "--overwrite"]) == 1
    assert [digest(file) for file in files] == before
    assert "inputs" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_what_this_program_made_it_may_replace(tmp_path, suffix):
    file = tmp_path / f"sheet{suffix}"
    image = Image.new("RGB", (32, 32))
    write_figure(image, file)
    assert made_here(file)
    write_figure(image, file)
    with pytest.raises(OutputError, match="inputs"):
        claim_file(file, inputs=[file])
    image.save(file)
    with pytest.raises(OutputError, match="--overwrite"):
        write_figure(image, file)
    write_figure(image, file, overwrite=True)
    assert made_here(file)


def test_a_figure_replaces_no_image_that_a_run_keeps(tmp_path, capsys):
    """`rank --sheet run/best.png` put the sheet in the place of the restoration."""
    photos = [str(photograph(tmp_path / f"{name}.png")) for name in "ab"]
    kept = save_png(Image.new("RGB", (8, 8)), claim_folder(tmp_path / "run") / "best.png")
    copy = tmp_path / "copy.png"
    copy.write_bytes(kept.read_bytes())
    before = digest(kept)
    for target in (kept, copy):
        assert main(["rank", *photos, "--sheet", str(target)]) == 1
        assert f"{target}: is an image that a run keeps" in capsys.readouterr().err
        assert digest(target) == before
    assert save_png(Image.new("RGB", (9, 9)), kept) == kept  # the run itself may
    write_figure(Image.new("RGB", (8, 8)), kept, overwrite=True)
    assert made_here(kept)
    write_figure(Image.new("RGB", (8, 8)), kept)


def test_every_writer_of_images_asks(tmp_path):
    mine = photograph(tmp_path / "best.png")
    before = digest(mine)
    for write in (
        lambda: save_png(Image.new("RGB", (8, 8)), mine),
        lambda: contact_sheet([Image.new("RGB", (8, 8))], [SheetEntry(name="a", rating=3.0)], mine),
    ):
        with pytest.raises(OutputError, match="did not make it"):
            write()
    assert digest(mine) == before
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".tmp")]


def test_a_folder_that_may_not_be_written_to_is_named_before_the_work(tmp_path, monkeypatch):
    """root may write everywhere, so the system's answer is replaced."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for claim in (claim_file, require_folder):
        with pytest.raises(OutputError, match="may not be written to"):
            claim(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "words"), [("no/a.png", "no folder"), ("a.txt", "no image format"), ("a", "no suffix"), ("", "folder")]
)
def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path, name, words):
    with pytest.raises(OutputError, match=words):
        claim_file(tmp_path / name, suffixes=name != "")


def test_a_link_to_an_input_is_that_input(tmp_path):
    photo = photograph(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(photo)
    with pytest.raises(OutputError, match="inputs"):
        claim_file(tmp_path / "link.png", inputs=[photo], overwrite=True)


def test_a_run_takes_no_folder_of_the_users(tmp_path):
    photograph(tmp_path / "best.png")
    with pytest.raises(OutputError, match=r"holds best\.png"):
        claim_folder(tmp_path)
    assert claim_folder(tmp_path / "run") == claim_folder(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    claim_folder(tmp_path / "run")  # marked as ours before
    with pytest.raises(OutputError, match="is a file"):
        claim_folder(tmp_path / "best.png")


@pytest.mark.parametrize("name", ["settings.json", "run.json", "state.pt"])
def test_a_users_file_with_the_name_of_a_record_makes_no_run(tmp_path, name):
    """Many programs write `settings.json`; the folder around it is the user's, and so is a `results.json` beside it."""
    (tmp_path / name).write_text('{"editor.fontSize": 12}')
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(OutputError, match="which this program did not make"):
        claim_folder(tmp_path)
    assert not (tmp_path / ".zoomiqa").exists()


def test_a_run_from_before_folders_were_marked_goes_on(tmp_path):
    (tmp_path / "run.json").write_text('{"versions": {"zoomiqa-reward": "0.1"}}')
    assert claim_folder(tmp_path) == tmp_path


def test_protocol_import_replaces_a_protocol_file_only(tmp_path):
    target = tmp_path / "p.json"
    target.write_text(json.dumps({"mine": 1}))
    with pytest.raises(OutputError):
        claim_file(target)
    target.write_text(json.dumps({"format_version": 1, "round1": {}, "direct_prefix": ""}))
    claim_file(target)


def test_names_in_any_bytes_are_kept_in_lines(tmp_path):
    name = b"b_\xff.png".decode("utf-8", "surrogateescape")
    append_line(tmp_path / "rows.jsonl", {"image": name})
    assert read_lines(tmp_path / "rows.jsonl") == [{"image": name}]


def test_progress_is_told_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("zoomiqa_reward.runs.progress.EVERY_S", 0.0)
    assert list(ProgressLines([1, 2], "rating")) == [1, 2]
    assert capsys.readouterr().err.splitlines() == ["rating: 1 of 2, about 0 s left", "rating: 2 of 2, about 0 s left"]
    assert ProgressLines(None, "tuning", total=10, initial=4).line(0.0).startswith("tuning: 4 of 10")


def test_an_interrupted_rank_prints_what_it_measured(tmp_path, capsys, monkeypatch):
    for name in "abc":
        photograph(tmp_path / f"{name}.png")
    from zoomiqa_reward.model import measuring

    whole = measuring.measure

    def cut_short(*args, **options):
        found = whole(*args, **options)
        yield next(found)
        yield next(found)
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "measure", cut_short)
    assert main(["rank", str(tmp_path), "--json"]) == 130
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert "interrupted" in shown.err


def test_a_sheet_that_its_format_cannot_hold_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(OutputError, match=r"2 x 16384 px; WEBP holds 16383 px a side; end the name in \.png"):
        write_figure(Image.new("RGB", (2, 16_384)), tmp_path / "sheet.webp")
    write_figure(Image.new("RGB", (2, 16_384)), tmp_path / "sheet.png")
    for name in ("sheet.bufr", "sheet.xbm", "sheet.ico", "sheet.pdf"):
        with pytest.raises(OutputError, match=r"is no image format to write; end it in \.png, \.jpg"):
            claim_file(tmp_path / name, suffixes=True)


def test_a_link_to_an_output_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    link, target = tmp_path / "sheet.png", tmp_path / "real" / "sheet.png"
    link.symlink_to("real/sheet.png")
    for size in (8, 9):  # at first it leads to nothing
        write_figure(Image.new("RGB", (size, 8)), link)
        assert link.is_symlink()
        with Image.open(target) as image:
            assert image.width == size
    photograph(target)
    with pytest.raises(OutputError, match="did not make it"):
        write_figure(Image.new("RGB", (8, 8)), link)


def test_a_damaged_record_of_a_run_is_named(tmp_path):
    bind(tmp_path / "run", {"seed": 0}, is_holder=False)
    (tmp_path / "run" / "run.json").write_text("")
    with pytest.raises(AnotherRun, match=r"run\.json: damaged .*name another folder"):
        bind(tmp_path / "run", {"seed": 0}, is_holder=False)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_with_the_file_and_leaves_the_one_before(tmp_path, monkeypatch):
    table, log = tmp_path / "scores.csv", tmp_path / "log.jsonl"
    write_table(table, [{"image": "a.png"}])
    before = table.read_bytes()
    monkeypatch.setattr(Path, "write_text", full_disk)
    monkeypatch.setattr(os, "write", lambda handle, line: len(line) - 1)
    for file, write in ((table, lambda: write_table(table, [{"image": "b.png"}])), (log, lambda: append_line(log, {}))):
        with pytest.raises(OSError, match=r"space|in part") as raised:
            write()
        assert message_of(raised.value) == f"{file}: the disk is full; make room and give the same command again"
    assert table.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {table.name, log.name}
