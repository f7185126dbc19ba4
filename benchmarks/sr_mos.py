"""A reward against human opinion of super-resolved images: the four measures of a ranker, intervals over scenes.

python benchmarks/sr_mos.py --data DIR [--dtype bfloat16 --name sr_mos_bfloat16]

DIR holds the images and mos.csv: image, scene, mos (1 to 5).
"""

import argparse
import csv
import itertools
from pathlib import Path

import numpy as np
from common import srcc, write_result
from tqdm import tqdm

from restoration.metrics import niqe
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import load_image


def measures(scores, mos, scenes):
    """Return the measures; each but the first is a mean over scenes."""
    within, pairs, regret, pools = [], [], [], []
    for scene in np.unique(scenes):
        s, m = scores[scenes == scene], mos[scenes == scene]
        within.append(srcc(s, m))
        first, second = map(np.array, zip(*itertools.combinations(range(len(m)), 2), strict=True))
        apart = np.abs(m[first] - m[second]) >= 0.5
        right = np.sign(s[first] - s[second]) == np.sign(m[first] - m[second])
        pairs.append(right[apart].mean())
        regret.append(m.max() - m[s.argmax()])
        four = np.array(list(itertools.combinations(range(len(m)), 4)))
        chosen = four[np.arange(len(four)), s[four].argmax(1)]
        pools.append((m[four].max(1) - m[chosen]).mean())
    return {
        "srcc_overall": srcc(scores, mos),
        "srcc_within_scene": float(np.mean(within)),
        "pair_accuracy": float(np.mean(pairs)),
        "regret_scene": float(np.mean(regret)),
        "regret_pools_of_4": float(np.mean(pools)),
        "within_by_scene": [round(float(v), 3) for v in within],
    }


def with_intervals(scores, mos, scenes, draws=500):
    """Return the measures with 95 % intervals over resampled scenes."""
    result, rng, names = measures(scores, mos, scenes), np.random.default_rng(0), np.unique(scenes)
    drawn = []
    for _ in range(draws):
        chosen = rng.choice(names, len(names))
        index = [np.flatnonzero(scenes == name) for name in chosen]
        # A scene drawn twice counts as two scenes.
        label = np.concatenate([np.full(len(k), j) for j, k in enumerate(index)])
        rows = np.concatenate(index)
        drawn.append(measures(scores[rows], mos[rows], label))
    for key in [k for k, v in result.items() if isinstance(v, float)]:
        result[f"{key}_95"] = [float(v) for v in np.percentile([d[key] for d in drawn], [2.5, 97.5])]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--dtype", default=None, help="of the weights (default: the model's own)")
    parser.add_argument("--name", default="sr_mos")
    parser.add_argument("--reason", action="store_true", help="also the two-round protocol")
    args = parser.parse_args()
    with open(args.data / "mos.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images = [load_image(args.data / row["image"]) for row in rows]
    mos, scenes = np.array([float(r["mos"]) for r in rows]), np.array([r["scene"] for r in rows])
    iqa = ZoomIQA.from_pretrained(args.model, dtype=args.dtype)
    scores = {"niqe": -np.array([niqe(i) for i in tqdm(images, desc="NIQE")])}
    scores["direct"] = np.array([float(iqa.rate([i], strict=True).mean[0]) for i in tqdm(images, desc="direct")])
    if args.reason:
        assessed = [iqa.assess([i])[0] for i in tqdm(images, desc="reason")]
        readable = [a.valid for a in assessed]
        scores["reason"] = np.array([a.rating if a.valid else -np.inf for a in assessed])
        if not all(readable):
            print(f"{len(readable) - sum(readable)} unreadable answers: reason left out")
            del scores["reason"]
    result = {"images": len(images), "scenes": len(np.unique(scenes)), "model": iqa.name}
    result["random_regret_scene"] = float(
        np.mean([mos[scenes == s].max() - mos[scenes == s].mean() for s in np.unique(scenes)])
    )
    write_result(args.name, result | {name: with_intervals(s, mos, scenes) for name, s in scores.items()})


if __name__ == "__main__":
    main()
