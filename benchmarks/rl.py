"""What RL adds to SFT, what KL-Coverage and Progressive Re-sampling add to RL: real runs of a small sibling of nano.

python -m train_iqa.nano --photos DIR --out runs/small --size small --seconds 3600
python benchmarks/rl.py data --nano runs/small --photos DIR [--out runs/rl]
python benchmarks/rl.py sft --nano runs/small [--out runs/rl]
python benchmarks/rl.py run ARM [--seed 0] [--steps N] [--out runs/rl]
python benchmarks/rl.py table [--out runs/rl]

`data` takes training images so that their scores are spread like KonIQ-10k's, few of them bad; held-out ones are of
photographs that nothing was trained on. ARM is one of `ARMS`; all start from the same SFT policy and see the same
images. `sft` and `run` go on where they were stopped.
"""

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from common import srcc, write_result
from numpy.typing import NDArray
from tqdm import tqdm

from train_iqa import grpo, sft
from train_iqa.data import DatasetSource
from train_iqa.nano.labels import LabelScale
from train_iqa.nano.synthetic import hold_out, list_photographs, read_samples, write_samples
from train_iqa.rl.coverage import KlConfig
from train_iqa.rl.resampling import ResamplingConfig, level_of
from train_iqa.rows.conversations import synthetic_conversations, write_conversations
from train_iqa.sft import ConversationSource
from train_iqa.training.learner import ModelConfig
from train_iqa.training.recipes import nano
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.runs.json_lines import write_json

KONIQ = (118, 656, 1607, 3440, 1237)
"""Images of KonIQ-10k's official training split in five equal levels of the score."""
NATURAL = ResamplingConfig(start=0.0, end=0.0)
ARMS: dict[str, tuple[KlConfig, ResamplingConfig]] = {
    "no_kl": (KlConfig(kind="none"), ResamplingConfig()),
    "kl_all_tokens": (KlConfig(kind="all", beta=0.04), ResamplingConfig()),
    "kl_cov": (KlConfig(quadrant="all", reference="old"), ResamplingConfig()),
    "kl_coverage": (KlConfig(), ResamplingConfig()),
    "kl_coverage_natural": (KlConfig(), NATURAL),
}
"""`kl_cov` is plain KL-Cov: no quadrant, held to the policy that sampled; the last one has no re-sampling."""
CURVES = ("entropy", "rating_std", "distinct_rationales", "reward_total", "reward_std", "zooms", "unreadable")
ENDS = 5
"""Steps that a curve's first and last value are the mean of."""
BATCH = 32


