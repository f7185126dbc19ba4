"""Does a rating's mean over unseen copies tell an image's candidates apart better than the rating itself?

python benchmarks/robust.py --hr DIR [--sets set5 set14] [--candidates 8] [--copies 4]

DIR holds folders of photographs. Of the middle of each, candidates of varied sharpness are restored; within an image's
candidates the rank correlation of both rewards with FSIM is taken, with intervals over images.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from scipy.stats import spearmanr
from tqdm import tqdm

from restoration import Restorer
from restoration.evaluation.datasets import degraded_folder
from restoration.evaluation.statistics import mean_interval, paired_test
from restoration.metrics import fsim
from restoration.restorer.rng import candidate_seed
from restoration.tuning import load_examples
from restoration.tuning.data import crop
from zoomiqa_reward import RobustReward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image, to_pil

PRESET, LR_PX, VARY_SHARPNESS = "mild", 28, 0.75
"""Those of the tuning runs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hr", type=Path, required=True, help="folder of sets of photographs")
    parser.add_argument("--sets", nargs="+", default=["set5", "set14"])
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--copies", type=int, default=4)
    args = parser.parse_args()
    plain = ZoomIQAReward(ZoomIQA.from_pretrained("nano"))
    rewards: dict[str, Any] = {"plain": plain, "robust": RobustReward(plain, args.copies)}
    restorer = Restorer.from_pretrained("nano", vary_sharpness=VARY_SHARPNESS)
    sets = [degraded_folder(args.hr / name, PRESET, scale=4, seed=1) for name in args.sets]
    examples = [crop(one, LR_PX) for own in sets for one in load_examples(own)]
    found: dict[str, list[float]] = {name: [] for name in rewards}
    for example in tqdm(examples, desc="images"):
        seeds = [candidate_seed(7, k) for k in range(args.candidates)]
        images = [load_image(to_pil(one.image)) for one in restorer.restore(example.lq, seeds)]
        truth = [fsim(image, example.hr) for image in images]
        for name, reward in rewards.items():
            found[name].append(float(spearmanr(reward(images).value.tolist(), truth).statistic))
    write_result("robust", {
        "images": len(examples), "candidates": args.candidates, "copies": args.copies,
        "srcc_with_fsim_within_an_image": {name: mean_interval(np.array(own)) for name, own in found.items()},
        "robust_minus_plain": paired_test(found["robust"], found["plain"]).difference,
    })  # fmt: skip


if __name__ == "__main__":
    main()
