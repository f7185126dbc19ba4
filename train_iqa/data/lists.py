"""Images with labels in a list of the user: JSON or a table. Labels are on 1..5 unless the caller names a scale.

JSON: the list that the official Zoom-IQA evaluator and DeQA-Score take,
`[{"id", "image", "gt_score" or "gt_score_norm", "std"?, "std_norm"?}, ...]`. Q-Align's older key `img_path` is read as
`image`. `gt_score_norm` is on 1..5. `gt_score` is on the set's own scale, which cannot be derived from a part of the
set: without a scale from the caller it is read as 1..5, and a label outside that range is a problem. Our additions, all
optional: `reference`, `split`, `boxes` ([[left, top, right, bottom], ...] as shares of the sides; [] for no damage).

Table: columns `image` and `mos`; optional `std`, `reference` (or `scene`), `split` (training, validation, test) and
`boxes` (`left top right bottom` as shares of the sides, several separated by `;`, the word `none` for no damage).
"""

import json
from pathlib import Path
from typing import Any, Literal

from train_iqa.data.record import RATINGS, Box, LabelRow, Listing, Scale
from train_iqa.data.tables import number, read_csv, read_text, spread


def read_json_list(file: Path, image_root: Path | None = None, scale: Scale | None = None) -> Listing:
    """Return what the list names; paths are relative to `image_root`, or to the list's own folder."""
    listing = Listing(root=image_root or file.parent, scale=scale or RATINGS)
    text = read_text(file, listing)
    if text is None:
        return listing
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        listing.fault("layout", file, f"no readable JSON ({error})")
        return listing
    if not isinstance(entries, list):
        listing.fault("layout", file, f"holds a {type(entries).__name__}, not a list of images")
        return listing
    is_normalised = any(isinstance(entry, dict) and "gt_score_norm" in entry for entry in entries)
    if is_normalised:
        listing.scale = RATINGS
    for index, entry in enumerate(entries):
        where = f"{file}: entry {index}"
        if isinstance(entry, dict):
            _add(entry, where, "gt_score_norm" if is_normalised else "gt_score", listing)
        else:
            listing.fault("label", where, f"is a {type(entry).__name__}, not an object with image and gt_score")
    return listing


def _add(entry: dict[str, Any], where: str, key: str, listing: Listing) -> None:
    image = entry.get("image", entry.get("img_path"))
    if isinstance(image, list) and len(image) == 1:  # as in metadata for several images per row
        image = image[0]
    if not isinstance(image, str) or not image:
        listing.fault("label", where, f"image is {image!r}, not a path")
        return
    label = number(entry.get(key), where, key, listing)
    std = spread(entry.get("std_norm" if key == "gt_score_norm" else "std"), where, listing)
    boxes = read_boxes(entry.get("boxes"), where, listing)
    if label is not None and std is not None and boxes is not False:
        given = {name: str(entry[name]).strip() for name in ("reference", "split") if entry.get(name) is not None}
        texts = {name: text for name, text in given.items() if text}  # empty: none, as in a table
        listing.rows.append(LabelRow(file=image, label=label, std=std, boxes=boxes, **texts))


def read_boxes(value: object, where: str, listing: Listing) -> tuple[Box, ...] | Literal[False] | None:
    """Return damaged regions, None where nothing is known of them, False and a fault where they are no boxes."""
    if value is None:
        return None
    boxes: list[Box] = []
    given: list[Any] = value if isinstance(value, list) else [value]
    for box in given:
        is_box = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
        if not is_box or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            listing.fault("label", where, f"box {box!r}: must be [left, top, right, bottom] within 0..1")
            return False
        boxes.append((float(box[0]), float(box[1]), float(box[2]), float(box[3])))
    return tuple(boxes)


def read_csv_list(file: Path, image_root: Path | None = None, scale: Scale | None = None) -> Listing:
    """Return what the table names; paths are relative to `image_root`, or to the table's own folder."""
    listing = Listing(root=image_root or file.parent, scale=scale or RATINGS)
    for where, fields in read_csv(file, ("image", "mos"), listing):
        label, std = number(fields["mos"], where, "mos", listing), spread(fields.get("std"), where, listing)
        boxes = read_boxes(_boxes(fields.get("boxes", "")), where, listing)
        if label is None or std is None or boxes is False:
            continue
        listing.rows.append(
            LabelRow(
                file=fields["image"],
                label=label,
                std=std,
                split=fields.get("split") or None,
                boxes=boxes,
                reference=fields.get("reference") or fields.get("scene") or None,
            )
        )
    return listing


def _boxes(text: str) -> list[list[float | str]] | None:
    if not text.strip():
        return None
    if text.strip().lower() == "none":
        return []
    return [[_side(word) for word in part.split()] for part in text.split(";")]


def _side(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word  # `read_boxes` names it
