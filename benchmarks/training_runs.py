"""Whole runs of the trainers, for `training.py`: data, configuration and environment, and a run seen from outside."""

import argparse
import contextlib
import csv
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from train_iqa.nano.labels import LabelScale
from train_iqa.nano.synthetic import list_photographs, make_sample
from train_iqa.rows.conversations import synthetic_conversations, write_conversations
from train_iqa.training.run_state import read_log

ROOT = Path(__file__).resolve().parent.parent
IMAGES, LOCAL_SHARE = 48, 0.4
STAGES = ("sft", "grpo")
"""Both with all weights of the language side, as the `nano` recipe; fewer rows and samples, so that a run is short."""
SFT = {"steps": 12, "rows_per_step": 16, "micro_rows": 8, "learning_rate": 2e-4, "warmup_steps": 2, "save_every": 2}
GRPO = {
    "steps": 6, "images_per_step": 8, "images_per_rollout": 8, "num_samples": 3, "max_new_tokens": 256,
    "micro_rows": 8, "learning_rate": 2e-5, "warmup_steps": 2, "reference_dtype": "float32", "save_every": 2,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {"sft": SFT, "grpo": GRPO}


def write_data(images: Path, folder: Path, count: int = IMAGES, size: tuple[int, int] | None = None) -> None:
    """Write `talks.jsonl` (SFT) and `labels.csv` (GRPO) about the same degraded crops; `size`: width, height."""
    rng, paths = np.random.default_rng(0), list_photographs(images)
    drawn = [paths[k] for k in rng.integers(0, len(paths), count)]
    samples = [make_sample(path, rng, large=False, local_share=LOCAL_SHARE) for path in drawn]
    if size is not None:
        samples = [replace(one, image=np.asarray(Image.fromarray(one.image).resize(size))) for one in samples]
    scale = LabelScale.load(Path(str(resources.files("zoomiqa_reward"))) / "checkpoints" / "nano" / "label_scale.json")
    talks = synthetic_conversations(samples, scale)
    folder.mkdir(parents=True)
    write_conversations(folder / "talks.jsonl", talks, overwrite=True)
    with open(folder / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "mos", "split"])
        table.writerows([f"images/{k:06d}.png", round(one.rating, 4), "training"] for k, one in enumerate(talks))


def write_config(stage: str, data: Path, file: Path, **changes: Any) -> dict[str, Any]:
    """Write the YAML configuration of a stage of `nano` on the CPU and return its settings."""
    settings = {**SETTINGS[stage], **changes}
    csv_file = {"family": "csv", "root": str(data / "labels.csv")}
    source = {"path": str(data / "talks.jsonl")} if stage == "sft" else csv_file
    whole = {"model": {"name": "nano", "device": "cpu"}, "tuning": {"lora_rank": 0}, "data": [source], **settings}
    file.write_text(yaml.safe_dump(whole, sort_keys=False))
    return settings


def environment(threads: int) -> dict[str, str]:
    """Return the trainers' environment: this one's, with a fixed number of threads a process and no network."""
    return {
        **os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


@dataclass(kw_only=True)
class Run:
    """One whole run of a command, seen from outside."""

    seconds: float = 0.0
    row_times: list[float] = field(default_factory=list)
    """Seconds from the start to each step's row."""
    cpu_times: list[float] = field(default_factory=list)
    """Seconds of processor time that it had used up at each row."""
    peak_mib: float = 0.0
    """Highest resident memory of the process up to the last row."""
    printed: str = ""

    @property
    def step_s(self) -> float:
        """Median seconds of a step; the first one, which warms up, is not counted."""
        return statistics.median(np.diff(self.row_times))


def run_whole(command: Sequence[str], env: Mapping[str, str]) -> Run:
    """Run to the end; rows come on stderr, as the trainers print them. Raises RuntimeError where it fails."""
    run, began, said = Run(), time.monotonic(), []
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, env=env, **options) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith('{"step"'):
                run.row_times.append(time.monotonic() - began)
                # of the process alone: its getrusage would also hold this process' memory from before the exec
                status = Path(f"/proc/{process.pid}/status").read_text()
                run.peak_mib = int(status.split("VmHWM:")[1].split()[0]) / 1024
                used = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                run.cpu_times.append(sum(map(int, used)) / os.sysconf("SC_CLK_TCK"))
        run.printed = process.stdout.read()
    run.seconds = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(said)[-3000:]}")
    return run


def rates(stage: str, run: Run, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the speed of a run's steps, the first one not counted.

    Processor seconds are of all threads; with one thread they are what a step takes on a machine of its own.
    """
    rows, cpu_s = read_log(folder)[1:], statistics.median(np.diff(run.cpu_times))
    images = settings["rows_per_step" if stage == "sft" else "images_per_step"]
    found = {
        "steps": len(rows), "step_s": round(run.step_s, 2), "images_per_s": round(images / run.step_s, 3),
        "cpu_s_a_step": round(cpu_s, 2), "images_per_cpu_s": round(images / cpu_s, 3),
        "tokens_per_s": round(statistics.median(row["tokens_per_s"] for row in rows), 1),
        "tokens": "of prompts and answers" if stage == "sft" else "sampled",
    }  # fmt: skip
    if stage == "grpo":
        found["trajectories_per_s"] = round(images * settings["num_samples"] / run.step_s, 3)
        found |= {name: round(statistics.median(row[name] for row in rows), 2) for name in ("generate_s", "train_s")}
    return found


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the times depend on."""
    note = "shared machine: other programs ran meanwhile, so times are rough"
    return {"threads_a_process": args.threads, "load_average": round(os.getloadavg()[0], 1), "note": note}


def new_folder(path: Path | None) -> contextlib.AbstractContextManager[str]:
    """Return what yields `--out`, which must be new or empty, or else a folder that goes away."""
    if path is None:
        return tempfile.TemporaryDirectory()
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise SystemExit(f"--out {path} holds files: runs there would be continued, not made; give an empty folder")
    return contextlib.nullcontext(str(path.resolve()))
