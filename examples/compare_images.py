"""Blur a photograph more and more, and ask how sure it is that the photograph is better. A CPU is enough.

python examples/compare_images.py [photo.jpg]
"""

import sys
from pathlib import Path

from restoration.demo import bundled_photograph
from zoomiqa_reward import ZoomIQA, rank
from zoomiqa_reward.images import load_image
from zoomiqa_reward.images.filters import gaussian_blur


def main(image: str | Path, model: str = "nano") -> list[float]:
    """Print the probability that the photograph is better than each copy; return the probabilities."""
    photograph = load_image(image)
    copies = {blur_px: gaussian_blur(photograph[None], blur_px)[0] for blur_px in (0.5, 1.0, 3.0)}
    iqa = ZoomIQA.from_pretrained(model)
    there = iqa.compare([photograph] * len(copies), list(copies.values())).probability
    back = iqa.compare(list(copies.values()), [photograph] * len(copies)).probability
    assert bool((there + back == 1).all())  # symmetric bit for bit
    ranking = rank(iqa, [photograph, *copies.values()], confidence=0.9)
    tied = {index for group in ranking.ties if 0 in group for index in group}
    for index, (blur_px, probability) in enumerate(zip(copies, there.tolist(), strict=True), start=1):
        verdict = "tied with it" if index in tied else "told apart"
        print(f"better than the copy blurred by {blur_px} px: {probability:.3f}, {verdict} at a confidence of 0.9")
    return there.tolist()


if __name__ == "__main__":
    probabilities = main(*sys.argv[1:2] or [bundled_photograph()])
    assert probabilities[2] > 0.95, f"nano is not sure about a blur of 3 px: {probabilities[2]:.3f}"
