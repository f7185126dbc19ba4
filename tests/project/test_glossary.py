"""Every word of docs/glossary.md stands in the code where the glossary says."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"\| (?P<word>[^|]+) \| (?P<meaning>[^|]+) \| `(?P<code>[^`]+)` \|")


def rows():
    lines = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    body = lines[lines.index("|---|---|---|") + 1 :]
    return [ROW.fullmatch(line) for line in body]


def resolve(dotted):
    """Return what a dotted name leads to; a field of a dataclass without a default gives its annotation."""
    names = dotted.split(".")
    value = import_module(names[0])
    for index, name in enumerate(names[1:], 1):
        if hasattr(value, name):
            value = getattr(value, name)
        elif name in getattr(value, "__annotations__", {}):
            value = value.__annotations__[name]
        else:
            value = import_module(".".join(names[: index + 1]))
    return value


def has_option(option):
    """Return whether a command has the option, by its declaration or by its argument's name."""
    for command in ("zoomiqa_reward.cli.measure:score", "restoration.cli.best_of_n:best_of_n"):
        module, _, function = command.partition(":")
        for name, parameter in inspect.signature(getattr(import_module(module), function)).parameters.items():
            declared = [getattr(item, "default", None) for item in get_args(parameter.annotation)[1:]]
            spelled = [text for text in declared if isinstance(text, str) and text.startswith("--")]
            names = spelled or [f"--{name.replace('_', '-')}"]
            if any(option in text.split("/") for text in names):
                return True
    return False


def test_the_glossary_is_short_and_in_order_with_each_word_once():
    found = rows()
    assert all(found), "a row is: | word | meaning | `code` |"
    words = [row["word"].strip("`").lower() for row in found]
    assert len(words) <= 40, "a glossary that is too long is not read: leave a word out"
    assert words == sorted(set(words))
    assert all(len(row["meaning"]) <= 110 for row in found)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["word"])
def test_the_word_stands_where_the_glossary_says(row):
    if row["code"].startswith("--"):
        assert has_option(row["code"])
        return
    value = resolve(row["code"])
    if row["word"].startswith("`"):
        assert row["word"].strip("`") in inspect.signature(value).parameters


def test_a_wrong_name_is_noticed():
    assert not has_option("--no-such-option")
    with pytest.raises(ImportError):
        resolve("zoomiqa_reward.NoSuchName")
