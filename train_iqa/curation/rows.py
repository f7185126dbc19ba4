"""From outcomes to what SFT reads: `conversations.jsonl` and the pictures beside it.

Made anew from the outcomes each time, in the data sets' order and in one step, so no row can be there twice or half.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from train_iqa.data import LabelledImage
from zoomiqa_reward.runs.outputs import copy_file, part_folder, write_text

ROWS = "conversations.jsonl"


def write_rows(
    folder: Path, outcomes: Sequence[Mapping[str, Any]], images: Mapping[tuple[str, str], LabelledImage]
) -> int:
    """Write a row for each kept outcome and copy its picture, byte for byte; return how many there are.

    No row: the file is left out, since SFT refuses an empty one.
    """
    part_folder(folder / "images")
    lines = []
    for outcome in outcomes:
        if outcome["status"] != "kept":
            continue
        image = images[outcome["dataset"], outcome["id"]]
        name = f"images/{picture_name(image)}"
        _copy(image.path, folder / name)
        row = {"image": name, "rating": outcome["rating"], "rounds": outcome["rounds"]}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    target = folder / ROWS
    if not lines:
        target.unlink(missing_ok=True)
        return 0
    write_text(target, "".join(lines))
    return len(lines)


def picture_name(image: LabelledImage) -> str:
    """Return a file name that no other image of any data set has."""
    digest = hashlib.sha256(f"{image.dataset}\0{image.id}".encode()).hexdigest()[:10]
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in PurePosixPath(image.id).stem)
    return f"{stem[:60]}-{digest}{image.path.suffix.lower()}"


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        copy_file(source, target)
