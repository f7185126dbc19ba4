"""A folder of a run belongs to one run, by its settings, and to one process at a time."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from zoomiqa_reward.cli.main import main
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import append_line, read_lines, trim_lines
from zoomiqa_reward.runs.outputs import OutputError, claim_folder, replacing
from zoomiqa_reward.runs.program import GOES_ON, INTERRUPTED, NOT_BEGUN, run_program
from zoomiqa_reward.runs.settings import AnotherRun


def bind_held(folder, *args, **options):
    with locked(folder):
        bind(folder, *args, **options)


def test_settings_are_written_once_and_compared_afterwards(tmp_path):
    starts = []

    def facts():
        starts.append(1)
        return {"finished": False}

    for _ in range(2):
        bind_held(tmp_path / "run", {"seed": 0, "n": 8}, key="settings", free=("n",), facts=facts)
    assert len(starts) == 1  # facts are those of the start
    bind_held(tmp_path / "run", {"seed": 0, "n": 9}, key="settings", free=("n",), facts=facts)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored == {"settings": {"seed": 0, "n": 8}, "finished": False}
    with pytest.raises(AnotherRun, match="seed was 0, now 1"):
        bind_held(tmp_path / "run", {"seed": 1, "n": 8}, key="settings")


def test_results_without_settings_and_files_of_others_are_refused(tmp_path):
    bind_held(tmp_path / "run", {})
    (tmp_path / "run" / "run.json").unlink()
    append_line(tmp_path / "run" / "rows.jsonl", {"a": 1})
    with pytest.raises(AnotherRun, match=r"holds rows\.jsonl without run\.json"):
        bind_held(tmp_path / "run", {}, results=("rows.jsonl",))
    (tmp_path / "run" / "run.json").write_text("[]")
    with pytest.raises(AnotherRun, match="is no record of this kind of run"):
        bind_held(tmp_path / "run", {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"letter\.txt"):
        bind_held(tmp_path / "mine", {})


def test_a_run_of_another_command_is_called_another_kind(tmp_path):
    """Best-of-N over a folder was told that the folder of one image holds no record of this program."""
    bind_held(tmp_path / "run", {"seed": 0}, key="settings")
    with pytest.raises(AnotherRun, match=r"run\.json: is no record of this kind of run; name another folder"):
        bind_held(tmp_path / "run", {"seed": 0}, key="folder")


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path):
    code = "import sys; from zoomiqa_reward.runs.folder import locked; from pathlib import Path\n"
    code += "with locked(Path(sys.argv[1])): pass"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with locked(tmp_path):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert "another process works in it" in second.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_a_folder_that_nobody_holds_is_not_bound(tmp_path):
    with pytest.raises(RuntimeError, match="nobody holds it"):
        bind(tmp_path / "run", {})
    bind(tmp_path / "run", {}, is_holder=False)
    with locked(tmp_path / "run"):
        bind(tmp_path / "run", {})
    with pytest.raises(RuntimeError, match="nobody holds it"):
        bind(tmp_path / "run", {})
    with locked(None), locked(tmp_path / "other", is_holder=False):
        assert not (tmp_path / "other").exists()


def test_rows_after_a_step_and_a_half_row_are_trimmed(tmp_path):
    file = claim_folder(tmp_path) / "log.jsonl"
    trim_lines(file, "step", 3)
    assert not file.exists()
    for step in (1, 2, 3, 4):
        append_line(file, {"step": step})
    with open(file, "a") as log:
        log.write('{"step": 2')
    trim_lines(file, "step", 3)
    assert read_lines(file) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    file = claim_folder(tmp_path) / "state.pt"
    file.write_text("old")

    def interrupted():
        with replacing(file) as half:
            half.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


def loading(*_, **__):
    raise KeyboardInterrupt


def test_an_interrupt_speaks_of_the_folder_only_once_a_run_holds_it(tmp_path, capsys):
    def working():
        with locked(tmp_path / "run"):
            raise KeyboardInterrupt

    for work, message in ((working, GOES_ON), (loading, NOT_BEGUN)):
        assert run_program("train", work) == INTERRUPTED
        assert capsys.readouterr().err == f"train: interrupted; {message}\n"
    assert run_program("train", loading, kept="nothing was written") == INTERRUPTED
    assert "nothing was written" in capsys.readouterr().err


@pytest.mark.integration
def test_a_command_that_is_stopped_while_the_model_loads_speaks_of_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zoomiqa_reward.cli.inputs.load_model", loading)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert main(["refine", str(tmp_path / "a.png"), "--out", str(tmp_path / "new")]) == INTERRUPTED
    assert NOT_BEGUN in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
