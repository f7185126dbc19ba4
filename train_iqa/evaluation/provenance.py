"""What a number needs to be made again: command, code, libraries, model, data."""

import datetime
import platform
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import train_iqa
from zoomiqa_reward.model.fingerprint import fingerprint_parts

LIBRARIES = ("zoomiqa-reward", "torch", "torchvision", "transformers", "numpy", "scipy", "scikit-learn", "pillow")


def provenance(iqa: Any, arguments: list[str]) -> dict[str, Any]:
    """Return command, time, code version, libraries, machine and model of a run."""
    device = iqa.device
    return {
        "command": shlex.join(["python", "-m", "train_iqa.evaluate", *arguments]),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": code_version(Path(train_iqa.__file__).parent),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} {platform.machine()}",
        "model": iqa.name,
        "model_fingerprint": iqa.fingerprint,
        "model_parts": {name: part for name, part in fingerprint_parts(iqa.checkpoint).items() if name != "versions"},
        "label_metrics": list(iqa.protocol.label_metrics),
    }


def code_version(folder: Path) -> dict[str, Any]:
    """Return the git commit that `folder` is checked out at and whether it was changed since; None where it is not."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = None if commit is None else git("status", "--porcelain", "--", str(folder))
    return {"commit": commit, "is_changed": None if changed is None else bool(changed)}