def make_data(args: argparse.Namespace) -> None:
    """Write images, `labels.csv` and `talks.jsonl` of a training and a held-out part."""
    scale, rng = LabelScale.load(args.nano / "label_scale.json"), np.random.default_rng(args.seed)
    training, held_out = hold_out(list_photographs(args.photos))
    for part, paths, count in (("train", training, args.draws), ("test", held_out, args.draws // 10)):
        folder = args.out / "samples" / part
        write_samples(folder, paths, count, seed=args.seed, large=False)
        samples = list(tqdm(read_samples(folder), desc=part))
        mos = scale.pseudo_mos(np.stack([one.scores for one in samples]).astype(np.float64))
        if part == "train":
            levels, shares = level_of(mos.tolist(), 5), np.array(KONIQ) / sum(KONIQ)
            size = int(min(np.bincount(levels, minlength=5) / shares, default=0))
            size = min(size, args.limit)
            wanted = np.maximum(1, np.round(shares * size).astype(int))
            kept = np.concatenate([rng.permutation(np.flatnonzero(levels == k))[:n] for k, n in enumerate(wanted)])
            samples = [samples[k] for k in np.sort(kept)]
        talks = synthetic_conversations(samples, scale)
        file = args.out / part / "talks.jsonl"
        write_conversations(file, talks, overwrite=True)
        with open(args.out / part / "labels.csv", "w", newline="", encoding="utf-8") as table:
            rows = csv.writer(table)
            rows.writerow(["image", "mos"])
            rows.writerows([f"images/{k:06d}.png", round(one.rating, 4)] for k, one in enumerate(talks))
        print(part, np.bincount(level_of([one.rating for one in talks], 5), minlength=5).tolist())


def errors(ratings: NDArray[np.float64], mos: NDArray[np.float64]) -> dict[str, Any]:
    """Return SRCC and mean absolute errors: by level, of the mean level, and with KonIQ's shares of the levels."""
    levels, found = level_of(mos.tolist(), 5), np.abs(ratings - mos)
    by_level = [float(found[levels == k].mean()) for k in range(5)]
    return {
        "srcc": srcc(ratings, mos), "mae_by_level": by_level, "mae_balanced": float(np.mean(by_level)),
        "mae_rare": float(np.mean(by_level[:2])), "mae_natural": float(np.average(by_level, weights=KONIQ)),
        "rating_spread": float(ratings.std()),
    }  # fmt: skip


def evaluate(policy: Path, out: Path, limit: int | None) -> dict[str, Any]:
    """Return what a policy does on the held-out images, by both ways to ask."""
    iqa = ZoomIQA.from_pretrained(str(policy))
    with open(out / "test" / "labels.csv", newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))[:limit]
    images, mos = [out / "test" / row["image"] for row in rows], np.array([float(row["mos"]) for row in rows])
    found: dict[str, Any] = {"images": len(images)}
    for mode in ("direct", "reason"):
        parts = [iqa.rate(images[k : k + BATCH], mode=mode).mean.numpy()
                 for k in tqdm(range(0, len(images), BATCH), desc=mode)]  # fmt: skip
        ratings = np.concatenate(parts).astype(np.float64)
        readable = np.isfinite(ratings)
        found[mode] = errors(ratings[readable], mos[readable]) | {"readable": float(readable.mean())}
    return found


def run_sft(args: argparse.Namespace) -> None:
    """Fine-tune the sibling on conversations about the training images, and evaluate it."""
    recipe = nano().sft
    talks = ConversationSource(path=args.out / "train" / "talks.jsonl")
    policy = sft.train(replace(
        recipe, model=ModelConfig(name=str(args.nano / "checkpoint")), out=args.out / "sft", steps=args.steps,
        learning_rate=args.learning_rate, seed=args.seed, data=(talks,), tensorboard=False,
    ))  # fmt: skip
    write_json(args.out / "sft" / "evaluation.json", evaluate(policy, args.out, args.limit), overwrite=True)


def run_arm(args: argparse.Namespace) -> None:
    """Do one arm's RL with one seed, and evaluate it."""
    kl, resampling = ARMS[args.arm]
    folder = args.out / f"{args.arm}-{args.seed}"
    policy = grpo.train(replace(
        nano().grpo, model=ModelConfig(name=str(args.out / "sft" / "policy")), out=folder, seed=args.seed,
        data=(DatasetSource(family="csv", root=args.out / "train" / "labels.csv"),), part="all", kl=kl,
        resampling=resampling, steps=args.steps, updates=2, num_samples=6,
        max_new_tokens=200, learning_rate=args.learning_rate,
        micro_rows=24, save_every=5, page_every=args.steps, tensorboard=False,
    ))  # fmt: skip
    write_json(folder / "evaluation.json", evaluate(policy, args.out, args.limit), overwrite=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def table(args: argparse.Namespace) -> None:
    """Gather all finished runs and draw their curves."""
    base = json.loads((args.out / "sft" / "evaluation.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {"images": base["images"], "sft": base}
    logs: dict[str, list[list[dict[str, Any]]]] = {}
    for arm in ARMS:
        folders = [one.parent for one in sorted(args.out.glob(f"{arm}-[0-9]*/evaluation.json"))]
        if not folders:
            continue
        ends = [json.loads((one / "evaluation.json").read_text(encoding="utf-8")) for one in folders]
        logs[arm] = [read_log(one) for one in folders]
        curves = {name: {where: [float(np.mean([row[name] for row in part])) for part in parts]
                         for where, parts in (("first", [log[:ENDS] for log in logs[arm]]),
                                              ("last", [log[-ENDS:] for log in logs[arm]]))}
                  for name in CURVES}  # fmt: skip
        quadrants = ("likely_good", "likely_bad", "unlikely_good", "unlikely_bad")
        held = {name: float(np.sum([[row[f"held_{name}"] for row in log] for log in logs[arm]])) for name in quadrants}
        found[arm] = {
            "seeds": [int(one.name.rsplit("-", 1)[1]) for one in folders], "steps": [len(log) for log in logs[arm]],
            "curves": curves, "held_tokens": held,
            **{mode: {key: [end[mode][key] for end in ends] for key in ends[0][mode]} for mode in ("direct", "reason")},
        }  # fmt: skip
    write_result("rl", found)
    plot(logs, Path(__file__).parents[1] / "docs" / "images" / "rl_curves.png")


def plot(logs: dict[str, list[list[dict[str, Any]]]], file: Path) -> None:
    """Draw entropy, spread of ratings, distinct rationales and reward over the steps; a line per seed."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {"entropy": "token entropy (nats)", "rating_std": "spread of ratings in a group",
             "distinct_rationales": "distinct rationales (share)", "reward_total": "reward (0 to 3)"}  # fmt: skip
    figure, places = plt.subplots(2, 2, figsize=(10, 6.5), constrained_layout=True)
    for axis, (name, title) in zip(places.flat, shown.items(), strict=True):
        for k, (arm, runs) in enumerate(logs.items()):
            for number, log in enumerate(runs):
                values = np.array([row[name] for row in log], dtype=float)
                smooth = np.convolve(values, np.ones(ENDS) / ENDS, mode="valid")
                axis.plot(np.arange(len(smooth)) + ENDS / 2, smooth, color=f"C{k}", alpha=0.9,
                          label=arm if number == 0 else None)  # fmt: skip
        axis.set_title(title)
        axis.set_xlabel("step")
    places.flat[0].legend(fontsize=8)
    figure.savefig(file, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    data, tuned = commands.add_parser("data"), commands.add_parser("sft")
    arm, gather = commands.add_parser("run"), commands.add_parser("table")
    data.set_defaults(do=make_data)
    tuned.set_defaults(do=run_sft)
    arm.set_defaults(do=run_arm)
    gather.set_defaults(do=table)
    for each in (data, tuned):
        each.add_argument("--nano", type=Path, required=True, help="run folder of python -m train_iqa.nano")
    data.add_argument("--photos", type=Path, required=True, help="folder of clean photographs")
    data.add_argument("--draws", type=int, default=5120, help="images drawn before they are chosen by their score")
    data.add_argument("--limit", type=int, default=2000, help="training images, at most")
    tuned.add_argument("--steps", type=int, default=250)
    tuned.add_argument("--learning-rate", type=float, default=1e-3)
    arm.add_argument("arm", choices=ARMS)
    arm.add_argument("--steps", type=int, default=24)
    arm.add_argument("--learning-rate", type=float, default=2e-4)
    for each in (tuned, arm):
        each.add_argument("--limit", type=int, default=256, help="held-out images, at most")
    for each in (data, tuned, arm, gather):
        each.add_argument("--seed", type=int, default=0)
        each.add_argument("--out", type=Path, default=Path("runs/rl"))
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
