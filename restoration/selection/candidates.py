"""Candidates of best-of-N: how each was made, its score and its rank; failures last."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from zoomiqa_reward.images.sheet_entry import rationale_line
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.turns import Box, PixelBox
from zoomiqa_reward.runs.digest import digest


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a candidate got its score: words and regions."""

    rationale: str
    """One line."""
    bbox: Box | None = None
    """Region that round 1 named, as fractions (left, top, right, bottom)."""
    crop_box: PixelBox | None = None
    """Region that round 2 examined, in pixels of the image."""

    @classmethod
    def of(cls, answer: Assessment | None) -> "Explanation | None":
        """Return the explanation in an assessment; None if there is no readable one."""
        if answer is None or not answer.valid or not answer.turns:
            return None
        crop = answer.turns[1].crop_box if len(answer.turns) > 1 else None
        return cls(rationale=rationale_line(answer), bbox=answer.turns[0].bbox, crop_box=crop)

    @classmethod
    def from_json(cls, row: dict[str, Any] | None) -> "Explanation | None":
        """Return what `dataclasses.asdict` and JSON made of one."""
        if row is None:
            return None
        boxes = {key: None if row[key] is None else tuple(row[key]) for key in ("bbox", "crop_box")}
        return cls(rationale=row["rationale"], **boxes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One restoration and its score. The score is that of the 8-bit image, as its PNG holds it."""

    index: int
    """Its index k in the run, from 0. With the seed of the run it determines `seed`."""
    seed: int
    restorer: str
    source: int
    """Index of its restorer and prompt in the pool, from 0."""
    prompt: str | None
    """None if the restorer takes none."""
    batch_position: int
    batch_size: int
    sharpness: float = 0.0
    """How much its input was sharpened (`vary_sharpness`); negative: softened."""
    score: float = math.nan
    """Value of the reward, higher is better; NaN if not valid."""
    std: float = math.nan
    valid: bool = False
    error: str | None = None
    """Why there is no score."""
    cascade_score: float = math.nan
    """Value of the cascade's reward; NaN if it did not score this candidate."""
    cascade_error: str | None = None
    explanation: Explanation | None = None
    """From a reward that answers in words; from the cascade if it scored this candidate."""
    rank: int | None = None
    """1 is best; None if not valid."""
    pixels: str | None = None
    """First 16 digits of the sha256 of the 8-bit image; None if it could not be made."""
    same_as: int | None = None
    """Index of an earlier candidate with the same image: a deterministic restorer is not run again."""
    parent: int | None = None
    """Index of the candidate whose noise was moved to make this one (`search_noise`); `seed` is that of the move."""
    seconds: float = 0.0
    """Wall-clock time to make it; its share of a batch."""
    file: Path | None = None
    """Its PNG file, if the run has a folder."""
    held: Image.Image | None = field(default=None, repr=False)

    @property
    def image(self) -> Image.Image:
        """The RGB image, from memory or from its PNG file.

        Raises ValueError if it was not kept or never made, and if the file holds another image than was scored.
        """
        if self.held is not None:
            return self.held
        if self.pixels is None:
            raise ValueError(f"candidate {self.index} has no image: {self.error}")
        if self.file is None:
            raise ValueError(f"candidate {self.index} was not kept, others were better; pass out=DIR or a larger keep=")
        return read_scored(self.file, self.pixels)

    def has_image(self) -> bool:
        """Return whether `image` is available."""
        return self.held is not None or (self.pixels is not None and self.file is not None)


def read_scored(file: Path, pixels: str | None) -> Image.Image:
    """Return the RGB image of a file. Raises ValueError unless it is the one that was scored. pixels: its digest."""
    why = f"{file}: is not the image that was made and scored"
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{why} ({error}); put it back or use another folder") from error
    if pixels is not None and pixels_digest(image) != pixels:
        raise ValueError(f"{why}; put it back or use another folder")
    return image


def pixels_digest(image: Image.Image) -> str:
    """Return 16 hex digits of the size and pixels of an RGB image."""
    return digest(f"{image.size}", image.tobytes())


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates in input order, with their ranks.

    Candidates that the cascade measured come first, by its score; then the others by the reward. Equal images share a
    rank. Of equal scores the earlier candidate ranks higher. A candidate that is not valid has no rank.

    >>> one = Candidate(index=0, seed=1, restorer="r", source=0, prompt=None, batch_position=0, batch_size=1)
    >>> [c.rank for c in ranked([replace(one, score=1.0, valid=True), one, replace(one, score=2.0, valid=True)])]
    [2, None, 1]
    """

    def strength(candidate: Candidate) -> tuple[bool, float, float]:
        has_cascade = not math.isnan(candidate.cascade_score)  # infinitely good is a score
        return has_cascade, candidate.cascade_score if has_cascade else 0.0, candidate.score

    first: dict[str | int, int] = {}
    for k, item in enumerate(candidates):
        first.setdefault(item.pixels or k, k)
    measured = [k for k, item in enumerate(candidates) if item.valid]
    measured.sort(key=lambda k: first[candidates[k].pixels or k])  # equal images stand side by side
    order = sorted(measured, key=lambda k: strength(candidates[k]), reverse=True)  # stable: the earlier one first
    result = [replace(item, rank=None) for item in candidates]
    last, rank = None, 0
    for position, k in enumerate(order, start=1):
        this = (candidates[k].pixels or k, strength(candidates[k]))
        rank = rank if this == last else position
        result[k], last = replace(result[k], rank=rank), this
    return result


def are_identical(candidates: Sequence[Candidate]) -> bool:
    """Return whether there are at least two images and all are the same."""
    images = [candidate.pixels for candidate in candidates if candidate.pixels is not None]
    return len(images) > 1 and len(set(images)) == 1
