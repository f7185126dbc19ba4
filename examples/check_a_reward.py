"""Before a reward goes into best-of-N or a training: is it fit for that? A CPU is enough.

    python examples/check_a_reward.py [photo.jpg ...]

Any reward can stand in the place of the model's: a metric wrapped by `MetricReward`, or an object of your own.
"""

import sys
from pathlib import Path

from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.check import bundled_photographs, load_photographs, run_check

CROP_PX = 84
"""Small, so that it takes a minute; a check to rely on uses more photographs and `CROP_PX` of the package."""


def main(*images: str | Path, model: str = "nano") -> list[str]:
    """Print the verdict for each use, with what it failed on; return the verdicts."""
    photographs, refused = load_photographs(images, crop_px=CROP_PX)
    if refused:
        raise SystemExit("\n".join(reason for _, reason in refused))
    report = run_check(ZoomIQAReward(ZoomIQA.from_pretrained(model)), photographs)
    for verdict in report.verdicts:
        print(f"{verdict.use:10s} {verdict.verdict}: {'; '.join(map(str, verdict.reasons)) or 'all criteria are met'}")
    return [verdict.verdict for verdict in report.verdicts]


if __name__ == "__main__":
    main(*(sys.argv[1:] or bundled_photographs()))
