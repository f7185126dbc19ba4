"""Does the model look where the damage is? Overlap of the box that it names with the known damaged regions."""

from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]
HIT_IOU = 0.5


def iou(first: Box, second: Box) -> float:
    """Return intersection over union of two boxes (left, top, right, bottom); 0 where a box has no area.

    >>> iou((0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 1.0))
    0.3333333333333333
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(width, 0.0) * max(height, 0.0)
    areas = [max(b[2] - b[0], 0.0) * max(b[3] - b[1], 0.0) for b in (first, second)]
    return both / (sum(areas) - both) if both > 0 else 0.0


def grounding(named: Sequence[Box | None], truths: Sequence[Sequence[Box] | None]) -> dict[str, float]:
    """Return how the named boxes (None: none was named) fit the known regions (None: unknown, so not counted).

    `damaged`: images with known regions; over them `iou_mean` (the best region counts; no box named is 0), `hit_share`
    (IoU at least 0.5) and `silent_share` (no box named); `iou_mean_named` only over those with a box. `undamaged`:
    images known to have no such region, and `false_share` of them with a box all the same. NaN where nothing is there
    to count.
    """
    pairs = [(box, regions) for box, regions in zip(named, truths, strict=True) if regions is not None]
    damaged = [(box, regions) for box, regions in pairs if regions]
    overlaps = [0.0 if box is None else max(iou(box, region) for region in regions) for box, regions in damaged]
    with_box = [overlap for overlap, (box, _) in zip(overlaps, damaged, strict=True) if box is not None]
    even = [box for box, regions in pairs if not regions]
    return {
        "damaged": len(damaged),
        "iou_mean": _mean(overlaps),
        "iou_mean_named": _mean(with_box),
        "hit_share": _mean([overlap >= HIT_IOU for overlap in overlaps]),
        "silent_share": _mean([box is None for box, _ in damaged]),
        "undamaged": len(even),
        "false_share": _mean([box is not None for box in even]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
