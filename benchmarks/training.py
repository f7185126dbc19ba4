"""The trainers on their real command line, with the embedded model: SIGKILL, two processes for one, cost.

python benchmarks/training.py kill {sft,grpo} --images DIR [--out DIR] [--seed 0] [--threads 1]
python benchmarks/training.py processes --images DIR [--out DIR] [--threads 1]
python benchmarks/training.py cost --images DIR [--out DIR] [--threads 1]

`kill` runs a training whole, and again with SIGKILL at three seeded random moments and the same command each time;
rows, metrics and weights must then be equal. `processes` runs `accelerate launch` with two processes (gloo on a CPU)
and one process with twice the micro-batches. `cost` measures speed and memory, with a GPU also of a 7B of random
weights. Data: 224 px crops of the photographs, degraded, with answers written from the record of the damage.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from common import write_result
from memory import resident_mib
from PIL import Image

from train_iqa import grpo, sft
from train_iqa.evaluation.lines import null
from train_iqa.labels import LabelScale
from train_iqa.recipes import own_protocol, qwen2_5_vl_7b
from train_iqa.rows.conversations import synthetic_conversations, write_conversations
from train_iqa.synthetic import list_photographs, make_sample
from train_iqa.training.metrics import DIGITS, read_log
from zoomiqa_reward.checkpoint import Checkpoint, load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PICTURES, LOCAL_SHARE = 48, 0.4
KILLS = 3
TIMES = ("tokens_per_s", "generate_s", "train_s")
"""What a step took differs from run to run; all else is compared."""
NO_GPU = "no GPU on this machine"
STAGES = ("sft", "grpo")
"""Both with all weights of the language side, as the `nano` recipe; fewer rows and samples, so that a run is short."""
SFT = {"steps": 12, "rows_per_step": 16, "micro_rows": 8, "learning_rate": 2e-4, "warmup_steps": 2, "save_every": 2}
GRPO = {
    "steps": 6, "images_per_step": 8, "images_per_rollout": 8, "num_samples": 3, "max_new_tokens": 256,
    "micro_rows": 8, "learning_rate": 2e-5, "warmup_steps": 2, "reference_dtype": "float32", "save_every": 2,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {"sft": SFT, "grpo": GRPO}
TEXT_7B = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 128000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION_7B = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
    "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
"""Sizes of Qwen2.5-VL-7B-Instruct, from its published config.json."""
SIDES_7B = (1008, 756)
"""Width and height that the pictures are enlarged to for it: about KonIQ-10k's."""


def write_data(images: Path, folder: Path, count: int = PICTURES, size: tuple[int, int] | None = None) -> None:
    """Write `talks.jsonl` (SFT) and `labels.csv` (GRPO) about the same degraded crops; `size`: width, height."""
    rng, paths = np.random.default_rng(0), list_photographs(images)
    drawn = [paths[k] for k in rng.integers(0, len(paths), count)]
    samples = [make_sample(path, rng, large=False, local_share=LOCAL_SHARE) for path in drawn]
    if size is not None:
        samples = [replace(one, image=np.asarray(Image.fromarray(one.image).resize(size))) for one in samples]
    scale = LabelScale.load(Path(str(resources.files("zoomiqa_reward"))) / "checkpoints" / "nano" / "label_scale.json")
    talks = synthetic_conversations(samples, scale)
    folder.mkdir(parents=True)
    write_conversations(folder / "talks.jsonl", talks)
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


def rows_written(folder: Path) -> int:
    """Return the whole lines of a run's log."""
    file = folder / "log.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def saved_step(folder: Path) -> int:
    """Return the step that a run would continue from."""
    file = folder / "state.pt"
    return int(torch.load(file, weights_only=True, map_location="cpu")["step"]) if file.exists() else 0


