"""The mutants of `make mutants` are up to date, and its counting is right; the mutants themselves run by hand."""

import importlib.util
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("run_mutants", ROOT / "tests" / "mutants" / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_mutant_changes_one_place_and_names_tests_that_exist(mutants):
    every = mutants.read_mutants()
    assert len(every) >= 41
    assert sum(one.required for one in every) == 11
    for one in every:
        changed = mutants.mutated(one)
        assert changed != (ROOT / one.file).read_text(encoding="utf-8"), one.name
        compile(changed, one.file, "exec")
        assert one.tests
        assert all((ROOT / test.split("::")[0]).is_file() for test in one.tests), one.name
    assert {one.file.split("/")[0] for one in every} == {"zoomiqa_reward", "restoration", "train_iqa"}


def test_a_mutant_that_no_longer_fits_is_an_error(mutants, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    one = mutants.Mutant(name="m", file="a.py", old="x = 1", new="x = 2", what="", tests=("t",))
    with pytest.raises(ValueError, match="stands 2 times"):
        mutants.mutated(one, tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize(("test", "fate"), [
    ("assert value() == 1", "killed"), ("assert value() > 0", "SURVIVED"), ("import nothing_like_this", "killed"),
])  # fmt: skip
def test_a_mutants_fate_is_what_its_tests_say(mutants, tmp_path, test, fate):
    (tmp_path / "measured_thing.py").write_text("def value():\n    return 1\n")
    (tmp_path / "test_thing.py").write_text(f"from measured_thing import value\n\ndef test():\n    {test}\n")
    one = mutants.Mutant(name="m", file="measured_thing.py", old="return 1", new="return 2", what="",
                         tests=("test_thing.py",))  # fmt: skip
    assert mutants.fate_of(one, tmp_path) == fate
    assert "return 1" in (tmp_path / "measured_thing.py").read_text()
    gone = mutants.Mutant(name="m", file=one.file, old=one.old, new=one.new, what="", tests=("no_such_test.py",))
    assert mutants.fate_of(gone, tmp_path) == "ERROR"


def test_one_required_survivor_or_more_than_a_tenth_fails(mutants, capsys):
    def made(name, required=False):
        return mutants.Mutant(name=name, file="f", old="o", new="n", what="", tests=("t",), required=required)

    ten = [made(str(k)) for k in range(9)] + [made("must", required=True)]
    fates = {one.name: "killed" for one in ten}
    assert mutants.summary(ten, fates) == 0
    assert mutants.summary(ten, fates | {"0": "SURVIVED"}) == 0
    assert mutants.summary(ten, fates | {"0": "SURVIVED", "1": "SURVIVED"}) == 1
    assert mutants.summary(ten, fates | {"must": "SURVIVED"}) == 1
    assert mutants.summary(ten, fates | {"0": "ERROR"}) == 1
    assert "SURVIVED: must" in capsys.readouterr().out
