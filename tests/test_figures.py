"""The README's figures are those that the benchmarks wrote, and each names a command that exists."""

import importlib.util
import json

from conftest import ROOT


def _table():
    spec = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_holds_what_the_result_files_hold():
    table = _table()
    text = (ROOT / "README.md").read_text()
    inside = text.split(table.START)[1].split(table.END)[0].strip()
    assert inside == table.markdown().strip(), "run `python benchmarks/table.py`"


def test_every_result_names_a_command_that_exists():
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert results
    for result in results:
        program, script, *_ = json.loads(result.read_text())["command"].split()
        assert program == "python"
        assert (ROOT / script).exists(), result
