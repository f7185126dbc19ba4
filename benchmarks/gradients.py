"""Gradients of the rating: against finite differences, in a batch, up the hill, and what they cost in memory.

python benchmarks/gradients.py --images DIR [--model nano] [--count 20] [--side 224] [--directions 32]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import write_result
from memory import resident_mib
from torch import Tensor

from train_iqa.nano.synthetic import list_photographs
from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image

STEPS = (1e-2, 1e-3, 1e-4, 3e-5)
"""Sizes of a step; what they measure depends on the direction, see `check`. All are reported: a rating that is rough at
the largest agrees only at smaller ones, and for a single pixel float32 shows at the smallest."""
ALONG = {"largest_pixel": STEPS, "length": (0.5, *STEPS)}
"""Direction -> steps. A Euclidean length of 0.5 is 0.0013 a channel of a 224 px image, a third of an 8-bit step."""
ASCENTS = {"sign_2_of_255": 2 / 255, "sign_0.1_of_255": 0.1 / 255}
"""Change of every pixel at each step of the ascent."""
ASCENT_STEPS = 10


def crop(path: Path, side: int) -> Tensor:
    """Return the middle of a photograph, kept off black and white so that a step stays in range."""
    image = load_image(path)
    top, left = (max(0, (length - side) // 2) for length in image.shape[1:])
    return 0.05 + 0.9 * image[:, top : top + side, left : left + side]


def gradient_of(reward: ZoomIQAReward, image: Tensor) -> Tensor:
    """Return the gradient of one image's rating."""
    leaf = image.clone().requires_grad_(True)
    [gradient] = torch.autograd.grad(reward(leaf, grad=True).value.sum(), leaf)
    return gradient


