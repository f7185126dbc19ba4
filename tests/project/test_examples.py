"""Every example runs; those that need the embedded model also say something sensible."""

import importlib.util
import sys

import pytest
from conftest import ROOT
from tiny import tiny_checkpoint

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_examples():
    assert ROOT / "examples" / "score_and_rank.py" in EXAMPLES


@pytest.mark.integration
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_smoke(path, photograph, capsys):
    order = load(path).main(photograph, model=str(tiny_checkpoint()))
    assert len(order) == len(capsys.readouterr().out.splitlines()) > 1


@pytest.mark.integration
def test_nano_ranks_the_untouched_photograph_first(nano, photograph, capsys):
    assert load(ROOT / "examples" / "score_and_rank.py").main(photograph)[0] == "as it is"


@pytest.mark.integration
def test_rows_of_a_teacher_that_begins_otherwise_than_nano_are_built(nano, photograph, capsys):
    assert "training rows of" in load(ROOT / "examples" / "curate.py").main(photograph)[-1]


@pytest.mark.integration
def test_nano_prefers_the_sharp_folder(nano, photograph, capsys):
    assert load(ROOT / "examples" / "compare_folders.py").main(photograph)[-1] > 0.2


def test_examples_start_nothing_when_imported(capsys):
    for path in EXAMPLES:
        load(path)
    assert capsys.readouterr().out == ""
    assert "torch" in sys.modules  # they do import what they show
