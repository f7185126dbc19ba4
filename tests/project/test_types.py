"""What the type checker does not see: `Any` in public signatures, modules that it skips, ignores without a reason."""

import ast
import inspect
import re
import tomllib

import pytest
from conftest import ROOT

PACKAGES = ("zoomiqa_reward", "restoration", "train_iqa")
UNCHECKED = 38
"""Modules that mypy skips; may only fall."""
PUBLIC_ANY = {"zoomiqa_reward": 0, "restoration": 30, "train_iqa": 0}
"""Uses of `Any` in public signatures and fields; may only fall."""


def mypy_overrides():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["overrides"]


def mentions_any(annotation):
    """Whether an annotation, or a text that stands for one, holds the name `Any`."""
    return annotation is not None and re.search(r"\bAny\b", ast.unparse(annotation)) is not None


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


def public_any(package):
    """Return where a package's public names take, give or hold `Any`."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    found = []
    for name, home in ast.literal_eval(assigned.get("_HOMES", ast.parse("{}", mode="eval").body)).items():
        path = (ROOT / package).joinpath(*home.split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if getattr(node, "name", None) == name:
                found += [where for where, annotation in annotations_of(node) if mentions_any(annotation)]
    return found


def test_the_search_sees_any_in_every_place():
    code = "class A:\n    x: Any\n    def f(self, a: 'Any', *, b: list[Any]) -> Any: ...\n    def _g(self, c: Any): ..."
    found = [where for where, annotation in annotations_of(ast.parse(code).body[0]) if mentions_any(annotation)]
    assert found == ["A.x", "A.f(a)", "A.f(b)", "A.f ->"]


@pytest.mark.parametrize("package", PACKAGES)
def test_any_in_public_signatures_only_falls(package):
    found = public_any(package)
    assert len(found) == PUBLIC_ANY[package], "lower the number here, or give a type: " + ", ".join(found)


def test_modules_that_mypy_skips_exist_and_only_fall():
    [skipped] = [entry["module"] for entry in mypy_overrides() if entry.get("ignore_errors")]
    gone = [name for name in skipped if not (ROOT / (name.replace(".", "/") + ".py")).exists()]
    assert not gone, f"no such modules: {gone}"
    assert not [name for name in skipped if name.startswith("zoomiqa_reward.")], "zoomiqa_reward is checked whole"
    assert len(skipped) == UNCHECKED, "lower the number here, or repair the types of the new module"


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
