"""The vocabulary of the code: `image` and never `picture`, nouns in place of "found" and "one"."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("zoomiqa_reward", "restoration", "train_iqa")

UNCLEAR = {
    "found": 0,
    "heard": 0,
    "known": 0,
    "one": 0,
    "own": 0,
    "part": 144,
    "place": 0,
    "said": 0,
    "told": 0,
}
"""Names of variables that do not say what they hold, and how often the product may still use each. Lower a number when
you rename; never raise one. `part` stays where parts are the subject: of a reward, of a data set, of a file."""

PROMPTS = {
    "train_iqa/curation/lexicon.py",
    "train_iqa/curation/planted_words.py",
    "train_iqa/curation/prompts.py",
    "train_iqa/nano/rationale.py",
}
"""Files that hold text which a model has read or written; that text keeps its words."""


def product_files():
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def variables(tree):
    """Return how often each name stands as a variable or an argument."""
    names = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return names + Counter(node.arg for node in ast.walk(tree) if isinstance(node, ast.arg))


def test_variables_are_named_by_what_they_hold():
    counts = Counter()
    for file in product_files():
        counts += variables(ast.parse(file.read_text(encoding="utf-8")))
    grown = {word: counts[word] for word, most in UNCLEAR.items() if counts[word] > most}
    assert not grown, f"use the noun (result, candidate, index, batch, ...) in place of: {grown}"


def test_the_count_sees_variables_arguments_and_loops():
    tree = ast.parse("def f(found):\n    for one in found:\n        print(one.found)")
    assert variables(tree) == Counter({"found": 2, "one": 2, "print": 1})


@pytest.mark.parametrize("folder", [*PACKAGES, "docs", "examples"])
def test_an_image_is_called_an_image(folder):
    for file in sorted((ROOT / folder).rglob("*")):
        if file.suffix not in (".py", ".md") or file.relative_to(ROOT).as_posix() in PROMPTS:
            continue
        words = re.findall(r"\w*pictur\w*", file.read_text(encoding="utf-8"), re.IGNORECASE)
        assert not words, f"{file.relative_to(ROOT)} says {sorted(set(words))}: the word is image"
