"""Blur the lower right quarter of a photograph and find it again by its quality map. A CPU is enough.

python examples/map_quality.py [photo.jpg]
"""

import sys
from pathlib import Path

from restoration.demo import bundled_photograph
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import load_image
from zoomiqa_reward.images.filters import gaussian_blur


def main(image: str | Path, model: str = "nano") -> list[str]:
    """Print the mean of the map over each quarter; return the names of the quarters, best first."""
    damaged = load_image(image).clone()
    _, height, width = damaged.shape
    blurred = gaussian_blur(damaged[None], 3.0)[0]
    damaged[:, height // 2 :, width // 2 :] = blurred[:, height // 2 :, width // 2 :]
    values = ZoomIQA.from_pretrained(model).quality_map(damaged).values
    halves = {"upper": values[: height // 2], "lower": values[height // 2 :]}
    means = {}
    for name, half in halves.items():
        means[f"{name} left"] = float(half[:, : width // 2].nanmean())
        means[f"{name} right"] = float(half[:, width // 2 :].nanmean())
    order = sorted(means, key=lambda name: -means[name])
    for name in order:
        print(f"{name:12s} {means[name]:.2f}")
    return order


if __name__ == "__main__":
    order = main(*sys.argv[1:2] or [bundled_photograph()])
    assert order[-1] == "lower right", f"nano calls {order[-1]!r} the worst quarter, not the blurred one"
