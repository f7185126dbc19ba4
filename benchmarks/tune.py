"""Five ways to tune the embedded x4 model on the rating, against best-of-8 of the base, judged by what no rating saw.

python benchmarks/tune.py run METHOD --images DIR --hr DIR [--seed 0] [--rounds N] [--out runs/tune]
python benchmarks/tune.py table [--out runs/tune]
python benchmarks/tune.py fragile METHOD --hr DIR [--out runs/tune]
python benchmarks/tune.py kill METHOD --images DIR --hr DIR [--rounds 8] [--out runs/tune]

METHOD: base, sft, dpo, grpo, nft, reward_gradient; chance: GRPO on a number that means nothing, the control; or
laplacian, niqe: NFT on that reward alone, until its alarm.
`run` trains (resumed where it was), then restores the middle of each evaluation picture with fixed seeds and measures.
`table` gathers all runs: means over seeds of training and pictures, intervals over pictures. The base's value of a
picture is its mean over all its seeds: nano's rating is rough, so equal seeds are no pairs once a weight has changed,
and what two lucky seeds of the base have would be a gain of everything that is compared with them.
`fragile` rates the restorations of finished runs after changes that nobody sees, less those of the base.
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
from common import write_result
from PIL import Image
from tqdm import tqdm

from restoration import Restorer
from restoration.datasets import degraded_folder
from restoration.drawing import pixels_digest
from restoration.metrics import as_reward, measure
from restoration.rng import candidate_seed
from restoration.statistics import mean_interval, paired_test
from restoration.tune import load_examples, tune
from restoration.tune.config import MonitorConfig
from restoration.tune.data import crop
from restoration.tune.nft import NFT
from restoration.tune.recipes import find_recipe
from zoomiqa_reward import MetricReward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.check import find_reward
from zoomiqa_reward.check.ladders import through_jpeg
from zoomiqa_reward.images import load_image, to_pil
from zoomiqa_reward.json_lines import read_lines, write_json

METHODS = ("base", "sft", "dpo", "grpo", "nft", "reward_gradient", "chance")
HACKS = ("laplacian", "niqe")
METRICS = ("fsim", "vif", "haarpsi", "psnr_y", "lr_consistency", "niqe")
PRESET, TRAIN_LR_PX, EVAL_LR_PX = "mild", 28, 49
"""Their restorations are multiples of 28 px, nano's token, so that a rating takes one view; NIQE needs 196 px."""
NUM_SEEDS = {"base": 8}
"""Restorations of each evaluation picture; 4 by tuned models."""
SMALL: dict[str, Any] = {
    "images_per_round": 4, "num_samples": 6, "rounds": 20, "crop_px": TRAIN_LR_PX, "mixed_precision": "bf16",
}  # fmt: skip
BUDGETS: dict[str, dict[str, Any]] = {
    "grpo": SMALL | {"rounds": 30}, "nft": SMALL | {"images_per_round": 16, "rounds": 4}, "sft": SMALL | {"rounds": 14},
    "dpo": SMALL | {"num_samples": 8, "rounds": 80}, "reward_gradient": SMALL | {"num_samples": 2, "rounds": 36},
}  # fmt: skip
"""What differs from the recipes: less, so that a run takes four to fifteen minutes of one core."""
LOOK_EVERY = {"laplacian": 2, "niqe": 2, "nft": 2}
"""Rounds between looks of the monitor; 6 for the others."""
HACK_CHANGES: dict[str, Any] = {
    "rounds": 12, "learning_rate": 5e-4, "lora_rank": 8, "lora_alpha": 16, "epochs": 1, "expected_targets": False,
    "ema_decay": 0.9, "images_per_round": 4, "updates_per_round": 4,
}  # fmt: skip
"""NFT on a reward that can be hacked, in larger steps and from the candidates' own grain, so that the alarm comes in
minutes."""


def recipe_of(method: str, seed: int, rounds: int | None) -> Any:
    """Return the method's recipe; the hackable rewards run with NFT and a monitor that does not watch NIQE."""
    known = "nft" if method in HACKS else "grpo" if method == "chance" else method
    changes = BUDGETS[known] | (HACK_CHANGES if method in HACKS else {}) | {"seed": seed}
    changes |= {} if rounds is None else {"rounds": rounds}
    if method == "niqe":
        changes |= {"crop_px": EVAL_LR_PX, "num_samples": 4}
    recipe = find_recipe(f"nano_{known}", **changes)
    metrics = ("fsim", "vif", "psnr_y") if method in HACKS else ("fsim", "vif", "psnr_y", "niqe")
    # Alarms end the runs on hackable rewards; on the others they are counted, so that all train equally long.
    hack = method in HACKS
    recipe = replace(recipe, algorithm=NFT()) if hack else recipe
    monitor = MonitorConfig(metrics=metrics, every=LOOK_EVERY.get(method, 6), crop_px=EVAL_LR_PX, stop=hack)
    return replace(recipe, name=f"{recipe.name}_{method}", monitor=monitor)


