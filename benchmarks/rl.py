"""What RL adds to SFT, and KL-Coverage and Progressive Re-sampling to RL: real runs that start from one policy.

python benchmarks/rl.py data --photos DIR [--out runs/rl]
python benchmarks/rl.py start [--policy nano] [--out runs/rl]
python benchmarks/rl.py run ARM [--seed 0] [--steps N] [--out runs/rl]
python benchmarks/rl.py people --data DIR [--out runs/rl]
python benchmarks/rl.py table [--out runs/rl]

`data` takes training images so that their scores are spread like KonIQ-10k's, few of them bad; held-out ones are of
photographs that nothing was trained on. Images without content are left out. ARM is one of `ARMS`: `sft` goes on with
SFT on the same images for as many optimizer steps, the others do RL. With one seed, all arms of RL but the last see
the same images. `run` goes on where it was stopped. `people` rates images that people scored (`mos.csv`: image, scene,
mos) by `reason` of every policy that has none of these ratings yet.
"""

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from common import ROOT, srcc, write_result
from numpy.typing import NDArray
from scipy import stats
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
from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.runs.bootstrap import percentile_interval
from zoomiqa_reward.runs.json_lines import write_json

Ratings = NDArray[np.float64]
KONIQ = (118, 656, 1607, 3440, 1237)
"""Images of KonIQ-10k's official training split in five equal levels of the score."""
NATURAL = ResamplingConfig(start=0.0, end=0.0)
ARMS: dict[str, tuple[KlConfig, ResamplingConfig] | None] = {
    "sft": None,
    "no_kl": (KlConfig(kind="none"), ResamplingConfig()),
    "kl_all_tokens": (KlConfig(kind="all", beta=0.04), ResamplingConfig()),
    "kl_cov": (KlConfig(quadrant="all", reference="old"), ResamplingConfig()),
    "kl_coverage": (KlConfig(), ResamplingConfig()),
    "kl_coverage_strong": (KlConfig(share=1.0, beta=10.0), ResamplingConfig()),
    "kl_coverage_natural": (KlConfig(), NATURAL),
}
"""`kl_cov` is plain KL-Cov: no quadrant, held to the policy that sampled. `kl_coverage_strong` holds every likely and
good token. The pull of k3 on a token is beta (1 - exp(reference - current)); a token of chance 0.85 can rise by 0.16,
so only a beta of about 10 outweighs an advantage of 1 there. The last arm has no re-sampling."""
CURVES = ("entropy", "rating_std", "distinct_rationales", "reward_total", "reward_std", "zooms", "unreadable")
MODES = ("reason", "direct")
ENDS = 5
"""Steps that a curve's first and last value are the mean of."""
BATCH = 32
UPDATES = 2
"""Optimizer steps on one generation batch."""
RESAMPLES = 2000


def make_data(args: argparse.Namespace) -> None:
    """Write images, `labels.csv` and `talks.jsonl` of a training and a held-out part."""
    scale = LabelScale.load(ROOT / "zoomiqa_reward" / "checkpoints" / "nano" / "label_scale.json")
    rng = np.random.default_rng(args.seed)
    training, held_out = hold_out(list_photographs(args.photos))
    for part, paths, count in (("train", training, args.draws), ("test", held_out, args.held_out)):
        folder = args.out / "samples" / part
        write_samples(folder, paths, count, seed=args.seed, large=False)
        samples = [one for one in tqdm(read_samples(folder), desc=part) if shows_something(one.image)]
        mos = scale.pseudo_mos(np.stack([one.scores for one in samples]).astype(np.float64))
        if part == "train":
            levels, shares = level_of(mos.tolist(), 5), np.array(KONIQ) / sum(KONIQ)
            size = int(min(np.bincount(levels, minlength=5) / shares, default=0))
            wanted = np.maximum(1, np.round(shares * size).astype(int))
            kept = np.concatenate([rng.permutation(np.flatnonzero(levels == k))[:n] for k, n in enumerate(wanted)])
            samples = [samples[k] for k in np.sort(kept)]
        talks = synthetic_conversations(samples, scale)
        write_conversations(args.out / part / "talks.jsonl", talks, overwrite=True)
        with open(args.out / part / "labels.csv", "w", newline="", encoding="utf-8") as table:
            rows = csv.writer(table)
            rows.writerow(["image", "mos"])
            rows.writerows([f"images/{k:06d}.png", round(one.rating, 4)] for k, one in enumerate(talks))
        print(part, np.bincount(level_of([one.rating for one in talks], 5), minlength=5).tolist())


