"""For all tests: no network, repeatable randomness, two threads, and a folder that the documentation's code runs in."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "zoomiqa_reward" / "checkpoints" / "nano"


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


@pytest.fixture(autouse=True)
def _threads_are_set_back() -> Iterator[None]:
    """A command may set the threads of its process; in the tests that follow, they would fight over the cores."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _folder_stays() -> Iterator[None]:
    """The next tests would work in a temporary folder that pytest removes; `monkeypatch.chdir` goes back."""
    before = os.getcwd()
    yield
    if (after := os.getcwd()) != before:
        os.chdir(before)
        pytest.fail(f"the test left the process in {after}: change folders by monkeypatch.chdir")


@pytest.fixture(autouse=True)
def _is_told_again() -> None:
    """A warning that comes once per process comes in each test that earns it, whatever ran before."""
    if base := sys.modules.get("zoomiqa_reward.rewards.base"):
        base._TOLD.clear()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def nano() -> str:
    """The embedded model's name; a test that uses it waits for the checkpoint to be there."""
    if not (NANO / "model.safetensors").exists():
        pytest.skip("the nano checkpoint is not in this checkout")  # project/test_project.py fails in that case
    return "nano"


@pytest.fixture(scope="session")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 256 x 256 part of a public-domain photograph that scikit-image's wheel holds."""
    from restoration.demo import bundled_photograph

    path = tmp_path_factory.mktemp("photograph") / "photo.png"
    Image.open(bundled_photograph()).crop((96, 0, 352, 256)).save(path)
    return path


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layers of torchvision's AlexNet that LPIPS reads, with random weights: its own are not shipped."""
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = alexnet(weights=None).features.state_dict()
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in layers.items()}, path)
    return path


@pytest.fixture
def desk(tmp_path: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the documentation: a photograph, and what docs/README.md makes of it."""
    shutil.copy(photograph, tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    exec(index.split("```python\n")[1].split("```")[0], {})
    return tmp_path
