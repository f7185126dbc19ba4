"""The language of the documents: one word for one thing, "per", and three questions that every guide answers first."""

import ast
import re

import pytest
from conftest import ROOT

REFERENCE = {"README.md", "figures.md", "reward_matrix.md", "shapes.md", "glossary.md"}
"""Pages of `docs/` that are no guides."""
GUIDES = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in REFERENCE]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted(ROOT.glob("docs/**/*.md"))]
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)

COUNTED = r"(?:images?|pixels?|nats|lines?|rows?|calls?|requests?|samples?|steps?|candidates?|tokens?|answers?|GiB|dB)"
RULES = {
    r"\bpictures?\b": "image",
    rf"\b{COUNTED}\s+an?\s+(?:second|image|pixel|round|row|step|token|request|call|candidate|answer|process)\b": "per",
    r"\bone (?!that)\w+ an? (?:image|row|line|step|seed|candidate|round|call|turn|file|group|generator)\b": "per",
    r"\b(?:in vain|for ever|ahead of itself)\b": "say what happens",
}
"""What a page may not hold -> what to write instead."""


def offences(text):
    """Return the forbidden words of a page, outside code."""
    plain = CODE.sub("", text)
    return [f"{match[0]!r}: {better}" for rule, better in RULES.items() for match in re.finditer(rule, plain, re.I)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_one_word_for_one_thing(page):
    assert offences(page.read_text(encoding="utf-8")) == []


def test_the_search_finds_forbidden_words():
    assert len(offences("a Picture takes 3 images a second, one line\nan image, one text a file")) == 4
    assert offences("`picture` is a name; images per second") == []


def docstrings(file):
    """Yield the docstrings of a module, of its classes, functions and attributes."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@pytest.mark.parametrize("package", ["zoomiqa_reward", "restoration", "train_iqa"])
def test_docstrings_use_one_word_for_one_thing(package):
    found = [(str(file.relative_to(ROOT)), offence) for file in sorted((ROOT / package).rglob("*.py"))
             for text in docstrings(file) for offence in offences(text)]  # fmt: skip
    assert found == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda page: page.name)
def test_a_guide_first_answers_three_questions(guide):
    opening = guide.read_text(encoding="utf-8").split("\n## ")[0].split("```")[0]
    places = [opening.find(f"**{question}**:") for question in ("You do", "You get", "What can go wrong")]
    assert -1 not in places, f"{guide.name}: answer 'You do', 'You get' and 'What can go wrong' before anything else"
    assert places == sorted(places)


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"
               and f"]({page.name})" not in index]  # fmt: skip
    assert missing == []
    notes = (ROOT / "docs" / "notes" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs" / "notes").glob("*.md")
            if page.name != "README.md" and f"]({page.name})" not in notes] == []  # fmt: skip
