"""The shipped DeepSpeed configurations start, and learn what a plain run learns; the real library in one process."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT
from test_sft import data_file
from tiny import tiny_checkpoint

from train_iqa.training import learner
from train_iqa.training.learner import ModelConfig
from train_iqa.training.run_state import read_log

CONFIGS = ROOT / "train_iqa" / "configs"


def test_deepspeed_is_told_a_batch_size_since_no_dataloader_tells_it(monkeypatch):
    """accelerate leaves `auto` where nothing was prepared, and DeepSpeed refuses that."""
    settings = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": 1}
    plugin = SimpleNamespace(deepspeed_config=settings)
    made = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    monkeypatch.setattr(learner, "Accelerator", lambda cpu: made)
    assert learner.make_accelerator(ModelConfig()) is made
    assert settings == {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}


@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed comes with the extra [deepspeed]")
@pytest.mark.parametrize(("name", "rank"), [("deepspeed_zero2", 4), ("deepspeed_zero3", 0)], ids=["zero2", "zero3"])
def test_a_shipped_configuration_starts_and_learns_what_a_plain_run_learns(name, rank, tmp_path):
    """One process: without CUDA accelerate does not tell the processes of DeepSpeed apart."""
    text = {
        "model": {"name": str(tiny_checkpoint()), "dtype": "float32"}, "tuning": {"lora_rank": rank, "lora_alpha": 8},
        "data": [{"path": str(data_file(tmp_path / "d"))}], "steps": 2, "rows_per_step": 4, "micro_rows": 2,
        "learning_rate": 5e-3, "warmup_steps": 1, "tensorboard": False,
    }  # fmt: skip
    shipped = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(shipped | {"num_processes": 1, "mixed_precision": "no"}))
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "launch.yaml"),
              "--main_process_port", "0"]  # fmt: skip
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    for run, way in (("plain", []), ("sharded", launch)):
        (tmp_path / f"{run}.json").write_text(json.dumps(text | {"out": str(tmp_path / run)}))
        command = [sys.executable, *way, "-m", "train_iqa.sft", str(tmp_path / f"{run}.json")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    for plain, sharded in zip(read_log(tmp_path / "plain"), read_log(tmp_path / "sharded"), strict=True):
        assert (sharded["loss"], sharded["grad_norm"]) == pytest.approx((plain["loss"], plain["grad_norm"]), rel=1e-4)
    record = json.loads((tmp_path / "sharded" / "run.json").read_text())
    assert record["processes"] == 1
