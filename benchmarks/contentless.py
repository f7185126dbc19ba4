"""How often the rule on images without content (`zoomiqa_reward/images/content.py`) meets a real photograph.

    python benchmarks/contentless.py FOLDER [FOLDER ...]

Every image below the folders is measured as it is, and again made darker (gamma 2 and 4) and foggier (contrast 1/2 and
1/4 towards white): nights and fogs beyond those that the folders hold. Prints, for each, how many meet the rule and
which come closest, and writes benchmarks/results/contentless.json: names of folders and files, no paths.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from common import write_result
from torch import Tensor

from zoomiqa_reward.images.content import MIN_SPAN, MIN_STEP_SHARE, contentless, measures
from zoomiqa_reward.images.loading import ImageError, load_image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda image: image,
    "gamma 2": lambda image: image**2,
    "gamma 4": lambda image: image**4,
    "fog 1/2": lambda image: 0.5 + image / 2,
    "fog 1/4": lambda image: 0.75 + image / 4,
}


def main() -> None:
    """Measure all images and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--closest", type=int, default=3, help="how many of the closest calls are named")
    args = parser.parse_args()
    rows: dict[str, list[tuple[str, str | None, float, float]]] = {name: [] for name in VARIANTS}
    counts: dict[str, int] = {}
    unread = 0
    for folder in args.folders:
        for file in sorted(one for one in folder.rglob("*") if one.suffix.lower() in SUFFIXES):
            try:
                image = load_image(file)
            except ImageError:
                unread += 1
                continue
            counts[folder.name] = counts.get(folder.name, 0) + 1
            for name, change in VARIANTS.items():
                changed = change(image)
                rows[name].append((f"{folder.name}: {file.name}", contentless(changed), *measures(changed)))
    report = {"folders": counts, "unread": unread, "variants": {
        name: _summary(found, args.closest) for name, found in rows.items()
    }}  # fmt: skip
    for name, one in report["variants"].items():
        print(f"{name}: {one['without_content']} of {one['images']} without content; closest {one['closest']}")
    write_result("contentless", report)


def _summary(rows: list[tuple[str, str | None, float, float]], count: int) -> dict:
    return {
        "images": len(rows),
        "without_content": sum(why is not None for _, why, _, _ in rows),
        "named": [f"{name}: {why}" for name, why, _, _ in rows if why is not None][:20],
        "closest": {
            "span": [[name, round(span, 4)] for name, _, span, _ in sorted(rows, key=lambda row: row[2])[:count]],
            "step_share": [[name, round(step, 4)] for name, _, _, step in sorted(rows, key=lambda r: r[3])[:count]],
        },
        "thresholds": {"span": MIN_SPAN, "step_share": MIN_STEP_SHARE},
    }


if __name__ == "__main__":
    main()