def reward_of(method: str, recipe: Any, iqa: ZoomIQA) -> Any:
    """Return what the method is trained on."""
    if method == "laplacian":
        return find_reward("zoomiqa_reward.check.baselines:laplacian")
    if method == "chance":
        return MetricReward(chance, "chance", True, (0.0, 1.0))
    return as_reward("niqe") if method == "niqe" else recipe.reward(iqa)


def chance(image: Any) -> float:
    """Return a number in [0, 1) that belongs to the picture and says nothing about it."""
    return int(pixels_digest(to_pil(image)), 16) / 16**16


def evaluated(restorer: Restorer, examples: list[Any], iqa: ZoomIQA, count: int) -> list[dict[str, Any]]:
    """Return one row a picture: for each measure the values of its `count` restorations, always of the same seeds."""
    reward, rows = ZoomIQAReward(iqa), []
    for example in tqdm(examples, desc="evaluation"):
        seeds = [candidate_seed(99, k) for k in range(count)]
        pictures = [load_image(to_pil(one.image)) for one in restorer.restore(example.lq, seeds)]
        found = [measure(METRICS, picture, hr=example.hr, lq=example.lq) for picture in pictures]
        row: dict[str, Any] = {name: [one[name].value for one in found] for name in METRICS}
        rows.append(row | {"name": example.name, "rating": reward(pictures).value.tolist()})
    return rows


def run(args: argparse.Namespace) -> None:
    """Train and evaluate one method with one seed."""
    iqa = ZoomIQA.from_pretrained("nano")
    folder = args.out / f"{args.method}-{args.seed}"
    held_out = held_out_pictures(args)
    report: dict[str, Any] = {"method": args.method, "seed": args.seed}
    if args.method == "base":
        restorer = Restorer.from_pretrained("nano")
    else:
        recipe = recipe_of(args.method, args.seed, args.rounds)
        whole = load_examples(degraded_folder(args.images, PRESET, scale=4, seed=0).take(args.limit))
        result = tune(recipe, whole[:-6], reward_of(args.method, recipe, iqa), folder / "run", validation=whole[-6:])
        restorer = result.restorer()
        first = json.loads((folder / "run" / "result.json").read_text())["first_alarm_round"]
        report |= {"rounds": result.rounds, "best_round": result.best_round, "alarms": list(result.alarms),
                   "first_alarm_round": first, "seconds": result.seconds}  # fmt: skip
    if args.train_only:
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = evaluated(restorer, held_out, iqa, NUM_SEEDS.get(args.method, 4))
    write_json(folder / "evaluation.json", report | {"rows": rows})


def held_out_pictures(args: argparse.Namespace) -> list[Any]:
    """Return the middle of each evaluation picture."""
    sets = [degraded_folder(args.hr / name, PRESET, scale=4, seed=1) for name in args.sets]
    return [crop(one, EVAL_LR_PX) for own in sets for one in load_examples(own)]


UNSEEN = {
    "as it is": lambda picture: picture,
    "JPEG 95": lambda picture: through_jpeg(load_image(picture), 95),
    "JPEG 80": lambda picture: through_jpeg(load_image(picture), 80),
    "2 px cut off": lambda picture: picture.crop((2, 2, *picture.size)),
    "0.98 times as large": lambda picture: picture.resize([round(0.98 * side) for side in picture.size], Image.BICUBIC),
}
"""What should leave a rating as it is."""


