"""Files for people and their tools: hooks of the pinned ruff, templates, citation, `make help`."""

import ast
import re
import subprocess
import tomllib

import pytest
from conftest import ROOT

yaml = pytest.importorskip("yaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def parsed(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_hooks_run_the_ruff_that_lint_runs():
    [pinned] = [name for name in PROJECT["optional-dependencies"]["test"] if name.startswith("ruff==")]
    hooks = {hook["id"]: hook for repo in parsed(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    assert set(hooks) == {"ruff-check", "ruff-format"}
    assert all(hook["additional_dependencies"] == [pinned] for hook in hooks.values())


def test_the_citation_names_this_version_and_the_paper():
    citation = parsed("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["url"].endswith("2601.02918")


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_issue_forms_hold_what_github_needs(form):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.name == "config.yml":
        assert content == {"blank_issues_enabled": True}
        return
    assert content["name"]
    assert content["description"]
    fields = [item for item in content["body"] if item["type"] != "markdown"]
    assert len({item["id"] for item in fields}) == len(fields) > 0
    assert all(item["attributes"]["label"] for item in fields)


def test_make_help_lists_every_command():
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make ([\w-]+)", done.stdout, re.MULTILINE))
    [phony] = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == set(phony.split())


def test_the_two_lanes_are_all_default_tests_and_ci_runs_both():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [default] = re.findall("-m '(.*?)'", project["tool"]["pytest"]["ini_options"]["addopts"])
    lanes = re.findall("-m '(.*?)'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert lanes == [f"not integration and {default}", f"integration and {default}"]
    steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert {"make test", "make test-integration", "make lint"} <= set(steps)


def test_every_option_of_a_module_command_has_a_help_text():
    """A name such as `--rounds` does not say of what, or what is there without it."""
    without = []
    for package in ("restoration", "train_iqa"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("parser.add_argument", "add"):
                    name = ast.unparse(node.args[0])
                    if "--" in name and all(keyword.arg != "help" for keyword in node.keywords):
                        without.append(f"{file.name}: {name}")
    assert without == []
