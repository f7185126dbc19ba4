"""Where pyiqa is installed, it finds Zoom-IQA by the entry point; `benchmarks/other_libraries.py` installs it."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from conftest import ROOT
from photographs import photograph
from tiny import tiny_checkpoint, tiny_iqa

from restoration.metrics import measure
from zoomiqa_reward.images.filters import gaussian_blur
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="pyiqa is not installed"),
]

GROUP = "pyiqa.archs"


@pytest.fixture
def run(tmp_path):
    """Run Python code in a process in which this package is installed, as pip would leave it; return its last line."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    installed = tmp_path / "installed" / "zoomiqa_doors-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: zoomiqa-doors\nVersion: 0\n", encoding="utf-8")
    lines = [f"[{GROUP}]", *(f"{name} = {target}" for name, target in points.items())]
    (installed / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    for name in ("a", "b"):
        to_pil(photograph("ab".index(name), 96, 96)).save(tmp_path / f"{name}.png")
    path = os.pathsep.join([str(installed.parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MODEL": str(tiny_checkpoint())}

    def run_code(code):
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run_code


def ratings(folder):
    return ZoomIQAReward(tiny_iqa())([folder / "a.png", folder / "b.png"]).value.tolist()


def test_its_registry_finds_the_network_by_itself(run, tmp_path):
    code = """
import json, os, torch
from pyiqa.archs import build_network
from pyiqa.utils.img_util import imread2tensor
network = build_network({"type": "ZoomIQAScorer", "model": os.environ["MODEL"], "device": "cpu"})
batch = torch.stack([imread2tensor(name, rgb=True) for name in ("a.png", "b.png")])
print(json.dumps(network(batch)[:, 0].tolist()))
"""
    assert json.loads(run(code).splitlines()[-1]) == pytest.approx(ratings(tmp_path))


def test_create_metric_after_another_metric_and_as_a_loss(run, tmp_path):
    code = """
import json, os, torch, pyiqa
assert "zoomiqa" not in pyiqa.list_models()
pyiqa.create_metric("psnr", device="cpu")  # this asks a registry
assert "zoomiqa" in pyiqa.list_models(metric_mode="NR")
options = {"device": "cpu", "model": os.environ["MODEL"]}
metric = pyiqa.create_metric("zoomiqa", **options)
assert not metric.lower_better and metric.score_range == "1, 5"
from pyiqa.utils.img_util import imread2tensor
batch = torch.stack([imread2tensor(name, rgb=True) for name in ("a.png", "b.png")]).requires_grad_(True)
loss = pyiqa.create_metric("zoomiqa", as_loss=True, **options)
(-loss(batch)).backward()
print(json.dumps({"files": [metric("a.png").item(), metric("b.png").item()], "batch": metric(batch)[:, 0].tolist(),
                  "loss": loss(batch).item(), "moved": float((batch.grad != 0).float().mean())}))
"""
    found = json.loads(run(code).splitlines()[-1])
    expected = ratings(tmp_path)
    assert found["files"] == pytest.approx(expected)
    assert found["batch"] == pytest.approx(expected)
    assert found["loss"] == pytest.approx(sum(expected) / 2)
    assert found["moved"] > 0.9


def test_register_comes_first_and_its_command_line_works(run, tmp_path):
    code = """
import os, sys
import pyiqa.pyiqa_cmd as command
from zoomiqa_reward.integrations.pyiqa import register
register(), register()
from pyiqa.default_model_configs import DEFAULT_CONFIGS
DEFAULT_CONFIGS["zoomiqa"]["metric_opts"].update(model=os.environ["MODEL"], device="cpu")
sys.argv = ["pyiqa", "zoomiqa", "-t", "a.png", "--device", "cpu"]
command.main()
"""
    printed = run(code)
    value = float(printed.rpartition("'mean':")[2].strip(" }\n").removeprefix("np.float64(").rstrip(")"))
    assert value == pytest.approx(ZoomIQAReward(tiny_iqa())(load_image(tmp_path / "a.png")).value.item())


def test_its_metrics_have_our_values_with_the_options_of_the_guide(run, tmp_path):
    """docs/metrics.md tells which options make the metrics of the same names equal."""
    basicsr = pytest.importorskip("basicsr")
    clean = photograph(3, 200, 210)
    blurred = gaussian_blur(clean[None], 1.0)[0].clamp(0, 1)
    for name, image in (("clean", clean), ("blurred", blurred)):
        to_pil(image).save(tmp_path / f"{name}.png")
    pristine = np.load(Path(basicsr.__file__).parent / "metrics" / "niqe_pris_params.npz")
    names = {"mu_prisparam": "mu_pris_param", "cov_prisparam": "cov_pris_param"}
    scipy.io.savemat(tmp_path / "niqe.mat", {theirs: pristine[ours] for theirs, ours in names.items()})
    code = """
import json, pyiqa
luma = {"test_y_channel": True, "color_space": "ycbcr", "crop_border": 4}
options = {"psnr": luma, "ssim": luma, "fsim": {},
           "niqe": {"color_space": "ycbcr", "pretrained_model_path": "niqe.mat"}}
print(json.dumps({name: pyiqa.create_metric(name, device="cpu", **chosen)("blurred.png", "clean.png").item()
                  for name, chosen in options.items()}))
"""
    theirs = json.loads(run(code).splitlines()[-1])
    ours = measure(["psnr_y", "ssim_y", "fsim", "niqe"], tmp_path / "blurred.png", hr=tmp_path / "clean.png")
    pairs = {name: (ours[key].value, theirs[name])
             for key, name in (("psnr_y", "psnr"), ("ssim_y", "ssim"), ("fsim", "fsim"), ("niqe", "niqe"))}  # fmt: skip
    for name, tolerance in {"psnr": 1e-3, "ssim": 2e-3, "fsim": 1e-4, "niqe": 0.1}.items():
        assert pairs[name][0] == pytest.approx(pairs[name][1], abs=tolerance), (name, pairs)
