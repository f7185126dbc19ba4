"""What changes where `transformers serve` writes the words: the embedded model on this machine against itself.

python benchmarks/remote_text.py [--model nano]

whole: images of a size that nothing resizes. resized: of a size that the server resizes to its own grid, once as they
are and once with `factor_px=28`, where the client resizes them to the protocol's budget. Every image is the middle of a
photograph that scikit-image bundles. Greedy answers in float32; `rounds` counts the texts of each round that are equal.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from torch import Tensor

from train_iqa.nano.synthetic import IMAGE_SUFFIXES
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import ImageError, load_image
from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.text_server.local_server import serve

WHOLE, RESIZED = (196, 224), (230, 250)
"""Height and width of the images; the first is a multiple of the model's 28 px."""


def middles(size: tuple[int, int], count: int) -> list[Tensor]:
    """Return the middles [3, *size] of scikit-image's first photographs that are large enough and show something."""
    import skimage.data

    height, width = size
    found: list[Tensor] = []
    for path in sorted(Path(skimage.data.__file__).parent.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and len(found) < count:
            try:
                image = load_image(path)
            except ImageError:  # multi-page microscopy files
                continue
            top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
            middle = image[:, top : top + height, left : left + width]
            if min(top, left) >= 0 and contentless(middle) is None:
                found.append(middle)
    return found


def compare(local: Sequence[Assessment], remote: Sequence[Assessment]) -> dict[str, Any]:
    """Return how many texts are equal, and the largest difference of two ratings."""
    both = list(zip(local, remote, strict=True))
    rounds = [
        [(a.turns[k].text, b.turns[k].text) for a, b in both if min(len(a.turns), len(b.turns)) > k] for k in range(2)
    ]
    pairs = [(a.rating, b.rating) for a, b in both if a.valid and b.valid]
    return {
        "images": len(local), "rated_by_both": len(pairs),
        "rounds": [{"answers": len(texts), "equal": sum(a == b for a, b in texts)} for texts in rounds],
        "equal_ratings": sum(a == b for a, b in pairs),
        "largest_difference": float(np.abs(np.subtract(*np.array(pairs).T)).max()) if pairs else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--images", type=int, default=12, help="of each size")
    args = parser.parse_args()
    iqa = ZoomIQA.from_pretrained(args.model)
    result: dict[str, Any] = {}
    with serve(args.model) as served:
        for name, size, factor in (("whole", WHOLE, None), ("resized", RESIZED, None), ("resized_factor", RESIZED, 28)):
            images = middles(size, args.images)
            with ZoomIQA.from_server(served.base_url, served.model, factor_px=factor, concurrency=2) as remote:
                result[name] = {"px": size[::-1], **compare(iqa.assess(images), remote.assess(images))}
    write_result("remote_text", result)


if __name__ == "__main__":
    main()
