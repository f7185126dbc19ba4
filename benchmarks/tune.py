"""Five ways to tune the embedded x4 model on the rating, against best-of-8 of the base, judged by what no rating saw.

python benchmarks/tune.py run METHOD --images DIR --hr DIR [--seed 0] [--rounds N] [--out runs/tune]
python benchmarks/tune.py evaluate METHOD --hr DIR [--out runs/tune]
python benchmarks/tune.py table
python benchmarks/tune.py kill METHOD --images DIR --hr DIR [--rounds 8] [--out runs/tune]

METHOD: base, bicubic, sharpened_0.15 to sharpened_0.75 (the base on a sharpened input), cool, cool_sharpened_0.25 or
cool_sharpened_0.5 (the base at temperature 0, on the input or a sharpened one), none of which is trained; or one of
`tune_methods.py`: sft, dpo, grpo, nft, reward_gradient; nft_truth, dpo_truth: with ground truths beside the reward;
dpo_sharp: with sharpened ones; dpo_grpo, truth_grpo: GRPO on the result of dpo_sharp or dpo_truth with the same seed;
supervised, supervised_sharp: the truths alone, their controls; supervised_sharpened, dpo_sharpened, grpo_sharpened: the
runs of supervised, dpo_truth and truth_grpo on inputs sharpened by 0.15 (`evaluate` measures them); chance: DPO on a
number that means nothing, a control; laplacian, niqe: on that alone, by its gradient and by NFT, until its alarm;
laplacian_heedless: the same, the alarm not heeded.
`run` trains (resumed where it was), then restores the middle of each evaluation image with fixed seeds and measures.
"robust" is `RobustReward`'s rating, the mean over copies that look the same; "rating" is that of the image alone.
`evaluate` measures finished runs again. What was measured of a run is kept in `results/tune_runs/`, image by image,
so that a method or a seed can be added without training the others again. `table` gathers all of it: means over seeds
of training and images, intervals over images. The base's value of an image is its mean over all its seeds: nano's
rating is rough, so equal seeds are no pairs once a weight has changed, and what two lucky seeds of the base have would
be a gain of everything that is compared with them.
`kill` trains once in one piece and once killed three times at random moments, and compares logs and weights.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result
from tqdm import tqdm
from tune_methods import BASELINES, EVAL_LR_PX, METHODS, UNTRAINED, recipe_of, sharpened_first

from restoration import Restorer
from restoration.evaluation.datasets import degraded_folder
from restoration.evaluation.statistics import mean_interval, paired_test
from restoration.metrics import measure
from restoration.restorer.rng import candidate_seed
from restoration.tuning import load_examples, tune
from restoration.tuning.config import Recipe
from restoration.tuning.data import crop
from zoomiqa_reward import RobustReward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image, to_pil
from zoomiqa_reward.runs.json_lines import read_lines

METRICS = ("fsim", "vif", "haarpsi", "psnr_y", "lr_consistency", "niqe")
MEASURES = ("robust", "rating", *METRICS)
UNSEEN = ("fsim", "vif", "psnr_y")
RUNS = RESULTS / "tune_runs"
WATCHED = ("reward", "fragility", "fsim", "vif", "psnr_y", "lr_consistency", "fine_energy", "grid_peak")
"""Signals of the monitor that are kept: of the base and of the last look."""
SETS = ["set5", "set14", "urban30"]
PRESET = "mild"
NUM_SEEDS = {"base": 8}
"""Restorations of each evaluation image; 2 by the others."""


def evaluated(restorer: Restorer, examples: list[Any], iqa: ZoomIQA, count: int) -> list[dict[str, Any]]:
    """Return one row per image: for each measure the values of its `count` restorations, always of the same seeds."""
    rating, rows = ZoomIQAReward(iqa), []
    rewards = {"rating": rating, "robust": RobustReward(rating)}
    for example in tqdm(examples, desc="evaluation"):
        seeds = [candidate_seed(99, k) for k in range(count)]
        images = [load_image(to_pil(one.image)) for one in restorer.restore(example.lq, seeds)]
        found = [measure(METRICS, image, hr=example.hr, lq=example.lq) for image in images]
        row: dict[str, Any] = {name: [one[name].value for one in found] for name in METRICS}
        row |= {name: reward(images).value.tolist() for name, reward in rewards.items()}
        rows.append(row | {"name": example.name})
    return rows


def run(args: argparse.Namespace) -> None:
    """Train and evaluate one method with one seed."""
    folder = args.out / f"{args.method}-{args.seed}"
    if args.method in METHODS and METHODS[args.method].trained_as:
        raise ValueError(f"{args.method}: nothing is trained; `run {METHODS[args.method].trained_as}`, then `evaluate`")
    if args.method not in BASELINES:
        recipe = started(recipe_of(args.method, args.seed, args.rounds), args)
        whole = load_examples(degraded_folder(args.images, PRESET, scale=4, seed=0).take(args.limit))
        reward = recipe.reward(ZoomIQA.from_pretrained("nano"))
        tune(recipe, whole[:-6], reward, folder / "run", validation=whole[-6:])
    if not args.train_only:
        evaluate_one(folder, args)


def started(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """Return the recipe for the pipeline that the method starts from. Raises ValueError where that run is missing."""
    first = METHODS[args.method].start
    if first is None:
        return recipe
    pipeline = args.out / f"{first}-{args.seed}" / "run" / "pipeline"
    if not pipeline.exists():
        raise ValueError(f"{pipeline} is missing, and {args.method} tunes it further; train it with `run {first}`")
    return replace(recipe, source=str(pipeline))


def evaluate(args: argparse.Namespace) -> None:
    """Measure the method's finished runs again, or the base."""
    found = [args.out / f"{args.method}-0"] if args.method in BASELINES else finished_runs(args)
    for folder in found:
        evaluate_one(folder, args)


