"""How many photographs `reason` answers readably, in every round, and what it says of those that it does not.

python benchmarks/readable.py --images DIR [DIR ...] [--model nano] [--middles 160 224]

scikit-image's own photographs are read too. Readable: a rating, and all four sections of every round. middles: sides
in pixels of squares from the middle of each photograph, which are read as images of their own: many tests of restorers
use images of such sizes.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common import write_result
from torch import Tensor
from tqdm import tqdm

from train_iqa.nano.synthetic import IMAGE_SUFFIXES
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import ImageError, load_image
from zoomiqa_reward.model.ratings import Assessment


def is_readable(assessment: Assessment) -> bool:
    """Return whether there is a rating and every round has its four sections."""
    return assessment.valid and all(len(turn.sections) == 4 for turn in assessment.turns)


def middle(image: Tensor, side: int) -> Tensor:
    """Return the square of `side` pixels in the middle of a [3, H, W] image."""
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    return image[:, top : top + side, left : left + side]


def count_readable(answers: Sequence[Assessment]) -> dict[str, object]:
    """Return how many images were asked about, how many answers are readable, and what ails the others."""
    asked = [answer for answer in answers if answer.turns]
    bad = [answer for answer in asked if not is_readable(answer)]
    return {
        "images": len(asked), "readable": len(asked) - len(bad),
        "zooms": sum(len(answer.turns) > 1 for answer in asked),
        "unreadable": [{"round": len(answer.turns), "error": answer.error} for answer in bad],
    }  # fmt: skip


def main() -> None:
    import skimage.data

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--middles", type=int, nargs="*", default=[160, 224], metavar="PX")
    args = parser.parse_args()
    folders = {folder.name: folder for folder in args.images} | {"scikit-image": Path(skimage.data.__file__).parent}
    iqa, counted, texts = ZoomIQA.from_pretrained(args.model), Counter(), Counter()
    small: dict[int, list[Assessment]] = {side: [] for side in args.middles}
    bad: list[dict[str, object]] = []
    refused: list[dict[str, object]] = []
    for name, folder in folders.items():
        for path in tqdm(sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), desc=name):
            try:
                image = load_image(path)
            except ImageError:  # multi-page microscopy files among scikit-image's
                continue
            for side, answers in small.items():
                if min(image.shape[1:]) > side:
                    answers += iqa.assess([middle(image, side)])
            [assessment] = iqa.assess([image])
            if not assessment.turns:  # nothing was asked: the image shows too little (scikit-image's drawings)
                refused.append({"image": path.name, "error": assessment.error})
                continue
            counted[name] += 1
            counted["zooms"] += len(assessment.turns) > 1
            texts[" ".join(assessment.turns[0].sections.get("Image Quality Summary", "").split())] += 1
            if not is_readable(assessment):
                bad.append({"image": path.name, "round": len(assessment.turns), "error": assessment.error})
    zooms = counted.pop("zooms")
    total = sum(counted.values())
    result = {
        "images": total,
        "by_folder": dict(counted),
        "readable": total - len(bad),
        "unreadable": bad,
        "refused": refused,
        "middles": {side: count_readable(answers) for side, answers in small.items()},
    }
    write_result(
        "readable", result | {"zooms": zooms, "different_summaries": len(texts), "fingerprint": iqa.fingerprint}
    )


if __name__ == "__main__":
    main()
