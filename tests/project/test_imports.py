"""What importing costs, who may import whom, and that every public name is there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zoomiqa_reward

ROOT = Path(__file__).parents[2]
HEAVY = {"diffusers", "basicsr", "lpips", "ray", "gradio"}


def modules_after(code):
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return {name.partition(".")[0] for name in out.split()}


@pytest.mark.integration
def test_importing_the_core_is_light():
    assert not modules_after("import zoomiqa_reward") & {"torch", "transformers", "peft"}
    loaded = modules_after("import zoomiqa_reward\nfor name in zoomiqa_reward.__all__: getattr(zoomiqa_reward, name)")
    assert not loaded & (HEAVY | {"restoration", "train_iqa", "datasets", "piq"})
    assert "torch" in loaded  # so this test can fail


@pytest.mark.parametrize(("package", "stranger"), [
    ("zoomiqa_reward", {"restoration", "train_iqa"}), ("restoration", {"train_iqa"}), ("train_iqa", {"restoration"}),
])  # fmt: skip
def test_packages_depend_one_way(package, stranger):
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            assert not roots & stranger, f"{file.relative_to(ROOT)} imports {roots & stranger}"


def test_every_public_name_is_there():
    assert set(zoomiqa_reward.__all__) == set(zoomiqa_reward._HOMES)
    for name in zoomiqa_reward.__all__:
        assert getattr(zoomiqa_reward, name).__module__ == f"zoomiqa_reward.{zoomiqa_reward._HOMES[name]}"
    assert set(zoomiqa_reward.__all__) <= set(dir(zoomiqa_reward))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zoomiqa_reward.nothing
    assert zoomiqa_reward.__version__ == "0.1.0"


def lazy_packages():
    """Yield (package, {public name: module}) of each package with lazy exports, read without importing it."""
    for root in ("zoomiqa_reward", "restoration", "train_iqa"):
        for file in sorted((ROOT / root).rglob("__init__.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
                    yield file.parent, ast.literal_eval(node.value)


@pytest.mark.parametrize(("package", "homes"), [pytest.param(*p, id=p[0].name) for p in lazy_packages()])
def test_every_lazy_name_is_defined_in_the_module_that_is_named(package, homes):
    for name, home in homes.items():
        file = package.joinpath(*home.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        assert file.exists(), f"{package.name}.{name}: there is no module {home}"
        tree = ast.parse(file.read_text(encoding="utf-8"))
        bound = {target.id for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)
                 for target in ast.walk(node) if isinstance(target, ast.Name)}  # fmt: skip
        bound |= {getattr(node, "name", None) for node in tree.body}
        bound |= {
            alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        assert name in bound, f"{package.name}.{name} is not defined in {home}"