def evaluate_one(folder: Path, args: argparse.Namespace) -> None:
    """Measure a run's folder, whose name ends with -SEED, and keep what came out under the method's name."""
    method, seed = args.method, folder.name.rsplit("-", 1)[1]
    report: dict[str, Any] = {"method": method, "seed": int(seed)}
    if method not in BASELINES:
        result = json.loads((folder / "run" / "result.json").read_text())
        report |= {key: result[key] for key in ("rounds", "best_round", "alarms", "first_alarm_round", "seconds")}
        report["monitor"] = looks_of(folder / "run")
    restorer = BASELINES[method]() if method in BASELINES else tuned(folder / "run" / "pipeline", method)
    rows = evaluated(restorer, held_out_images(args), ZoomIQA.from_pretrained("nano"), NUM_SEEDS.get(method, 2))
    keep(f"{method}-{seed}", report, rows)


def tuned(pipeline: Path, method: str) -> Restorer:
    """Return a tuned restorer as the method uses it."""
    sharpness = METHODS[method].sharpness
    return sharpened_first(sharpness, pipeline) if sharpness else Restorer.from_pretrained(pipeline)


def keep(name: str, report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write a run's report and a line per image, in one step."""
    RUNS.mkdir(parents=True, exist_ok=True)
    half = RUNS / f"{name}.tmp"
    half.write_text("".join(json.dumps(row) + "\n" for row in (report, *rows)))
    half.replace(RUNS / f"{name}.jsonl")


def kept_runs() -> list[dict[str, Any]]:
    """Return the report of every run that was measured, with its `rows`."""
    read = [read_lines(file) for file in sorted(RUNS.glob("*.jsonl"))]
    return [report | {"rows": rows} for report, *rows in read]


def finished_runs(args: argparse.Namespace) -> list[Path]:
    """Return the folders of the method's finished runs. Raises ValueError where there is none."""
    trained = METHODS[args.method].trained_as or args.method
    found = [file.parents[1] for file in sorted(args.out.glob(f"{trained}-*/run/result.json"))]
    if not found:
        raise ValueError(f"--out {args.out}: no finished run of {trained}; train one with `run {trained}`")
    return found


def held_out_images(args: argparse.Namespace) -> list[Any]:
    """Return the middle of each evaluation image."""
    sets = [degraded_folder(args.hr / name, PRESET, scale=4, seed=1) for name in args.sets]
    return [crop(one, EVAL_LR_PX) for own in sets for one in load_examples(own)]


def count_lines(file: Path) -> int:
    """Return the whole lines of a file that may be written to meanwhile; `read_lines` would cut off a half one."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill(args: argparse.Namespace) -> None:
    """Compare an uninterrupted training with one that SIGKILL ended three times, each resumed by the same command."""
    command = [sys.executable, __file__, "run", args.method, "--images", str(args.images), "--hr", str(args.hr),
               "--rounds", str(args.rounds or 8), "--seed", str(args.seed), "--train-only"]  # fmt: skip
    folders = {name: args.out / f"kill_{name}" / f"{args.method}-{args.seed}" / "run" for name in ("whole", "killed")}
    subprocess.run([*command, "--out", str(args.out / "kill_whole")], check=True)
    rounds = len(read_lines(folders["whole"] / "log.jsonl"))
    rng, seen = np.random.default_rng(args.seed), []
    for least in sorted(int(k) for k in rng.choice(np.arange(1, rounds), size=3, replace=False)):
        started = subprocess.Popen([*command, "--out", str(args.out / "kill_killed")])
        while started.poll() is None and count_lines(folders["killed"] / "log.jsonl") < least:
            time.sleep(0.2)
        time.sleep(float(rng.uniform(0, 3)))  # somewhere in the next round
        started.send_signal(signal.SIGKILL)
        if started.wait() != -signal.SIGKILL:
            raise RuntimeError(f"the training was over before it was killed: more than --rounds {rounds} are needed")
        seen.append(count_lines(folders["killed"] / "log.jsonl"))
    subprocess.run([*command, "--out", str(args.out / "kill_killed")], check=True)
    logs = {name: read_lines(folder / "log.jsonl") for name, folder in folders.items()}
    weights = {name: (folder / "lora" / "pytorch_lora_weights.safetensors").read_bytes()
               for name, folder in folders.items()}  # fmt: skip
    write_result("tune_kill", {
        "method": args.method, "rounds": len(logs["whole"]), "rounds_logged_at_each_kill": seen,
        "rounds_in_order_once": [row["round"] for row in logs["killed"]] == [row["round"] for row in logs["whole"]],
        "same_log": logs["killed"] == logs["whole"], "same_weights": weights["killed"] == weights["whole"],
    })  # fmt: skip


def table(args: argparse.Namespace) -> None:
    """Gather all runs that were measured."""
    runs = kept_runs()
    rows_of = {name: next((one["rows"] for one in runs if one["method"] == name), None) for name in BASELINES}
    base = rows_of["base"]
    if base is None:
        raise ValueError(f"{RUNS}: no measurement of the base; make one with `run base`")
    found: dict[str, Any] = {}
    means_of: dict[str | None, dict[str, Any]] = {}
    for method in (*BASELINES, *METHODS):
        mine = [one for one in runs if one["method"] == method]
        if mine:
            means = {name: np.mean([[np.mean(row[name]) for row in one["rows"]] for one in mine], axis=0)
                     for name in MEASURES}  # fmt: skip
            known = ("rounds", "best_round", "first_alarm_round", "seconds")
            by_seed = {name: [float(np.mean([np.mean(row[name]) for row in one["rows"]])) for one in mine]
                       for name in ("robust", "rating", "fsim", "vif")}  # fmt: skip
            is_compared = method in METHODS or method.startswith("cool")
            found[method] = against(means, base) | (less_untrained(means, rows_of) if is_compared else {})
            if method in METHODS and METHODS[method].control in means_of:
                found[method]["minus_control"] = less(means, means_of[METHODS[method].control])
            means_of[method] = means
            found[method] |= {"seeds": len(mine), "by_seed": by_seed}
            found[method] |= {key: [one.get(key) for one in mine] for key in known}
            found[method]["monitor"] = [one.get("monitor", {}) for one in mine]
    for judge in ("robust", "rating"):
        picks = [int(np.argmax(row[judge])) for row in base]
        chosen = {name: np.array([row[name][k] for row, k in zip(base, picks, strict=True)]) for name in MEASURES}
        found[f"best_of_8_{judge}"] = against(chosen, base) | less_untrained(chosen, rows_of)
    counts = {"images": len(base), "restorations_per_image": {"base": 8, "others": 2}}
    write_result("tune", counts | {"preset": PRESET, "runs": found})


def looks_of(folder: Path) -> dict[str, Any]:
    """Return what the monitor saw of a run: looks, those with an alarm, which signals, some values first and last."""
    rows = read_lines(folder / "monitor.jsonl")
    return {
        "looks": len(rows) - 1, "alarmed_looks": sum(row["alarms"] > 0 for row in rows),
        "signals": sorted({why.split()[0] for row in rows for why in row.get("why", ())}),
        **{name: [rows[0][name], rows[-1][name]] for name in WATCHED},
    }  # fmt: skip


def against(means: dict[str, Any], base: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each measure's mean and its difference to the base's mean, with intervals over images."""
    return {
        name: {
            "mean": mean_interval(values),
            "minus_base": paired_test(values, [np.mean(row[name]) for row in base]).difference,
        }
        for name, values in means.items()
    }


def less(means: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Return each measure's difference to another method's, with intervals over images."""
    return {name: paired_test(values, others[name]).difference for name, values in means.items()}


def less_untrained(means: dict[str, Any], rows_of: dict[str, Any]) -> dict[str, Any]:
    """Return what no reward saw, less that of each baseline that sharpens the input or takes temperature 0."""
    return {"minus_untrained": {
        name: {key: paired_test(means[key], [np.mean(row[key]) for row in rows]).difference for key in UNSEEN}
        for name in UNTRAINED if (rows := rows_of[name]) is not None
    }}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one, killed, again = (commands.add_parser(name) for name in ("run", "kill", "evaluate"))
    for each in (one, killed):
        each.add_argument("method", choices=(*BASELINES, *METHODS))
        each.add_argument("--images", type=Path, required=True, help="folder of photographs to learn on")
        each.add_argument("--hr", type=Path, required=True, help="folder of sets of photographs to be judged on")
        each.add_argument("--seed", type=int, default=0)
        each.add_argument("--rounds", type=int)
    killed.set_defaults(do=kill)
    again.add_argument("method", choices=(*BASELINES, *METHODS))
    again.add_argument("--hr", type=Path, required=True, help="folder of sets of photographs to be judged on")
    again.set_defaults(do=evaluate)
    for each in (one, again):
        each.add_argument("--sets", nargs="+", default=SETS)
    one.add_argument("--train-only", action="store_true", help="no evaluation afterwards")
    one.add_argument("--limit", type=int, default=38, help="photographs to learn on, 6 of them for the monitor")
    one.set_defaults(do=run)
    gather = commands.add_parser("table")
    gather.set_defaults(do=table)
    for each in (one, killed, again):
        each.add_argument("--out", type=Path, default=Path("runs/tune"))
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
