"""Any images with labels in a table: columns `image` and `mos`, others optional.

`std`, `reference` (or `scene`), `split` (training, validation, test) and `boxes` (`left top right bottom` as shares of
the sides, several separated by `;`, the word `none` where nothing is damaged). Labels are on 1..5 unless the caller
names a scale.
"""

from pathlib import Path

from train_iqa.data.json_list import read_boxes
from train_iqa.data.record import RATINGS, LabelRow, Listing, Scale
from train_iqa.data.tables import number, read_csv, spread


def read(file: Path, image_root: Path | None = None, scale: Scale | None = None) -> Listing:
    """Return what the table names; paths are relative to `image_root`, or to the table's own folder."""
    found = Listing(root=image_root or file.parent, scale=scale or RATINGS)
    for where, fields in read_csv(file, ("image", "mos"), found):
        label, std = number(fields["mos"], where, "mos", found), spread(fields.get("std"), where, found)
        boxes = read_boxes(_boxes(fields.get("boxes", "")), where, found)
        if label is None or std is None or boxes is False:
            continue
        found.rows.append(
            LabelRow(
                file=fields["image"],
                label=label,
                std=std,
                split=fields.get("split") or None,
                boxes=boxes,
                reference=fields.get("reference") or fields.get("scene") or None,
            )
        )
    return found


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
