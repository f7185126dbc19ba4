"""The notebook tutorial runs from top to bottom, and what it shows was written by such a run."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"


def cells(kind):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell | {"text": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.integration
def test_the_notebook_runs_in_an_empty_folder(tmp_path, monkeypatch, capsys, nano):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells("code"), start=1):
        exec(compile(cell["text"], f"{NOTEBOOK.name}, code cell {number}", "exec"), namespace)
    said = capsys.readouterr().out
    assert "FSIM of the choice less bicubic" in said
    assert namespace["assessment"].valid
    assert namespace["result"].best.rank == 1
    assert len(namespace["chosen"]) == len(namespace["single"]) == len(namespace["enlarged"]) == 4
    assert (tmp_path / "tutorial_runs" / "report.html").exists()


def test_what_it_shows_is_of_one_run_without_errors():
    code = cells("code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 2
    texts = ["".join(output.get("text", "")) for output in outputs]
    assert not any(re.search(r"Traceback|Warning|(^|\s)/\w+/", text) for text in texts)


def test_its_links_lead_somewhere():
    links = [link for cell in cells("markdown") for link in re.findall(r"\]\(([^)#]+)", cell["text"])]
    assert len(links) >= 3
    for link in links:
        assert (NOTEBOOK.parent / link).exists(), link
