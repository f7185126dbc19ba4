"""Who may import whom: no circles, no library that imports a command, SFT without the RL stack, one class per name."""

import ast
import functools
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("zoomiqa_reward", "restoration", "train_iqa")
ENTRY_POINTS = ("restoration.demo",)
"""Modules that are started, so they may use what commands use."""


def module_files():
    """Return {dotted name: file} of all product modules."""
    found = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(body, *, inner):
    """Yield the imports of a module: those at its top, and with `inner` also those inside functions."""
    for node in body:
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if inner or isinstance(node, ast.ClassDef):
                yield from statements(node.body, inner=inner)
        else:
            for field in ("body", "orelse", "finalbody", "handlers"):
                for child in getattr(node, field, ()):
                    yield from statements(
                        [child] if not isinstance(child, ast.ExceptHandler) else child.body, inner=inner
                    )


@functools.cache  # 270 files are read
def imports(*, inner):
    """Return {module: imported modules}."""
    files = module_files()
    found = defaultdict(set)
    for name, file in files.items():
        for node in statements(ast.parse(file.read_text(encoding="utf-8")).body, inner=inner):
            for target in targets(node, files):
                if target != name:
                    found[name].add(target)
    return found


def targets(node, files):
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        names = [f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in files else node.module
                 for alias in node.names]  # fmt: skip
    return [name for name in names if name in files]


def circles(graph):
    """Return the strongly connected groups of more than one module (Tarjan)."""
    index, low, stack, on_stack, found = {}, {}, [], set(), []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in on_stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
                on_stack.discard(group[-1])
            if len(group) > 1:
                found.append(sorted(group))

    for node in list(graph):
        if node not in index:
            visit(node)
    return found


def test_the_search_finds_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_import_circle_not_even_a_hidden_one():
    """Imports inside functions count: a circle that is hidden is not solved."""
    assert circles(imports(inner=True)) == []


def test_no_library_imports_a_command():
    for name, others in imports(inner=True).items():
        if ".cli." in f"{name}." or name in ENTRY_POINTS:
            continue
        commands = {other for other in others if ".cli." in f"{other}."}
        assert not commands, f"{name} imports {sorted(commands)}"


@pytest.mark.integration
@pytest.mark.parametrize(("start", "strangers"), [
    ("train_iqa.sft", ("train_iqa.rl", "train_iqa.grpo", "vllm")),
    ("train_iqa.evaluate", ("train_iqa.rl", "train_iqa.grpo", "train_iqa.sft")),
])  # fmt: skip
def test_a_command_does_not_load_another_stack(start, strangers):
    code = f"import {start}, sys; print(*[name for name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    loaded = {name for name in out.split() for stranger in strangers if (name + ".").startswith(stranger + ".")}
    assert not loaded


def shared_class_names(files):
    """Return {class name: modules} of the public classes that stand in more than one module."""
    homes = defaultdict(set)
    for name, file in files.items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(name)
    return {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1}


def test_no_class_name_means_two_things():
    """One word, one thing: in all three packages, and within each."""
    assert shared_class_names(module_files()) == {}


def test_the_search_finds_a_shared_class_name(tmp_path):
    files = {name: tmp_path / f"{name}.py" for name in ("a", "b")}
    files["a"].write_text("class Row: ...\nclass _Run: ...\nclass Cell: ...\n", encoding="utf-8")
    files["b"].write_text("class Row: ...\nclass _Run: ...\n", encoding="utf-8")
    assert shared_class_names(files) == {"Row": ["a", "b"]}
