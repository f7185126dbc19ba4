"""Degrade a photograph three ways, rate the results and rank them. A CPU is enough.

python examples/score_and_rank.py [photo.jpg]
"""

import sys
from pathlib import Path

from restoration import degrade_for_demo
from restoration.demo import bundled_photograph
from zoomiqa_reward import ZoomIQA, rank
from zoomiqa_reward.images import load_image


def main(image: str | Path, model: str = "nano") -> list[str]:
    """Print rating and rank of the photograph and three worse copies; return their names, best first."""
    photograph = load_image(image)
    copies = {
        "as it is": photograph,
        "noisy": degrade_for_demo(photograph, scale=1, blur_px=0.3, noise=0.08, quality=95),
        "blurred": degrade_for_demo(photograph, scale=1, blur_px=3.0, noise=0.0, quality=95),
        "JPEG 10": degrade_for_demo(photograph, scale=1, blur_px=0.3, noise=0.0, quality=10),
    }
    iqa = ZoomIQA.from_pretrained(model)
    names = list(copies)
    ranking = rank(iqa, list(copies.values()))
    for place, index in enumerate(ranking.order, start=1):
        rating, std = ranking.ratings.mean[index], ranking.ratings.std[index]
        print(f"{place}. {names[index]:10s} {rating:.2f} ± {std:.2f}")
    return [names[index] for index in ranking.order]


if __name__ == "__main__":
    order = main(*sys.argv[1:2] or [bundled_photograph()])
    assert order[0] == "as it is", f"nano puts {order[0]!r} first, before the photograph as it is"
