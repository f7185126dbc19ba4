"""Tune the embedded x4 restorer on the rating for two rounds, watched by the monitor. A CPU is enough.

    python examples/tune_restorer.py [photo.jpg]

Two rounds of a few crops of one photograph change little: this shows what a run is made of and what it leaves. For a
real one give `zoomiqa tune nano_nft` a folder of photographs, or a diffusers pipeline in place of the embedded one.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from restoration import degrade_for_demo, tune
from restoration.demo import bundled_photograph
from restoration.tuning import Example, MonitorConfig, load_examples
from restoration.tuning.recipes import find_recipe
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import load_image
from zoomiqa_reward.runs.json_lines import read_lines

SIDE_PX = 84
"""Of a crop; its LR image has 21, and a rating of its restoration takes one view."""
ROWS = 3


def crops(photograph: Tensor) -> list[Example]:
    """Return nine crops of the photograph's middle, no pixel in two of them, each with a degraded copy."""
    height, width = photograph.shape[1:]
    if min(height, width) < ROWS * SIDE_PX:
        raise ValueError(f"a photograph of {width} x {height} px: both sides must be {ROWS * SIDE_PX} px or more")
    top, left = ((side - ROWS * SIDE_PX) // 2 for side in (height, width))
    middle = photograph[:, top : top + ROWS * SIDE_PX, left : left + ROWS * SIDE_PX]
    clean = [part for row in middle.split(SIDE_PX, dim=1) for part in row.split(SIDE_PX, dim=2)]
    return load_examples([(degrade_for_demo(image, scale=4), image) for image in clean])


def main(image: str | Path, model: str = "nano", out: Path | None = None) -> list[int]:
    """Print what the monitor saw of the base, as round 0, and after each round; return the rounds."""
    examples = crops(load_image(image))
    # The recipe's ground truths help in hundreds of updates, and hurt in these twelve.
    short = {"rounds": 2, "images_per_round": 3, "num_samples": 4, "updates_per_round": 3, "epochs": 2}
    recipe = find_recipe("nano_nft", truth_weight=0, **short)
    recipe = replace(recipe, monitor=MonitorConfig(every=1, metrics=("fsim", "vif", "psnr_y")))
    reward = recipe.reward(ZoomIQA.from_pretrained(model))
    with tempfile.TemporaryDirectory() as other:
        result = tune(recipe, examples[:5], reward, out or other, validation=examples[5:])
        looks = read_lines(result.folder / "monitor.jsonl")
    for look in looks:
        seen = ", ".join(f"{name} {look[name]:.4f}" for name in ("reward", "fsim", "vif", "lr_consistency"))
        ended = ", the result" if look["round"] == result.best_round else ""
        print(f"round {look['round']}: {seen}{', ALARM' if look['alarms'] else ''}{ended}")
    return [look["round"] for look in looks]


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()], out=Path("tuned"))
    print("look at tuned/strip.png and tuned/reward_vs_held_out.png; tuned/pipeline is a restorer")
