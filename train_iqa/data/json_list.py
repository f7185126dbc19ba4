"""A JSON list of images: what the official Zoom-IQA evaluator takes, and DeQA-Score's metadata.

`[{"id", "image", "gt_score" or "gt_score_norm", "std"?, "std_norm"?}, ...]`; Q-Align's older key `img_path` is read as
`image`. `gt_score_norm` is on 1..5; `gt_score` is on the set's own scale, which a part of a set cannot show: without a
scale from the caller it is taken to be on 1..5, and a label outside of that is a problem. Our additions, all optional:
`reference`, `split`, `boxes` ([[left, top, right, bottom], ...] as shares of the sides; [] where none is damaged).
"""

import json
from pathlib import Path
from typing import Any

from train_iqa.data.record import RATINGS, Box, LabelRow, Listing, Scale
from train_iqa.data.tables import number, read_text, spread


def read(file: Path, image_root: Path | None = None, scale: Scale | None = None) -> Listing:
    """Return what the list names; paths are relative to `image_root`, or to the list's own folder."""
    found = Listing(root=image_root or file.parent, scale=scale or RATINGS)
    text = read_text(file, found)
    if text is None:
        return found
    try:
        entries = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        found.fault("layout", file, f"no readable JSON ({error})")
        return found
    if not isinstance(entries, list):
        found.fault("layout", file, f"holds a {type(entries).__name__}, not a list of images")
        return found
    is_normalised = any(isinstance(entry, dict) and "gt_score_norm" in entry for entry in entries)
    if is_normalised:
        found.scale = RATINGS
    for index, entry in enumerate(entries):
        where = f"{file}: entry {index}"
        if isinstance(entry, dict):
            _add(entry, where, "gt_score_norm" if is_normalised else "gt_score", found)
        else:
            found.fault("label", where, f"is a {type(entry).__name__}, not an object with image and gt_score")
    return found


def _add(entry: dict[str, Any], where: str, key: str, found: Listing) -> None:
    image = entry.get("image", entry.get("img_path"))
    if isinstance(image, list) and len(image) == 1:  # as in metadata for several images a row
        image = image[0]
    if not isinstance(image, str) or not image:
        found.fault("label", where, f"image is {image!r}, not a path")
        return
    label = number(entry.get(key), where, key, found)
    std = spread(entry.get("std_norm" if key == "gt_score_norm" else "std"), where, found)
    boxes = read_boxes(entry.get("boxes"), where, found)
    if label is not None and std is not None and boxes is not False:
        texts = {name: str(entry[name]) for name in ("reference", "split") if entry.get(name) is not None}
        found.rows.append(LabelRow(file=image, label=label, std=std, boxes=boxes, **texts))


def read_boxes(value: Any, where: str, found: Listing) -> tuple[Box, ...] | bool | None:
    """Return damaged regions, None where nothing is known of them, False and a fault where they are no boxes."""
    if value is None:
        return None
    boxes: list[Box] = []
    for box in value if isinstance(value, list) else [value]:
        is_box = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
        if not is_box or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            found.fault("label", where, f"box {box!r}: must be [left, top, right, bottom] within 0..1")
            return False
        boxes.append((float(box[0]), float(box[1]), float(box[2]), float(box[3])))
    return tuple(boxes)