def kill_once(command: Sequence[str], folder: Path, seconds: float, env: Mapping[str, str]) -> dict[str, Any]:
    """Start the command and kill it `seconds` after its first row; return what stood in the folder.

    Counted from that row, since reading libraries takes longer than a step where the machine is busy. Raises
    RuntimeError where the run was over before.
    """
    began, before = time.monotonic(), saved_step(folder)
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=env, **options) as process:
        assert process.stderr is not None
        said = next((line for line in process.stderr if line.startswith('{"step"')), "no row")
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"ended with {process.returncode} before its kill {seconds:.1f} s after {said}")
    written, saved = rows_written(folder), saved_step(folder)
    return {
        "continued_from_step": before, "s_after_first_row": round(seconds, 2),
        "s_after_start": round(time.monotonic() - began, 1), "rows_at_kill": written, "saved_step": saved,
        "rows_to_redo": written - saved,
    }  # fmt: skip


def compare(folders: Sequence[Path], steps: int) -> dict[str, Any]:
    """Return whether two finished runs are the same run."""
    logs = [[{k: v for k, v in row.items() if k not in TIMES} for row in read_log(folder)] for folder in folders]
    found = [[row["step"] for row in log] for log in logs]
    weights = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (folder / "policy").glob("*.safetensors")}
        for folder in folders
    ]
    return {
        "one_row_a_step_in_order": all(one == list(range(1, steps + 1)) for one in found),
        "steps_in_killed_log": found[1],
        "metrics_compared_a_step": len(logs[0][0]) - 1,
        "metrics_equal": logs[0] == logs[1],
        "first_different_step": next((a["step"] for a, b in zip(*logs, strict=False) if a != b), None),
        "policy_bytes_identical": bool(weights[0]) and weights[0] == weights[1],
        "policy_sha256": weights,
    }


def kill(args: argparse.Namespace, out: Path) -> bool:
    """Write `results/training_kill_STAGE.json`; return whether the killed run is the uninterrupted one.

    A kill counts as mid-run where that start had written rows, and not all.
    """
    env, file, killed, kills = environment(args.threads), out / "config.yaml", out / "killed", []
    write_data(args.images, out / "data")
    settings = write_config(args.stage, out / "data", file)
    command = [sys.executable, "-m", f"train_iqa.{args.stage}", str(file), "--out"]
    whole = run_whole([*command, str(out / "whole")], env)
    start_s = whole.row_times[0] - whole.step_s
    rng = np.random.default_rng([args.seed, STAGES.index(args.stage)])
    for _ in range(KILLS):
        # in the first half of what is left: this run may be faster, and the kills to come want something to kill
        left_s = (settings["steps"] - saved_step(killed) - 1) * whole.step_s
        kills.append(kill_once([*command, str(killed)], killed, rng.uniform(0, 0.5 * left_s), env))
    last = run_whole([*command, str(killed)], env)
    checks = compare((out / "whole", killed), settings["steps"])
    mid = [one["continued_from_step"] < one["rows_at_kill"] < settings["steps"] for one in kills]
    checks |= {"mid_run_kills": sum(mid), "rows_redone": sum(one["rows_to_redo"] for one in kills)}
    names = ("one_row_a_step_in_order", "metrics_equal", "policy_bytes_identical", "mid_run_kills")
    holds = all(checks[name] for name in names)
    result = {
        "stage": args.stage, "holds": holds, **checks, "kills": kills, "settings": settings, "pictures": PICTURES,
        "uninterrupted_s": round(whole.seconds, 1), "start_s": round(start_s, 1), "step_s": round(whole.step_s, 2),
        "last_start_s": round(last.seconds, 1), **machine(args),
    }  # fmt: skip
    write_result(f"training_kill_{args.stage}", result)
    return holds