def shows_something(image: NDArray[np.uint8]) -> bool:
    """Return whether a HWC image is one that inference asks about."""
    return contentless(torch.from_numpy(image).permute(2, 0, 1) / 255) is None


def read_labels(out: Path, part: str) -> tuple[list[Path], Ratings]:
    """Return a part's image files and their pseudo-MOS."""
    with open(out / part / "labels.csv", newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    return [out / part / row["image"] for row in rows], np.array([float(row["mos"]) for row in rows])


def load_judge(policy: str) -> ZoomIQA:
    """Return a policy that is asked once: a second, sampled answer would hide what RL made unreadable."""
    protocol = ZoomIQA.from_pretrained(policy).protocol
    return ZoomIQA.from_pretrained(policy, protocol=replace(protocol, retries=0))


def evaluate(policy: str, out: Path) -> dict[str, list[float | None]]:
    """Return a policy's ratings of the held-out images, by both ways to ask; None where its answer is unreadable."""
    iqa, (images, _) = load_judge(policy), read_labels(out, "test")
    found = {}
    for mode in MODES:
        parts = [iqa.rate(images[k : k + BATCH], mode=mode).mean.tolist()
                 for k in tqdm(range(0, len(images), BATCH), desc=mode)]  # fmt: skip
        found[mode] = [rating if np.isfinite(rating) else None for part in parts for rating in part]
    return found


def start(args: argparse.Namespace) -> None:
    """Note the policy that all arms start from, and rate the held-out images by it."""
    write_json(args.out / "start.json", {"policy": args.policy, **evaluate(args.policy, args.out)}, overwrite=True)


def run_arm(args: argparse.Namespace) -> None:
    """Train one arm with one seed, and rate the held-out images by what it became."""
    folder, train = args.out / f"{args.arm}-{args.seed}", args.out / "train"
    model = ModelConfig(name=json.loads((args.out / "start.json").read_text(encoding="utf-8"))["policy"])
    arm = ARMS[args.arm]
    if arm is None:
        policy = sft.train(replace(
            nano().sft, model=model, out=folder, steps=UPDATES * args.steps, seed=args.seed, tensorboard=False,
            learning_rate=args.learning_rate, data=(ConversationSource(path=train / "talks.jsonl"),),
        ))  # fmt: skip
    else:
        kl, resampling = arm
        policy = grpo.train(replace(
            nano().grpo, model=model, out=folder, seed=args.seed, kl=kl, resampling=resampling, steps=args.steps,
            data=(DatasetSource(family="csv", root=train / "labels.csv"),), part="all", updates=UPDATES,
            num_samples=args.samples, max_new_tokens=200, learning_rate=args.learning_rate,
            micro_rows=args.samples, save_every=5, page_every=args.steps, tensorboard=False,
        ))  # fmt: skip
    write_json(folder / "evaluation.json", evaluate(str(policy), args.out), overwrite=True)


def rate_by_people(args: argparse.Namespace) -> None:
    """Rate super-resolved images with people's scores by `reason` of the start and of every finished run."""
    with open(args.data / "mos.csv", newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    start = json.loads((args.out / "start.json").read_text(encoding="utf-8"))["policy"]
    ends = [one for arm in args.arms for one in sorted(args.out.glob(f"{arm}-[0-9]*/evaluation.json"))]
    policies = {args.out / "start-people.json": start} | {
        one.with_name("people.json"): str(one.with_name("policy")) for one in ends
    }
    for file, policy in policies.items():
        if file.exists():
            continue
        iqa = load_judge(policy)
        images = tqdm([args.data / row["image"] for row in rows], desc=f"{file.parent.name}, people")
        ratings = [rating for image in images for rating in iqa.rate([image], mode="reason").mean.tolist()]
        write_json(file, {
            "reason": [rating if np.isfinite(rating) else None for rating in ratings],
            "mos": [float(row["mos"]) for row in rows], "scene": [row["scene"] for row in rows],
        })  # fmt: skip


def within_scene(file: Path) -> dict[str, float | None] | None:
    """Return the mean SRCC within a scene of what `people` wrote, and the share of readable answers; None without.

    A scene with fewer than 3 readable images, or with one rating for all, has no SRCC and is left out; the mean is None
    where no scene is left.
    """
    if not file.exists():
        return None
    rated = json.loads(file.read_text(encoding="utf-8"))
    ratings, mos, scenes = (np.array(rated[key], dtype=kind)
                            for key, kind in (("reason", float), ("mos", float), ("scene", str)))  # fmt: skip
    readable = np.isfinite(ratings)
    chosen = [(scenes == one) & readable for one in np.unique(scenes)]
    each = [srcc(ratings[some], mos[some]) for some in chosen if some.sum() >= 3 and np.ptp(ratings[some]) > 0]
    return {"within_scene": float(np.mean(each)) if each else None, "readable": float(readable.mean())}


def errors(ratings: Ratings, mos: Ratings) -> dict[str, float]:
    """Return SRCC, and mean absolute errors: of the rare levels, of all levels alike, by KonIQ's shares of them.

    An unreadable image is left out; `readable` is the share of the others.
    """
    levels, readable = level_of(mos.tolist(), 5), np.isfinite(ratings)
    found = np.abs(ratings - mos)
    by_level = np.array([found[(levels == k) & readable].mean() for k in range(5)])
    return {
        "srcc": srcc(ratings[readable], mos[readable]), "mae_rare": float(by_level[:2].mean()),
        "mae_balanced": float(by_level.mean()), "mae_natural": float(np.average(by_level, weights=KONIQ)),
        "readable": float(readable.mean()),
    }  # fmt: skip


def gains(runs: Ratings, others: Ratings, mos: Ratings) -> dict[str, list[float]]:
    """Return each figure's mean over the seeds `runs` less that over `others`, with a 95 % interval.

    Both are (seeds, images). The interval is over seeds and images: each resample draws the seeds of both sides by
    themselves, and the same images for all.
    """
    rng, levels = np.random.default_rng(0), level_of(mos.tolist(), 5)
    members = [np.flatnonzero(levels == k) for k in range(5)]

    def mean_errors(sides: Ratings, images: NDArray[np.int64]) -> dict[str, float]:
        each = [errors(one[images], mos[images]) for one in sides]
        return {key: float(np.mean([one[key] for one in each])) for key in each[0]}

    def less(left: Ratings, right: Ratings, images: NDArray[np.int64]) -> dict[str, float]:
        a, b = mean_errors(left, images), mean_errors(right, images)
        return {key: a[key] - b[key] for key in a}

    found = less(runs, others, np.arange(len(mos)))
    drawn = []
    for _ in range(RESAMPLES):
        images = np.concatenate([rng.choice(some, len(some)) for some in members])  # so that no level is ever empty
        sides = [side[rng.integers(0, len(side), len(side))] for side in (runs, others)]
        drawn.append(less(sides[0], sides[1], images))
    return {key: [value, *percentile_interval([one[key] for one in drawn])] for key, value in found.items()}


def mean_interval(values: list[float]) -> list[float]:
    """Return the mean of independent values and its 95 % interval by Student's t; two values at least."""
    mean, half = float(np.mean(values)), float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    return [mean, mean - half, mean + half]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def table(args: argparse.Namespace) -> None:
    """Gather all finished runs, compare them with the start, with SFT and with KL-Coverage, and draw their curves."""
    began = json.loads((args.out / "start.json").read_text(encoding="utf-8"))
    mos = read_labels(args.out, "test")[1]
    ratings = {"start": {mode: np.array([began[mode]], dtype=float) for mode in MODES}}
    logs: dict[str, list[list[dict[str, Any]]]] = {}
    found: dict[str, Any] = {"policy": began["policy"], "images": len(mos)}
    for arm in ARMS:
        folders = [one.parent for one in sorted(args.out.glob(f"{arm}-[0-9]*/evaluation.json"))]
        if not folders:
            continue
        ends = [json.loads((one / "evaluation.json").read_text(encoding="utf-8")) for one in folders]
        ratings[arm] = {mode: np.array([end[mode] for end in ends], dtype=float) for mode in MODES}
        found[arm] = {"seeds": [int(one.name.rsplit("-", 1)[1]) for one in folders]}
        if ARMS[arm] is not None:
            logs[arm] = [read_log(one) for one in folders]
            found[arm] |= curves(logs[arm]) | settings(folders[0])
    for arm, sides in ratings.items():
        each = {mode: [errors(one, mos) for one in runs] for mode, runs in sides.items()}
        found.setdefault(arm, {}).update(
            {mode: {key: [one[key] for one in ends] for key in ends[0]} for mode, ends in each.items()}
        )
        for other in ("start", "sft", "kl_coverage"):
            if other != arm != "start" and other in ratings:
                found[arm][f"minus_{other}"] = {mode: gains(sides[mode], ratings[other][mode], mos) for mode in MODES}
    for arm, one in found.items():
        if arm in ratings:
            files = [args.out / f"{arm}-{seed}" / "people.json" for seed in one.get("seeds", [])]
            rated = [within_scene(file) for file in files or [args.out / "start-people.json"]]
            one["people"] = {key: [part[key] for part in rated if part] for key in ("within_scene", "readable")}
    write_result("rl", found)
    plot(logs, ROOT / "docs" / "images" / "rl_curves.png")


def settings(folder: Path) -> dict[str, Any]:
    """Return what was set for a run of RL, from its own note of it."""
    config = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
    return {key: config[key] for key in ("learning_rate", "images_per_step", "num_samples", "updates")}


def curves(runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return what an arm's curves were in the first and last steps, by seed, how they changed, and whom the KL held."""
    ends = {name: [[float(np.mean([row[name] for row in part])) for part in (log[:ENDS], log[-ENDS:])] for log in runs]
            for name in CURVES}  # fmt: skip
    quadrants = ("likely_good", "likely_bad", "unlikely_good", "unlikely_bad")
    return {
        "steps": [len(log) for log in runs],
        "curves": ends,
        "changes": {name: mean_interval([last - first for first, last in pairs]) for name, pairs in ends.items()}
        if len(runs) > 1 else {},
        "held_tokens": {name: float(sum(row[f"held_{name}"] for log in runs for row in log)) for name in quadrants},
    }  # fmt: skip


def plot(logs: dict[str, list[list[dict[str, Any]]]], file: Path) -> None:
    """Draw entropy, spread of ratings, distinct rationales and reward over the steps; thick: the mean over seeds."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {"entropy": "token entropy (nats)", "rating_std": "spread of ratings in a group",
             "distinct_rationales": "distinct rationales (share)", "reward_total": "reward (0 to 3)"}  # fmt: skip
    figure, places = plt.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
    for axis, (name, title) in zip(places.flat, shown.items(), strict=True):
        for k, (arm, runs) in enumerate(logs.items()):
            values = np.array([[row[name] for row in log] for log in runs], dtype=float)
            smooth = np.array([np.convolve(one, np.ones(ENDS) / ENDS, mode="valid") for one in values])
            steps = np.arange(smooth.shape[1]) + ENDS / 2
            axis.plot(steps, smooth.T, color=f"C{k}", alpha=0.25, linewidth=0.8)
            axis.plot(steps, smooth.mean(axis=0), color=f"C{k}", linewidth=2, label=arm)
        axis.set_title(title)
        axis.set_xlabel("step")
    places.flat[0].legend(fontsize=8)
    figure.savefig(file, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    data, first = commands.add_parser("data"), commands.add_parser("start")
    arm, gather = commands.add_parser("run"), commands.add_parser("table")
    people = commands.add_parser("people")
    data.set_defaults(do=make_data)
    first.set_defaults(do=start)
    arm.set_defaults(do=run_arm)
    gather.set_defaults(do=table)
    people.set_defaults(do=rate_by_people)
    people.add_argument("--data", type=Path, required=True, help="folder of mos.csv and the images")
    people.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    data.add_argument("--photos", type=Path, required=True, help="folder of clean photographs")
    data.add_argument("--draws", type=int, default=3072, help="images drawn before they are chosen by their score")
    data.add_argument("--held-out", type=int, default=256, help="held-out images")
    first.add_argument("--policy", default="nano", help="a checkpoint's folder or embedded name")
    arm.add_argument("arm", choices=ARMS)
    arm.add_argument("--steps", type=int, default=50)
    arm.add_argument("--samples", type=int, default=6, help="trajectories of one image")
    arm.add_argument("--learning-rate", type=float, default=1e-4)
    for each in (data, arm):
        each.add_argument("--seed", type=int, default=0)
    for each in (data, first, arm, people, gather):
        each.add_argument("--out", type=Path, default=Path("runs/rl"))
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
