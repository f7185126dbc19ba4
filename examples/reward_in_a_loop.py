"""Use the rating as a training signal: climb its gradient from a blurred image, tied to where it started.

What is changed here are the pixels; in a training loop it is the network that made them. A CPU is enough.

    python examples/reward_in_a_loop.py [photo.jpg]
"""

import sys
from pathlib import Path

import torch

from restoration import degrade_for_demo
from restoration.demo import bundled_photograph
from zoomiqa_reward import MetricReward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image
from zoomiqa_reward.rewards.composite import CompositeReward, Term

SIDE_PX = 112
STEPS = 5


def main(image: str | Path, model: str = "nano") -> list[float]:
    """Print the rating and how far the image has moved at each step; return the ratings."""
    start = degrade_for_demo(load_image(image)[:, :SIDE_PX, :SIDE_PX], scale=1, blur_px=2.0, noise=0.02)

    def likeness(moved: torch.Tensor) -> torch.Tensor:
        return 1 - (moved - start).square().mean()  # no square root: its slope at 0 is infinite

    near = MetricReward(likeness, "near the start", True, (0, 1), differentiable=True)
    rating = ZoomIQAReward(ZoomIQA.from_pretrained(model), gradient_checkpointing=True)
    reward = CompositeReward([Term(rating, 1.0, "raw"), Term(near, 20.0, "raw")])

    moved = start
    ratings = []
    for step in range(STEPS + 1):
        moved = moved.detach().requires_grad_(True)
        scores = reward(moved, grad=True)  # raises where there is no gradient, instead of training on nothing
        if not bool(scores.valid[0]):
            raise SystemExit(f"the image could not be measured: {scores.info['errors'][0]}")
        first, second = scores.info["terms"]
        ratings.append(first["raw"][0])
        print(f"step {step}: rating {ratings[-1]:.4f}, moved by {(1 - second['raw'][0]) ** 0.5:.4f}")
        scores.value.sum().backward()
        with torch.no_grad():
            moved = (moved + 0.01 * moved.grad / moved.grad.abs().max().clamp_min(1e-12)).clamp(0, 1)
    return ratings


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()])