def launched(stage: str, file: Path, folder: Path, count: int, env: Mapping[str, str]) -> float:
    """Run a training under `accelerate launch`; return its seconds. Raises RuntimeError for a wrong number of them."""
    # `--cpu` starts one process whatever the number; so it is the configuration that keeps them off a GPU
    many = ["--multi_gpu", "--main_process_port", "0"] if count > 1 else ["--cpu"]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch = ["accelerate.commands.launch", *many, "--num_processes", str(count), *plain]
    command = [sys.executable, "-m", *launch, "-m", f"train_iqa.{stage}", str(file), "--out", str(folder)]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{stage} on {count} processes:\n{done.stderr[-3000:]}")
    found = json.loads((folder / "run.json").read_text())["processes"]
    if found != count:
        raise RuntimeError(f"{stage}: {found} processes ran where {count} were asked for")
    return time.monotonic() - began


def largest_difference(pairs: Sequence[tuple[float | None, float | None]]) -> float:
    """Return the largest relative difference of pairs of numbers, infinite for a number and none.

    >>> largest_difference([(1.0, 0.5), (None, None), (3.0, 3.0)])
    0.5
    """
    apart = [abs(a - b) / max(abs(a), abs(b)) if None not in (a, b) else math.inf for a, b in pairs if a != b]
    return max(apart, default=0.0)


def processes(args: argparse.Namespace, out: Path) -> bool:
    """Write `results/training_processes.json`: one process and two, the same steps, compared as logged."""
    env, result = environment(args.threads), {}
    write_data(args.images, out / "data")
    # two updates, of which the second is logged: on the first the policy's loss is the mean advantage, 0 by design
    changes = {"sft": {"steps": 3, "micro_rows": 4}, "grpo": {"steps": 3, "images_per_rollout": 4, "updates": 2}}
    for stage in STAGES:
        file, folders = out / f"{stage}.yaml", [out / f"{stage}-{count}" for count in (1, 2)]
        settings = write_config(stage, out / "data", file, **changes[stage])
        seconds = [launched(stage, file, folder, count, env) for count, folder in enumerate(folders, start=1)]
        one, two = (read_log(folder) for folder in folders)
        names = [name for name in one[0] if name not in (*TIMES, "step")]
        apart = {n: largest_difference([(a[n], b[n]) for a, b in zip(one, two, strict=True)]) for n in names}
        counted = "target_tokens" if stage == "sft" else "tokens"
        result[stage] = {
            **{f"{name}_{n}": [row[name] for row in log] for name in ("loss", "grad_norm", counted)
               for n, log in (("1_process", one), ("2_processes", two))},
            "largest_relative_difference": apart["loss"],
            "largest_relative_difference_by_metric": null({name: value for name, value in apart.items() if value}),
            "seconds": [round(one_s, 1) for one_s in seconds],
            "settings": settings,
        }  # fmt: skip
    write_result(
        "training_processes",
        {**result, "backend": "gloo", "logged_digits": DIGITS, "pictures": PICTURES, **machine(args)},
    )
    return True


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


def cost(args: argparse.Namespace, out: Path) -> bool:
    """Write `results/training_cost.json`: speed and memory of steps."""
    if args.child:
        child(args, out)
        return True
    env, result = environment(args.threads), {}
    write_data(args.images, out / "data")
    for stage in STAGES:
        # the recipe's rows and samples; nothing is saved between the steps; idle: nano loaded, nothing trained
        changes = {"steps": 4, "rows_per_step": 32} if stage == "sft" else {"steps": 3, "num_samples": 6}
        settings = write_config(stage, out / "data", out / f"{stage}.yaml", **changes, save_every=100)
        idling = [sys.executable, __file__, "cost", "--images", ".", "--child", "idle"]
        idle = float(subprocess.run(idling, env=env, capture_output=True, text=True, check=True).stdout)
        trainer = ["-m", f"train_iqa.{stage}", str(out / f"{stage}.yaml"), "--out", str(out / stage)]
        run = run_whole([sys.executable, *trainer], env)
        memory = {"idle_mib": round(idle), "peak_over_idle_mib": round(run.peak_mib - idle)}
        result[f"nano_{stage}_cpu"] = {**rates(stage, run, out / stage, settings), **memory, "settings": settings}
    for stage in STAGES:
        name = f"qwen2_5_vl_7b_lora_{stage}_gpu"
        if not torch.cuda.is_available():
            result[name] = NO_GPU
            continue
        options = ["--images", str(args.images), "--out", str(out / name), "--child", "7b", "--stage", stage]
        run = run_whole([sys.executable, __file__, "cost", *options], env)
        printed = json.loads(run.printed.splitlines()[-1])
        result[name] = {**rates(stage, run, out / name / "run", printed["settings"]), **printed}
    write_result("training_cost", {**result, "pictures": PICTURES, **machine(args)})
    return True


