"""One base for all exceptions of the three packages: `except ZoomIQAError` is enough."""

import ast
import importlib
import inspect

import pytest
from test_house_rules import module_files

import restoration
import train_iqa.data
from zoomiqa_reward import errors
from zoomiqa_reward.errors import ZoomIQAError

LEFT_OUT = {"train_iqa.training.deepspeed", "restoration.web.page", "zoomiqa_reward.integrations.flow_factory"}
"""Modules that need a library that the tests do not have."""


def exception_classes():
    """Return {dotted name: class} of all exceptions that a product module defines, nested ones too."""
    found = {}
    for name in module_files():
        if name.endswith("__main__") or name in LEFT_OUT:
            continue
        module = importlib.import_module(name)
        for one in vars(module).values():
            if inspect.isclass(one) and issubclass(one, BaseException) and one.__module__ == name:
                found[f"{name}.{one.__qualname__}"] = one
    return found


def classes_by_source():
    """Return the names of classes, wherever they stand, that name an exception as a base: no import needed."""
    found = set()
    for name, file in module_files().items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                if any(base.endswith(("Error", "Exception", "Interrupt", "Exit", "Warning")) for base in bases):
                    found.add(f"{name}.{node.name}")
    return found


def test_every_exception_has_the_one_base():
    found = exception_classes()
    assert len(found) > 25
    for name, one in found.items():
        assert issubclass(one, ZoomIQAError), f"{name} is caught by no `except ZoomIQAError`"
    assert classes_by_source() <= set(found), "an exception class inside a function or class: give it a module"


def test_what_users_meet_is_exported():
    """Public modules export what their package raises; train_iqa's other exceptions are messages of its commands."""
    core = {one for name, one in exception_classes().items() if name.startswith("zoomiqa_reward.")}
    exported = {getattr(errors, name) for name in errors.__all__}
    inner = {one.__name__ for one in core - exported}
    assert inner == {"ReplyError"}  # becomes RequestFailed
    outer = {one.__name__ for name, one in exception_classes().items() if name.startswith("restoration.")}
    assert outer - set(restoration.__all__) == {"DrewAnyway"}  # becomes a ValueError of the restorer
    assert issubclass(train_iqa.data.DatasetProblems, ZoomIQAError)


@pytest.mark.parametrize("name", errors.__all__)
def test_an_exported_error_is_where_it_is_said_to_be(name):
    home = errors._HOMES.get(name, "errors")
    assert getattr(errors, name).__module__ == f"zoomiqa_reward.{home}"
    assert name in dir(errors)


def test_older_except_clauses_hold():
    for name, one in exception_classes().items():
        older = issubclass(one, ValueError | RuntimeError | ImportError | OSError)
        assert older or name.rpartition(".")[2] in ("ZoomIQAError", "DrewAnyway", "_RefusedError"), name


def test_a_message_that_gives_a_rule_names_what_broke_it():
    """`must be` in a text without any value leaves the user to look for what was given."""
    without = []
    for name, file in module_files().items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                without += [f"{name}: {argument.value}" for argument in node.exc.args
                            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                            and " must be " in argument.value]  # fmt: skip
    assert without == []
