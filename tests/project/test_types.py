"""Types: mypy finds nothing and skips nothing of ours; `Any` in signatures; ignores without a reason."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

PACKAGES = ("zoomiqa_reward", "restoration", "train_iqa")
PUBLIC_ANY = {"zoomiqa_reward": 0, "restoration": 0, "train_iqa": 0}
"""Uses of `Any` in signatures and fields of the names that a package exports."""
MODULE_ANY = {"zoomiqa_reward": 110, "restoration": 106, "train_iqa": 57}
"""The same of every class and function without an underscore, exported or not; may only fall."""


def mypy_overrides():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["overrides"]


def mentions_any(annotation, hidden=()):
    """Whether an annotation, or a text that stands for one, holds the name `Any`, or a name with `Any` behind it."""
    names = set() if annotation is None else set(re.findall(r"\w+", ast.unparse(annotation)))
    return not names.isdisjoint({"Any", *hidden})


def annotations_of(node):
    """Yield (name, annotation) of a function's arguments and result, or of a class's public methods and fields."""
    if isinstance(node, ast.FunctionDef):
        given = node.args
        for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
            if argument is not None:
                yield f"{node.name}({argument.arg})", argument.annotation
        yield f"{node.name} ->", node.returns
    for member in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(member, ast.AnnAssign) and not ast.unparse(member.target).startswith("_"):
            yield f"{node.name}.{ast.unparse(member.target)}", member.annotation
        if isinstance(member, ast.FunctionDef) and (
            not member.name.startswith("_") or member.name in ("__init__", "__call__")
        ):
            yield from ((f"{node.name}.{name}", annotation) for name, annotation in annotations_of(member))


def hidden_any(package):
    """Return the names that stand for a type with `Any` in it, wherever the package assigns them."""
    return {
        ast.unparse(node.targets[0])
        for file in sorted((ROOT / package).rglob("*.py"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and mentions_any(node.value)
    }


def defined_in(file, name):
    """Return the file and the node of a class or function, also where `file` only passes it on."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if getattr(node, "name", None) == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return defined_in(ROOT.joinpath(*node.module.split(".")).with_suffix(".py"), name)
    return None


def public_any(package):
    """Return where a package's public names take, give or hold `Any`, by itself or behind another name."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    hidden = hidden_any(package)
    found = []
    for name, home in ast.literal_eval(assigned.get("_HOMES", ast.parse("{}", mode="eval").body)).items():
        path = (ROOT / package).joinpath(*home.split("."))
        node = defined_in(path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py", name)
        found += [where for where, annotation in annotations_of(node) if mentions_any(annotation, hidden)]
    return found


def module_any(package):
    """Return where the classes and functions of a package's modules take, give or hold `Any`."""
    hidden = hidden_any(package)
    return [
        where
        for file in sorted((ROOT / package).rglob("*.py"))
        if "_vendor" not in file.parts
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if not getattr(node, "name", "_").startswith("_")
        for where, annotation in annotations_of(node)
        if mentions_any(annotation, hidden)
    ]


def test_the_search_sees_any_in_every_place():
    code = "class A:\n    x: Any\n    def f(self, a: 'Any', *, b: list[Any]) -> Any: ...\n    def _g(self, c: Any): ..."
    found = [where for where, annotation in annotations_of(ast.parse(code).body[0]) if mentions_any(annotation)]
    assert found == ["A.x", "A.f(a)", "A.f(b)", "A.f ->"]


@pytest.mark.parametrize("package", PACKAGES)
def test_any_in_public_signatures_only_falls(package):
    found = public_any(package)
    assert len(found) == PUBLIC_ANY[package], "give a type: " + ", ".join(found)
    found = module_any(package)
    assert len(found) <= MODULE_ANY[package], "give a type to what is new among: " + ", ".join(found)


def test_mypy_skips_no_module_of_ours():
    assert not [entry["module"] for entry in mypy_overrides() if entry.get("ignore_errors")]
    skipped = [name for entry in mypy_overrides() if entry.get("follow_imports") == "skip" for name in entry["module"]]
    assert skipped
    assert not {name.split(".")[0] for name in skipped} & set(PACKAGES)


def test_the_options_of_a_server_are_typed_whole():
    from zoomiqa_reward.model.text_server.client import ServerOptions, TextServer
    from zoomiqa_reward.model.text_server.remote import RemoteOptions, RemoteZoomIQA

    def keywords(function):
        parameters = inspect.signature(function).parameters.values()
        return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}

    assert set(ServerOptions.__annotations__) == keywords(TextServer.__init__) - {"api_key"}
    assert set(RemoteOptions.__annotations__) == keywords(RemoteZoomIQA.from_server) | set(
        ServerOptions.__annotations__
    )


def test_every_type_ignore_names_its_code():
    bare = [
        f"{file.relative_to(ROOT)}:{number}"
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        if "_vendor" not in file.parts
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"#\s*type:\s*ignore(?!\[[a-z-]+)", line)
    ]
    assert not bare


@pytest.mark.integration  # a minute without a cache, then seconds
def test_mypy_finds_nothing():
    checked = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
