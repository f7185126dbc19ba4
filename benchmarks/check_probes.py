"""The emptied images, and the bad images made worse, of `zoomiqa check` for the embedded model: a part of its work.

python benchmarks/check_probes.py PHOTOGRAPHS... [--crop-px 160] [--model nano]
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import write_result

from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.check import Photograph, load_photographs
from zoomiqa_reward.check.degenerate import empty_rows
from zoomiqa_reward.check.ladders import make_pool
from zoomiqa_reward.check.tallies import mean, pair_scores, preference
from zoomiqa_reward.rewards.base import Reward

Row = dict[str, list[float]]


def ask(reward: Reward, photograph: Photograph) -> tuple[Row, Row]:
    """Return the values of the emptied images and of the bad ones made worse, by kind; NaN where there is none."""
    pool = make_pool(photograph)
    empty, worsened = empty_rows(pool.hr, pool.enlarged), pool.worsened
    images = {id(image): image for rows in (empty, worsened) for row in rows.values() for image in row}
    values = dict(zip(images, reward(list(images.values())).value.tolist(), strict=True))

    def rated(rows: dict[str, tuple[Any, ...]]) -> Row:
        return {kind: [values[id(image)] for image in row] for kind, row in rows.items()}

    return rated(empty), rated(worsened)


def summary(rows: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    """Return what each probe found over the photographs: shares, and the largest rise of a bad image."""
    first_empty, first_worsened = rows[0]
    return {
        "photographs": len(rows),
        "empty": {
            kind: [
                {"has_value": mean(float(not math.isnan(empty[kind][k])) for empty, _ in rows),
                 "before_honest": mean(preference(empty[kind][k], empty[kind][0]) for empty, _ in rows)}
                for k in range(1, len(first_empty[kind]))
            ]
            for kind in first_empty
        },
        "worsened": {
            kind: {"pairs_in_order": mean(score for _, bad in rows for score in pair_scores(bad[kind])),
                   "mean_rise": mean(max(bad[kind]) - bad[kind][0] for _, bad in rows),
                   "largest_rise": max(max(bad[kind]) - bad[kind][0] for _, bad in rows)}
            for kind in first_worsened
        },
    }  # fmt: skip


def main() -> None:
    """Ask about every photograph and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", nargs="+")
    parser.add_argument("--crop-px", type=int, default=160)
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    photographs, _ = load_photographs(args.photographs, crop_px=args.crop_px)
    reward = ZoomIQAReward(ZoomIQA.from_pretrained(args.model))
    rows = []
    for photograph in photographs:
        rows.append(ask(reward, photograph))
        print(Path(photograph.name).name, json.dumps(rows[-1]), flush=True)
    write_result("check_probes", {"reward": reward.name, "crop_px": args.crop_px} | summary(rows))


if __name__ == "__main__":
    main()
