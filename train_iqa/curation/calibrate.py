"""Choose the thresholds of the hints on degraded photographs: `python -m train_iqa.curation.calibrate --images DIR`.

For each state: images that were brought into it, by at least `LEAST_SEVERITY`, and images whose record says that
they are not in it. `possible` is where 5 % of the former fall short, `certain` where 5 % of the latter go beyond. Where
the sides are further apart than that, both become the middle between them.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from train_iqa.curation.hints import Hints, measure_hints
from train_iqa.curation.states import DAMAGES, LOOKS, MIXED, OPPOSITE, degrade_to
from train_iqa.curation.thresholds import SHIPPED, STATES, HintThresholds, Threshold
from train_iqa.nano.degradations import sample_box
from train_iqa.nano.synthetic import list_photographs
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.runs.json_lines import write_json
from zoomiqa_reward.runs.outputs import claim_file
from zoomiqa_reward.runs.program import Parser, run_program
from zoomiqa_reward.runs.progress import progress, say

LEAST_SEVERITY = 0.4
"""Milder damage is not asserted of an image, so it must not decide what counts as shown."""
ERROR_SHARE = 0.05
"""Of images in a state that may fall short of `possible`, and of images not in it that may exceed `certain`."""
UNTOUCHED = "untouched"


def choose(values: Mapping[str, Sequence[Hints]]) -> dict[str, Threshold]:
    """Return the thresholds from hints by the state that the images were brought into (`untouched` for none).

    Raises ValueError where a state has fewer than 20 images on either side.
    """
    thresholds = {}
    for state, (name, sign) in STATES.items():
        inside = [sign * getattr(hints, name) for hints in values.get(state, ())]
        outside = [sign * getattr(hints, name) for group in _not_in(state, values) for hints in values[group]]
        inside, outside = ([v for v in side if not math.isnan(v)] for side in (inside, outside))
        if min(len(inside), len(outside)) < 20:
            raise ValueError(f"{state}: {len(inside)} images in it, {len(outside)} not; at least 20 each are needed")
        possible = float(np.quantile(inside, ERROR_SHARE))
        certain = float(np.quantile(outside, 1 - ERROR_SHARE))
        if possible > certain:
            possible = certain = (possible + certain) / 2
        thresholds[state] = Threshold(possible=round(sign * possible, 5), certain=round(sign * certain, 5))
    return thresholds


def _not_in(state: str, values: Mapping[str, Sequence[Hints]]) -> list[str]:
    """Return the groups of images that count as not being in a state.

    For light and colour, untouched photographs are among them: one that is dark by itself may well be called dark, and
    that widens the range between possible and certain.
    """
    groups = [group for group in values if group != state and state not in MIXED.get(group, ())]
    return (
        groups if state in DAMAGES else [group for group in groups if group in (UNTOUCHED, OPPOSITE[state], *DAMAGES)]
    )


def measure(images: Sequence[Path], seed: int) -> dict[str, list[Hints]]:
    """Return the hints of each photograph untouched, and brought into each state once.

    Half of the images are damaged in a region only and measured there, for that is how boxes are judged.
    """
    measured: dict[str, list[Hints]] = {group: [] for group in (UNTOUCHED, *LOOKS)}
    for index, path in enumerate(progress(images, len(images), "photographs")):
        clean = np.ascontiguousarray(load_image(path).permute(1, 2, 0).numpy())
        rng = np.random.default_rng([seed, index])
        for number, (group, hints) in enumerate(measured.items()):
            pixels, box = clean, sample_box(rng) if (index + number) % 2 else None
            if group != UNTOUCHED:
                pixels, _ = degrade_to(clean, group, float(rng.uniform(LEAST_SEVERITY, 1.0)), rng, box)
            hints.append(measure_hints(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), box))
    return measured


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = Parser(prog="python -m train_iqa.curation.calibrate", description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of clean photographs")
    parser.add_argument("--count", type=int, default=100, help="most photographs that are used")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--name", help="what the provenance calls the photographs; default: the folder's name")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="file to write; default: the thresholds that ship")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(argv)
    return run_program("train_iqa.curation.calibrate", lambda: _work(args), kept="nothing was written")


def _work(args: argparse.Namespace) -> int:
    if args.count < 1:
        raise ValueError(f"--count {args.count}: must be at least 1")
    claim_file(args.out, overwrite=args.overwrite)  # before the work
    paths = list_photographs(args.images)
    chosen = paths[:: max(1, len(paths) // args.count)][: args.count]
    values = measure(chosen, args.seed)
    provenance = {
        "photographs": f"{len(chosen)} of {args.name or args.images.name}", "seed": args.seed,
        "images_per_state": len(chosen), "half_of_them": "damaged and measured in a box",
        "least_severity": LEAST_SEVERITY, "error_share": ERROR_SHARE,
        "made_by": "python -m train_iqa.curation.calibrate",
    }  # fmt: skip
    content = HintThresholds(of=choose(values), provenance=provenance).as_json()
    write_json(args.out, content, overwrite=args.overwrite)
    say(f"{args.out}: {len(content['of'])} states")
    return 0


if __name__ == "__main__":
    sys.exit(main())
