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
import hashlib
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from training_7b import child
from training_runs import (
    IMAGES,
    ROOT,
    STAGES,
    environment,
    machine,
    new_folder,
    rates,
    run_whole,
    write_config,
    write_data,
)

from train_iqa.training.run_state import DIGITS, read_log
from zoomiqa_reward.runs.json_lines import plain

KILLS = 3
TIMES = ("tokens_per_s", "generate_s", "train_s")
"""What a step took differs from run to run; all else is compared."""
NO_GPU = "no GPU on this machine"


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
        "stage": args.stage, "holds": holds, **checks, "kills": kills, "settings": settings, "images": IMAGES,
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
            "largest_relative_difference_by_metric": plain({name: value for name, value in apart.items() if value}),
            "seconds": [round(one_s, 1) for one_s in seconds],
            "settings": settings,
        }  # fmt: skip
    write_result(
        "training_processes",
        {**result, "backend": "gloo", "logged_digits": DIGITS, "images": IMAGES, **machine(args)},
    )
    return True


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
    write_result("training_cost", {**result, "images": IMAGES, **machine(args)})
    return True


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