def fragile(args: argparse.Namespace) -> None:
    """Compare the rating's gain with what is left of it after changes that nobody sees, and take the mean of all."""
    reward, examples = ZoomIQAReward(ZoomIQA.from_pretrained("nano")), held_out_pictures(args)
    runs = {"base": "nano"} | {file.parents[1].name: file.parent / "pipeline"
                               for file in sorted(args.out.glob(f"{args.method}-*/run/result.json"))}  # fmt: skip
    if len(runs) == 1:
        raise ValueError(f"--out {args.out}: no finished run of {args.method}; train one with `run {args.method}`")
    seeds = [candidate_seed(99, k) for k in range(2)]
    rated: dict[str, np.ndarray] = {}
    for name, source in runs.items():
        restorer = Restorer.from_pretrained(source)
        pictures = [[to_pil(one.image) for one in restorer.restore(example.lq, seeds)]
                    for example in tqdm(examples, desc=name)]  # fmt: skip
        changed = [[[load_image(change(one)) for one in own] for own in pictures] for change in UNSEEN.values()]
        rated[name] = np.array([[float(reward(own).value.mean()) for own in row] for row in changed])
    base = rated.pop("base")
    gains = {name: dict(zip(UNSEEN, (own - base).mean(axis=1).tolist(), strict=True)) for name, own in rated.items()}
    everything = paired_test(np.mean(list(rated.values()), axis=(0, 1)), base.mean(axis=0)).difference
    write_result(f"tune_fragile_{args.method}", {
        "method": args.method, "pictures": len(examples), "restorations_a_picture": 2, "rating_minus_base": gains,
        "mean_of_all_minus_base": everything,
    })  # fmt: skip


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
    """Gather `evaluation.json` of all runs."""
    runs = [json.loads(file.read_text()) for file in sorted(args.out.glob("*/evaluation.json"))]
    base = next(one for one in runs if one["method"] == "base")["rows"]
    found: dict[str, Any] = {}
    for method in (*METHODS, *HACKS):
        mine = [one for one in runs if one["method"] == method]
        if mine:
            means = {name: np.mean([[np.mean(row[name]) for row in one["rows"]] for one in mine], axis=0)
                     for name in ("rating", *METRICS)}  # fmt: skip
            known = ("rounds", "best_round", "first_alarm_round", "seconds")
            by_seed = {name: [float(np.mean([np.mean(row[name]) for row in one["rows"]])) for one in mine]
                       for name in ("rating", "fsim", "vif")}  # fmt: skip
            found[method] = against(means, base)
            found[method] |= {"seeds": len(mine), "by_seed": by_seed}
            found[method] |= {key: [one.get(key) for one in mine] for key in known}
            found[method]["monitor"] = [looks_of(args.out / f"{method}-{one['seed']}" / "run") for one in mine]
    picks = [int(np.argmax(row["rating"])) for row in base]
    found["best_of_8"] = against({name: np.array([row[name][k] for row, k in zip(base, picks, strict=True)])
                                  for name in ("rating", *METRICS)}, base)  # fmt: skip
    counts = {"pictures": len(base), "restorations_a_picture": {"base": 8, "tuned": 4}}
    write_result("tune", counts | {"preset": PRESET, "runs": found})


def looks_of(folder: Path) -> dict[str, Any]:
    """Return what the monitor saw of a run: looks, those with an alarm, which signals, some values first and last."""
    if not folder.exists():
        return {}
    rows = read_lines(folder / "monitor.jsonl")
    return {
        "looks": len(rows) - 1, "alarmed_looks": sum(row["alarms"] > 0 for row in rows),
        "signals": sorted({why.split()[0] for row in rows for why in row.get("why", ())}),
        **{name: [rows[0][name], rows[-1][name]] for name in ("reward", "fsim", "vif", "psnr_y")},
    }  # fmt: skip


def against(means: dict[str, Any], base: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each measure's mean and its difference to the base's mean, with intervals over pictures."""
    return {
        name: {
            "mean": mean_interval(values),
            "minus_base": paired_test(values, [np.mean(row[name]) for row in base]).difference,
        }
        for name, values in means.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one, killed, unseen = (commands.add_parser(name) for name in ("run", "kill", "fragile"))
    for each in (one, killed):
        each.add_argument("method", choices=(*METHODS, *HACKS))
        each.add_argument("--images", type=Path, required=True, help="folder of photographs to learn on")
        each.add_argument("--hr", type=Path, required=True, help="folder of sets of photographs to be judged on")
        each.add_argument("--seed", type=int, default=0)
        each.add_argument("--rounds", type=int)
    killed.set_defaults(do=kill)
    unseen.add_argument("method", choices=METHODS)
    unseen.add_argument("--hr", type=Path, required=True, help="folder of sets of photographs to be judged on")
    unseen.set_defaults(do=fragile)
    for each in (one, unseen):
        each.add_argument("--sets", nargs="+", default=["set5", "set14"])
    one.add_argument("--train-only", action="store_true", help="no evaluation afterwards")
    one.add_argument("--limit", type=int, default=38, help="photographs to learn on, 6 of them for the monitor")
    one.set_defaults(do=run)
    gather = commands.add_parser("table")
    gather.set_defaults(do=table)
    for each in (one, gather, killed, unseen):
        each.add_argument("--out", type=Path, default=Path("runs/tune"))
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
