"""The project as a whole: what ships, what it needs and what it may say."""

import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import NANO, ROOT

PACKAGES = ("zoomiqa_reward", "restoration", "train_iqa")
HEAVY = ("diffusers", "basicsr", "lpips", "ray", "gradio", "vllm")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def project_files():
    """Files that git tracks or would track, or all but the ignored folders where this is no git checkout."""
    found = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if found.returncode == 0:
        return [ROOT / name for name in found.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    skipped = {".venv", "build", "dist", "demo", "runs", ".git", "__pycache__", ".pytest_cache", ".hypothesis"}
    return [file for file in ROOT.rglob("*") if file.is_file() and not skipped & set(file.relative_to(ROOT).parts)]


def test_no_file_names_a_machine_or_a_package_host():
    # Spelt in parts, so that this file does not hold what it forbids.
    home = r"(?<![\w.])/(?:home|Users|root|work|mnt|workspace)/\w"
    hosts = r"python" + r"hosted\.org|index" + r"-url|--find" + r"-links"
    forbidden = re.compile(f"{home}|{hosts}")
    for file in project_files():
        data = file.read_bytes()
        if b"\0" in data[:4096]:  # no text
            continue
        hit = forbidden.search(data.decode("utf-8"))
        assert hit is None, f"{file.relative_to(ROOT)} names {hit[0]!r}"


def test_dependencies_stay_light_and_never_name_tensorboard():
    core = {re.split(r"[<>=\[]", name)[0] for name in CONFIG["project"]["dependencies"]}
    assert not core & {*HEAVY, "datasets", "scipy", "piq", "tensorboard"}
    extras = CONFIG["project"]["optional-dependencies"]
    assert not any("tensorboard" in name for names in extras.values() for name in names)
    assert "basicsr-fixed==1.4.2" in extras["restoration"]


@pytest.mark.integration
@pytest.mark.parametrize("package", ["restoration", "train_iqa"])  # the core: test_imports.py
def test_importing_a_package_is_light(package):
    code = f"import sys\nfrom {package} import *\nsys.exit(' '.join({{*{HEAVY}}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_files_stay_short():
    for file in (ROOT / name for package in PACKAGES for name in (ROOT / package).rglob("*.py")):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file.relative_to(ROOT)


def test_every_registered_command_loads():
    from zoomiqa_reward.cli import main as cli

    registered = CONFIG["project"]["entry-points"][cli.GROUP]
    assert set(registered) == set(cli.commands())
    for point in cli.commands().values():
        assert callable(point.load())


def test_the_embedded_checkpoint_is_there():
    assert (NANO / "model.safetensors").exists()
    assert (NANO / "zoomiqa_protocol.json").exists()


@pytest.mark.integration
def test_the_wheel_holds_all_packages_and_the_checkpoint(tmp_path):
    tree = tmp_path / "tree"
    for file in project_files():
        relative = file.relative_to(ROOT)
        if relative.parts[0] in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
            (tree / relative).parent.mkdir(parents=True, exist_ok=True)
            (tree / relative).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree]
    pytest.importorskip("setuptools", reason="the wheel is built without a network, by this environment's setuptools")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        file.relative_to(tree).as_posix() for file in tree.rglob("*")
        if file.relative_to(tree).parts[0] in PACKAGES and file.is_file() and "__pycache__" not in file.parts
        and not any(part.endswith(".egg-info") for part in file.parts)
    }  # fmt: skip
    assert wanted - held == set()
    assert any(name.endswith("licenses/LICENSE") for name in held)
