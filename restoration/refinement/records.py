"""What `refine` returns: the image, and every round with what it tried and why it was kept or not."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from restoration.refinement.regions import ZoomRequest
from restoration.selection.candidates import read_scored
from zoomiqa_reward.model.turns import PixelBox
from zoomiqa_reward.runs.json_lines import as_float, plain


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One restoration of a region, blended in and measured as the whole 8-bit image."""

    seed: int
    reward: float = math.nan
    """Higher is better; NaN where not valid."""
    lr_consistency: float = math.nan
    """dB, see `fidelity.lr_consistency`; NaN where the image could not be made."""
    valid: bool = False
    error: str | None = None
    """Why there is no reward."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """One round; number 0 is the start, the best of several restorations of the whole image."""

    number: int
    zoom_request: ZoomRequest | None
    """What the model asked for. In round 0 of the low-quality image, None for a restorer that takes no text."""
    region: PixelBox | None = None
    """What was restored again, in pixels of the low-quality image; None in round 0, and where nothing was."""
    prompt: str | None = None
    """What the restorer was told; None where it takes no prompt."""
    negative_prompt: str | None = None
    attempts: tuple[Attempt, ...] = ()
    """In the order of their seeds. Those of round 0 are `Refined.start.candidates`."""
    reward: float = math.nan
    """Of this round's best try, kept or not."""
    before: float = math.nan
    """Of the image so far, asked together with the tries. NaN where the reward rates each image alone."""
    lr_consistency: float = math.nan
    accepted: bool = False
    reason: str = ""
    """Why it was kept, or not, or why the run stops here."""
    stop: str | None = None
    """The run ends with this round: `satisfied`, `unreadable` or `deterministic`."""
    pixels: str | None = None
    """Hash of this round's best try; None where there is no image."""
    file: Path | None = None
    """Its PNG, where the run has a folder."""
    held: Image.Image | None = field(default=None, repr=False)

    @property
    def image(self) -> Image.Image:
        """This round's best try, the whole image, RGB. Raises ValueError for a round that made none."""
        if self.held is not None:
            return self.held
        if self.file is None:
            raise ValueError(f"round {self.number} made no image: {self.reason}")
        return read_scored(self.file, self.pixels)

    def has_image(self) -> bool:
        """Return whether `image` has something to give."""
        return self.held is not None or self.file is not None


def row_of(round_: Round, folder: Path | None) -> dict[str, Any]:
    """Return a round as JSON values: NaN as null, the file relative to the folder."""
    row = {
        key: getattr(round_, key)
        for key in round_.__dataclass_fields__
        if key not in ("held", "attempts", "zoom_request")
    }
    row["zoom_request"] = None if round_.zoom_request is None else asdict(round_.zoom_request)
    row["attempts"] = [asdict(attempt) for attempt in round_.attempts]
    row["file"] = None if round_.file is None or folder is None else round_.file.relative_to(folder).as_posix()
    return plain(row)


def round_of(row: dict[str, Any], folder: Path) -> Round:
    """Return the round of a row. Raises ValueError where its image is missing."""
    zoom_request = row["zoom_request"]
    if zoom_request is not None:
        box = None if zoom_request["box"] is None else tuple(zoom_request["box"])
        zoom_request = ZoomRequest(**(zoom_request | {"box": box, "rating": as_float(zoom_request["rating"])}))
    attempts = tuple(
        Attempt(**(attempt | {key: as_float(attempt[key]) for key in ("reward", "lr_consistency")}))
        for attempt in row["attempts"]
    )
    file = None if row["file"] is None else folder / row["file"]
    if file is not None and not file.exists():
        raise ValueError(f"{file} is missing, though rounds.jsonl lists it: put it back or use another folder")
    numbers = {key: as_float(row.get(key)) for key in ("reward", "before", "lr_consistency")}
    region = None if row["region"] is None else tuple(row["region"])
    return Round(
        **(row | numbers | {"zoom_request": zoom_request, "attempts": attempts, "file": file, "region": region})
    )
