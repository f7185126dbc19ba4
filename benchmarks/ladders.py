"""Mean rating along ladders of blur, noise, JPEG and down-sampling; each step must fall.

python benchmarks/ladders.py --images DIR [--model nano] [--count 24]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from common import write_result
from PIL import Image
from tqdm import tqdm

from train_iqa.nano.degradations import DEGRADATIONS, resize
from train_iqa.nano.synthetic import list_photographs
from zoomiqa_reward import ZoomIQA

LADDERS = {"gaussian_blur": "blur", "gaussian_noise": "noise", "jpeg": "jpeg"}
SEVERITIES = (0.1, 0.35, 0.6, 0.85)
FACTORS = (1.5, 2.5, 4.0, 6.0)


def ladder(name: str, image: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return the untouched image and four steps of rising damage."""
    if name == "downsample":
        height, width = image.shape[:2]
        steps = []
        for factor in FACTORS:
            small = resize(image, round(width / factor), round(height / factor), "bicubic")
            steps.append(resize(small, width, height, "bicubic"))
        return [image, *steps]
    function = DEGRADATIONS[name]
    return [image, *(function(image, s, np.random.default_rng(seed))[0].clip(0, 1) for s in SEVERITIES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=24)
    args = parser.parse_args()
    iqa, result = ZoomIQA.from_pretrained(args.model), {}
    paths = list_photographs(args.images)
    chosen = paths[:: max(1, len(paths) // args.count)][: args.count]
    for name in (*LADDERS, "downsample"):
        rows = []
        for k, path in enumerate(tqdm(chosen, desc=name)):
            with Image.open(path) as photograph:
                image = np.asarray(photograph.convert("RGB"), dtype=np.float32) / 255
            steps = [
                torch.from_numpy(np.ascontiguousarray(s, dtype=np.float32)).permute(2, 0, 1)
                for s in ladder(name, image, k)
            ]
            rows.append([float(iqa.rate([s], strict=True).mean[0]) for s in steps])
        means = np.mean(rows, axis=0)
        falls = -np.diff(means)
        result[LADDERS.get(name, name)] = {
            "mean_ratings": [round(float(m), 3) for m in means],
            "smallest_fall": round(float(falls.min()), 3),
            "monotone": bool((falls > 0).all()),
            "pairs_in_order": round(float((np.diff(rows, axis=1) < 0).mean()), 3),
        }
    write_result("ladders", {"photographs": len(chosen), **result})


if __name__ == "__main__":
    main()
