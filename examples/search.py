"""Search over noise and fusion beside best-of-N, with as many restorations each. A CPU is enough.

    python examples/search.py [photo.jpg]

The restorer is a function with a seed: it enlarges the image and adds grain that is coarse in one place and fine in
another. `Restorer.from_pretrained` takes a diffusers pipeline, its hub id or a network in its place.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from restoration import Restorer, best_of_n, fuse, search_noise
from restoration.demo import bundled_photograph
from restoration.metrics import lr_consistency
from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image
from zoomiqa_reward.images.filters import resize_bicubic

N, SIDE_PX = 6, 256


def grainy(image: Tensor, seed: int) -> Tensor:
    """Return the image twice as large, with grain whose strength in each quarter follows from the noise."""
    generator = torch.Generator().manual_seed(seed)
    height, width = 2 * image.shape[1], 2 * image.shape[2]
    strength = functional.interpolate(torch.randn(1, 1, 2, 2, generator=generator), size=(height, width))[0]
    large = resize_bicubic(image, height, width)
    return large + 0.04 * strength * torch.randn(large.shape, generator=generator)


def main(image: str | Path, model: str = "nano") -> list[float]:
    """Print the best rating of each way; return the ratings."""
    image_lq = resize_bicubic(load_image(image)[:, :SIDE_PX, :SIDE_PX], SIDE_PX // 2, SIDE_PX // 2).clamp(0, 1)
    restorer, reward = Restorer.from_pretrained(grainy), ZoomIQAReward(ZoomIQA.from_pretrained(model))
    plain = best_of_n(restorer, image_lq, reward, n=N, progress=False)
    noise = search_noise(restorer, image_lq, reward, n=N, per_round=N // 3, progress=False)
    fused = fuse(restorer, image_lq, reward, n=N, top=3, progress=False)
    start = max(item.score for item in noise.candidates[: N // 3])
    best = lr_consistency(load_image(plain.best.image), image_lq)
    print(f"best of {N}: {plain.best.score:.3f}")
    print(f"noise search: {start:.3f} after round 1, {noise.best.score:.3f} at the end")
    print(f"fusion: {fused.best_score:.3f}, {fused.reason}")
    assert noise.best.score >= start, "the search must not end below its first round"
    assert fused.best_score >= plain.best.score, "fusion must not end below the best candidate"
    assert not fused.is_chosen or fused.lr_consistency >= best, "the fused image must agree with the input"
    assert noise.report["cost"] == {"restorations": N, "scores": N}
    return [plain.best.score, noise.best.score, fused.best_score]


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()])
