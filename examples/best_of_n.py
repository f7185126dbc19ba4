"""Restore a small noisy copy of a photograph eight times, rate the results, keep the best. A CPU is enough.

    python examples/best_of_n.py [photo.jpg]

`varied_pool` takes your diffusers pipeline, its hub id, a network or a function in place of the embedded
one, and `ZoomIQA.from_pretrained` a larger judge; the rest stays as it is.
"""

import sys
from pathlib import Path

from restoration import best_of_n, degrade_for_demo
from restoration.demo import bundled_photograph
from restoration.selection.pool import BICUBIC, varied_pool
from zoomiqa_reward import ConsensusReward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image

LARGEST_PX = 256
"""Of the photograph, its middle; for two minutes on a CPU."""


def main(image: str | Path, model: str = "nano", restorer: str = "nano", out: Path | None = None) -> list[int]:
    """Print rank, score, restorer and distance from the mean of each candidate, and the choice with the consensus.

    Returns the candidates' numbers, best first, and that choice.
    """
    photograph = load_image(image)
    height, width = (min(side, LARGEST_PX) // 4 * 4 for side in photograph.shape[1:])
    top, left = (photograph.shape[1] - height) // 2, (photograph.shape[2] - width) // 2
    image_lq = degrade_for_demo(photograph[:, top : top + height, left : left + width], scale=4)
    reward = ZoomIQAReward(ZoomIQA.from_pretrained(model))
    pool = varied_pool(restorer)  # as it is, bicubic, and six that assume another blur
    result = best_of_n(pool, image_lq, reward, n=8, seed=0, out=out, keep=8)
    images = [candidate.image for candidate in result.candidates]
    agreed = ConsensusReward(reward)(images, groups=[0] * len(images))
    distance = agreed.info["distance"]
    for candidate in result.order:
        name = f"{candidate.restorer}, {distance[candidate.index]:.1f} levels from the mean"
        print(f"{candidate.rank or '-'}. candidate {candidate.index}  {candidate.score:.2f}  {name}")
    assert pool[distance.index(max(distance))].name == BICUBIC, "bicubic is no longer the one least like the others"
    chosen = int(agreed.value.argmax())
    print(f"with the consensus: candidate {chosen}")
    for note in result.notes:
        print(note)
    return [*(candidate.index for candidate in result.order), chosen]


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()], out=Path("best_of_n"))
    print("look at best_of_n/sheet.png")