def random_7b(device: str, text: Mapping[str, Any] = TEXT_7B, vision: Mapping[str, Any] = VISION_7B) -> Checkpoint:
    """Return Qwen2.5-VL-7B with random bfloat16 weights, made on the device; nano's tokenizer, our own prompts."""
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

    nano = load_checkpoint("nano", device="cpu")
    own = nano.model.config
    ends = {name: getattr(own.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    kinds = [f"{kind}_token_id" for kind in ("image", "video", "vision_start", "vision_end")]
    tokens = {name: getattr(own, name) for name in kinds}
    text, vision = {**text, **ends}, dict(vision)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    return replace(nano, name="Qwen2.5-VL-7B, random", model=model, protocol=own_protocol())


def child(args: argparse.Namespace, out: Path, device: str = "cuda", **sizes: Any) -> None:
    """Measure in a process of its own; rows go to stderr, the result to stdout."""
    if args.child == "idle":
        _loaded = load_checkpoint("nano", device="cpu")
        print(resident_mib())
        return
    write_data(args.images, out / "data", count=16, size=SIDES_7B)
    settings: dict[str, Any] = {"rows_per_step": 16, "micro_rows": 2}
    source: Any = sft.ConversationSource(path=out / "data" / "talks.jsonl")
    if args.stage == "grpo":
        # random weights end no answer: every one has `max_new_tokens`, and none asks for a second round
        settings = {"images_per_step": 8, "images_per_rollout": 4, "num_samples": 4, "max_new_tokens": 256}
        source = grpo.Source(family="csv", root=out / "data" / "labels.csv")
    config = replace(
        getattr(qwen2_5_vl_7b(), args.stage), data=(source,), out=out / "run", steps=4, save_every=100,
        tensorboard=False, **settings,
    )  # fmt: skip
    checkpoint = random_7b(device, **sizes)
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    on_gpu = device == "cuda"
    idle = torch.cuda.memory_allocated() if on_gpu else 0
    trainer = sft if args.stage == "sft" else grpo
    with patch.object(trainer, "load_base", lambda *_: checkpoint):  # everything else is the trainer's own
        trainer.train(config)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    result = {
        "parameters": parameters, "device": torch.cuda.get_device_name() if on_gpu else device,
        "idle_mib": round(idle / 2**20), "peak_over_idle_mib": round((peak - idle) / 2**20),
        "settings": settings, "sides_px": SIDES_7B,
    }  # fmt: skip
    print(json.dumps(result))


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for function in (kill, processes, cost):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        if function is kill:
            command.add_argument("stage", choices=STAGES)
            command.add_argument("--seed", type=int, default=0, help="of the moments")
        if function is cost:
            command.add_argument("--child", choices=("idle", "7b"), help=argparse.SUPPRESS)
            command.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
        command.add_argument("--images", type=Path, required=True, help="folder of clean photographs")
        command.add_argument("--out", type=Path, help="new folder that is kept; by default a temporary one")
        command.add_argument("--threads", type=int, default=1, help="of each process")
    args = parser.parse_args()
    with new_folder(args.out) as out:
        return 0 if args.function(args, Path(out)) else 1


if __name__ == "__main__":
    sys.exit(main())
