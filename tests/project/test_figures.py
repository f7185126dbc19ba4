"""The README's figures are those that the benchmarks wrote, and each names a command that exists."""

import importlib.util
import json

import pytest
from conftest import ROOT

from zoomiqa_reward.runs.json_lines import append_line

RESUMED = [file for file in sorted((ROOT / "benchmarks").glob("*.py")) if "append_line(" in file.read_text("utf-8")]


def _script(monkeypatch, name):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_hold_what_the_result_files_hold(monkeypatch):
    table = _script(monkeypatch, "table")
    for page, name, made in table.blocks():
        inside = table.between(page.read_text(encoding="utf-8"), name)[1].strip()
        assert inside == made.strip(), f"{page.name}: run `python benchmarks/table.py`"


def test_every_result_names_a_command_that_exists():
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert results
    for result in results:
        program, script, *_ = json.loads(result.read_text())["command"].split()
        assert program == "python"
        assert (ROOT / script).exists(), result


def test_a_result_of_other_weights_is_marked_as_earlier(monkeypatch):
    table = _script(monkeypatch, "table")
    for name in table.PARTS:
        if (ROOT / "benchmarks" / "results" / f"{name}.json").exists():
            assert set(table.load(name)["weights"]) == {"judge", "restorer"}, f"{name}: whose weights?"
    used = table.load("sr_mos")["weights"]
    monkeypatch.setattr(table, "weights", lambda: used)
    assert table.age("sr_mos") == "today's"
    monkeypatch.setattr(table, "weights", lambda: used | {"judge": "other"})
    assert table.age("sr_mos") == "earlier"
    assert table.age("cache") == "any"
    row = next(line for line in table.markdown(table.rows()).splitlines() if "SRCC within a scene" in line)
    assert "| earlier |" in row


@pytest.mark.parametrize("file", RESUMED, ids=lambda path: path.name)
def test_lines_of_a_resumed_run_say_which_weights_made_them(file):
    """A run that goes on from the lines of other weights would publish their figures as today's."""
    assert ".fingerprint" in file.read_text(encoding="utf-8")


def test_there_are_resumed_runs():
    assert {file.name for file in RESUMED} >= {"best_of_n.py", "pairs.py", "restorer.py", "search.py"}


def test_best_of_n_leaves_out_lines_of_other_weights(monkeypatch, tmp_path):
    today, before = {"judge": "b", "image": "x.png"}, {"judge": "a", "image": "x.png"}
    rows = [
        {"index": 0, "settings": today},
        {"index": 1, "settings": before},
        {"index": 2},
        {"index": 9, "settings": today},
    ]
    for place, row in enumerate(rows):
        append_line(tmp_path / f"{place % 2}.jsonl", row)
    wanted = dict.fromkeys((0, 1, 2), today)
    assert _script(monkeypatch, "best_of_n").lines_of(tmp_path, 2, wanted) == {0: rows[0]}