def difference(reward: ZoomIQAReward, image: Tensor, direction: Tensor, step: float) -> float:
    """Return the slope along `direction` by central differences."""
    ends = [reward(image + sign * step * direction).value.double().item() for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


def slope(pairs: list[tuple[float, float]]) -> float:
    """Return the least-squares slope through 0 of measured on predicted."""
    return sum(p * m for p, m in pairs) / sum(p * p for p, _ in pairs)


def check(reward: ZoomIQAReward, images: list[Tensor], directions: int) -> dict[str, object]:
    """Return the agreement along the gradient, in random directions and pixel by pixel, at every step of `STEPS`.

    Directions: the gradient, scaled to a largest pixel of 1 (`along_largest_pixel`) or to Euclidean length 1
    (`along_length`, so that a step changes as much in all as one that moves a single pixel); every pixel +1 or -1; one
    channel of one pixel. The first and third move the whole image by about the step.
    """
    along: dict[str, dict[float, list[float]]] = {name: {step: [] for step in steps} for name, steps in ALONG.items()}
    signs: dict[float, list[tuple[float, float]]] = {step: [] for step in STEPS}
    single: dict[float, list[tuple[float, float]]] = {step: [] for step in STEPS}
    generator = torch.Generator().manual_seed(0)
    for number, image in enumerate(images):
        gradient = gradient_of(reward, image)
        scales = {"largest_pixel": gradient.abs().max(), "length": gradient.norm()}
        chosen = [torch.randint(0, 2, image.shape, generator=generator) * 2.0 - 1 for _ in range(directions)]
        places = torch.randint(0, image.numel(), (directions,), generator=generator).tolist()
        for name, scale in scales.items():
            predicted = (gradient.square().sum() / scale).item()
            for step in ALONG[name]:
                along[name][step].append(abs(difference(reward, image, gradient / scale, step) / predicted - 1))
        for step in STEPS:
            for direction in chosen:
                predicted = (gradient * direction).sum().item()
                signs[step].append((predicted, difference(reward, image, direction, step)))
            for place in places:
                one = torch.zeros(image.numel())
                one[place] = 1.0
                measured = difference(reward, image, one.view_as(image), step)
                single[step].append((gradient.flatten()[place].item(), measured))
        last = [round(along[name][step][-1], 4) for name, steps in ALONG.items() for step in steps]
        print(f"{number + 1}/{len(images)}: {last}", file=sys.stderr)
    return {
        "relative_error_along": {
            name: {
                str(step): {"median": sorted(errors)[len(errors) // 2], "largest": max(errors)}
                for step, errors in by_step.items()
            }
            for name, by_step in along.items()
        },
        "slope_random_signs": {str(step): slope(pairs) for step, pairs in signs.items()},
        "slope_single_pixels": {str(step): slope(pairs) for step, pairs in single.items()},
    }


def climb(reward: ZoomIQAReward, images: list[Tensor]) -> dict[str, object]:
    """Return how much ten steps up the gradient's sign change the rating, for each size of step."""
    found: dict[str, object] = {}
    for name, step_px in ASCENTS.items():
        gains = []
        for image in images:
            climbed = image
            for _ in range(ASCENT_STEPS):
                climbed = (climbed + step_px * gradient_of(reward, climbed).sign()).clamp(0, 1)
            gains.append((reward(climbed).value - reward(image).value).item())
        found[name] = {"raised": sum(gain > 0 for gain in gains), "of": len(gains),
                       "mean_gain": sum(gains) / len(gains), "smallest_gain": min(gains)}  # fmt: skip
    return found


def in_a_batch(iqa: ZoomIQA, images: list[Tensor]) -> dict[str, float]:
    """Return the largest relative difference of gradients at B=1 and the same images inside B=4, strict and batched."""
    found = {}
    for name, strict in (("strict", True), ("batched", False)):
        reward = ZoomIQAReward(iqa, strict=strict)
        leaves = [image.clone().requires_grad_(True) for image in images]
        together = torch.autograd.grad(reward(leaves, grad=True).value.sum(), leaves)
        alone = [gradient_of(ZoomIQAReward(iqa), image) for image in images]
        found[name] = max(((a - b).norm() / b.norm()).item() for a, b in zip(together, alone, strict=True))
    return found


def measure_memory(args: argparse.Namespace) -> None:
    """Print the peak memory over idle and the seconds of one gradient; run in a process of its own."""
    iqa = ZoomIQA.from_pretrained(args.model)
    reward = ZoomIQAReward(iqa, gradient_checkpointing=args.child == "recompute")
    image = torch.rand(3, args.memory_side, args.memory_side, generator=torch.Generator().manual_seed(0))
    gradient_of(reward, image[:, :56, :56])  # library warm-up is not the image's memory
    idle, began = resident_mib(), time.time()
    gradient_of(reward, image)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_over_idle_mib": round(peak - idle), "seconds": round(time.time() - began, 1)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--directions", type=int, default=32)
    parser.add_argument("--memory-side", type=int, default=1024)
    parser.add_argument("--child", choices=("plain", "recompute"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure_memory(args)
        return
    if args.images is None:
        parser.error("--images is needed")
    iqa = ZoomIQA.from_pretrained(args.model)
    images = [crop(path, args.side) for path in list_photographs(args.images)[: args.count]]
    result = {"images": len(images), "side_px": args.side, "directions_an_image": args.directions}
    result |= {"fingerprint": iqa.fingerprint, **check(ZoomIQAReward(iqa), images, args.directions)}
    result["ascent"] = {"steps": ASCENT_STEPS} | climb(ZoomIQAReward(iqa), images)
    result["largest_difference_b1_in_b4"] = in_a_batch(iqa, images[:4])
    memory = {}
    for child in ("plain", "recompute"):
        command = [sys.executable, __file__, "--model", args.model, "--memory-side", str(args.memory_side)]
        done = subprocess.run([*command, "--child", child], capture_output=True, text=True, check=True)
        memory[child] = json.loads(done.stdout.strip().splitlines()[-1])
    result["memory_of_one_gradient"] = {"side_px": args.memory_side} | memory
    write_result("gradients", result)


if __name__ == "__main__":
    main()
