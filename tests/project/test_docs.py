"""The documentation runs: Python blocks of a page in one namespace, `zoomiqa` lines of its `sh` blocks as commands.

A command ends with 0, or with N where its line says `# exits with N`.

The working folder holds `photo.png` and what docs/README.md makes of it. Other fences (`text`, ...) are not run.
"""

import pkgutil
import re
import shlex

import pytest
from conftest import ROOT

from zoomiqa_reward.cli import main as cli

INDEX = ROOT / "docs" / "README.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """(language, code, line number of the code's first line) of each fence."""
    text = page.read_text(encoding="utf-8")
    return [(m[1], m[2], text[: m.start(2)].count("\n") + 1) for m in FENCE.finditer(text)]


def commands(page):
    return [line for language, code, _ in blocks(page) if language == "sh" for line in code.splitlines()]


@pytest.mark.integration
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != INDEX and "```python\n" in page.read_text("utf-8")], ids=name
)
def test_python_blocks_run(page, desk, nano):
    namespace = {"__name__": "documentation"}
    for language, code, line in blocks(page):
        if language == "python":
            exec(compile("\n" * (line - 1) + code, page.name, "exec"), namespace)


@pytest.mark.integration
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_run(page, desk, nano, capsys):
    for command in commands(page):
        program, *args = shlex.split(command, comments=True)
        assert program == "zoomiqa", f"{page.name}: an `sh` block holds {command!r}; use `text` for what is not run"
        code = re.search(r"# exits with (\d)", command)
        assert cli.main(args) == int(code[1] if code else 0), f"{page.name}: {command}: {capsys.readouterr().err}"


def test_a_page_says_where_its_files_come_from():
    """A reader with one photograph can make every file that an example reads."""
    needing = [page for page in PAGES if page != INDEX
               and any(re.search(r"photo_small\.png|candidates/", code) for kind, code, _ in blocks(page)
                       if kind in ("python", "sh"))]  # fmt: skip
    assert len(needing) > 10
    assert [name(page) for page in needing if "README.md#files-in-the-examples)" not in page.read_text("utf-8")] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


FILES = re.compile(r"`((?:zoomiqa_reward|restoration|train_iqa|benchmarks|examples|tests|docs)/[\w./-]+\.\w+)`")
SHORT = re.compile(r"`(\w+/\w+\.py)`")
"""A file by its folder and name."""
MODULES = re.compile(r"`((?:zoomiqa_reward|restoration|train_iqa)(?:\.[a-z]\w*)+)\b")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=name)
def test_named_files_and_modules_exist(page):
    """A path in backticks is a file; a dotted name is a module, or what a module holds."""
    text = page.read_text(encoding="utf-8")
    assert [path for path in FILES.findall(text) if not (ROOT / path).exists()] == []
    assert [
        path for path in SHORT.findall(text) if not any(ROOT.glob(f"*/{path}")) and not (ROOT / path).exists()
    ] == []
    missing = []
    for dotted in MODULES.findall(text):
        try:
            pkgutil.resolve_name(dotted)
        except (ImportError, AttributeError):
            missing.append(dotted)
    assert missing == []


OTHERS = {
    "abc.py", "h11_impl.py", "http_util.py", "import_utils.py", "inference_model.py", "loader.py", "multi.py",
    "proxy.py", "reward_processor.py", "visual.py",
}  # fmt: skip
"""Files of other projects that docstrings name as their source."""


def test_files_that_docstrings_name_exist():
    files = [
        file for package in ("zoomiqa_reward", "restoration", "train_iqa") for file in (ROOT / package).rglob("*.py")
    ]
    ours = {file.name for folder in ("benchmarks", "examples", "tests") for file in (ROOT / folder).rglob("*.py")}
    ours |= {file.name for file in files}
    named = [(file, name) for file in files for name in re.findall(r"`[\w/]*?(\w+\.py)`", file.read_text("utf-8"))]
    assert len(named) > 50
    assert [(file.name, name) for file, name in named if name not in ours | OTHERS] == []


def test_these_tests_can_fail(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nassert False\n```\n\n```text\nno\n```\n\n```sh\nzoomiqa score x\n```\n")
    assert [language for language, _, _ in blocks(page)] == ["python", "text", "sh"]
    assert commands(page) == ["zoomiqa score x"]
