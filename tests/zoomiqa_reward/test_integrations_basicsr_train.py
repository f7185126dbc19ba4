"""BasicSR's own train.py, twenty iterations on the CPU with our perceptual loss and our metric in its YAML file."""

import os
import re
import subprocess
import sys

import pytest
import torch
from photographs import photograph
from tiny import tiny_checkpoint

from zoomiqa_reward.images.filters import resize_bicubic
from zoomiqa_reward.images.loading import to_pil

OPTIONS = """
name: doors
model_type: SRModel
scale: 4
num_gpu: 0
manual_seed: 0
datasets:
  train: {{name: pairs, type: PairedImageDataset, dataroot_gt: gt, dataroot_lq: lq, io_backend: {{type: disk}},
    gt_size: 64, use_hflip: true, use_rot: true, num_worker_per_gpu: 0, batch_size_per_gpu: 2,
    dataset_enlarge_ratio: 1}}
  val: {{name: held, type: PairedImageDataset, dataroot_gt: gt, dataroot_lq: lq, io_backend: {{type: disk}}}}
network_g: {{type: MSRResNet, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 4}}
path: {{}}
train:
  optim_g: {{type: Adam, lr: 0.001}}
  scheduler: {{type: MultiStepLR, milestones: [100], gamma: 0.5}}
  total_iter: 20
  pixel_opt: {{type: L1Loss, loss_weight: 1.0}}
  perceptual_opt: {{type: ZoomIQAPerceptualLoss, loss_weight: 0.05, model: {model}, device: cpu}}
val:
  val_freq: 20
  save_img: false
  metrics:
    zoomiqa: {{type: calculate_zoomiqa, model: {model}, device: cpu, better: higher}}
    psnr: {{type: calculate_psnr, crop_border: 4, test_y_channel: true}}
logger: {{print_freq: 5, save_checkpoint_freq: 20, use_tb_logger: false}}
"""
"""The file of docs/other_libraries.md at toy size."""


@pytest.mark.integration
def test_twenty_iterations_of_its_own_training(tmp_path):
    pytest.importorskip("basicsr.archs", exc_type=ImportError)
    for folder in ("gt", "lq"):
        (tmp_path / folder).mkdir()
    for index in range(4):
        image = resize_bicubic(photograph(index, 256, 256), 64, 64).clamp(0, 1)
        to_pil(image).save(tmp_path / "gt" / f"{index}.png")
        to_pil(resize_bicubic(image, 16, 16).clamp(0, 1)).save(tmp_path / "lq" / f"{index}.png")
    (tmp_path / "train.yml").write_text(OPTIONS.format(model=tiny_checkpoint()), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-m", "zoomiqa_reward.integrations.basicsr_train", "-opt", "train.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    [log_file] = (tmp_path / "experiments" / "doors").glob("train_doors_*.log")
    log = log_file.read_text(encoding="utf-8")
    assert [int(step) for step in re.findall(r"\[epoch:.*iter:\s+(\d+)", log)] == [5, 10, 15, 20]
    perceptual = [float(value) for value in re.findall(r"l_percep: (\S+)", log)]
    assert len(perceptual) == 4
    assert all(0 < value < 0.05 for value in perceptual)  # 0.05 * (5 - rating) / 4
    assert all(float(value) > 0 for value in re.findall(r"l_pix: (\S+)", log))
    assert 1 < float(re.search(r"# zoomiqa: (\S+)", log).group(1)) < 5
    weights = torch.load(tmp_path / "experiments" / "doors" / "models" / "net_g_latest.pth", weights_only=True)
    assert all(value.isfinite().all() for value in weights["params"].values())
    assert not [name for name in weights["params"] if "visual" in name or "language" in name]  # the judge is not saved


@pytest.mark.integration
def test_a_wrong_file_is_one_line(tmp_path):
    pytest.importorskip("basicsr.archs", exc_type=ImportError)
    command = [sys.executable, "-W", "ignore", "-m", "zoomiqa_reward.integrations.basicsr_train", "-opt", "none.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("basicsr_train: ")


def environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
