"""What a contact sheet says about an image: its numbers, words and regions, and which images are tied."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the commands read the tie below before they show --help, which must not wait for torch
    from zoomiqa_reward.model.ratings import Assessment
    from zoomiqa_reward.model.turns import Box, PixelBox

RATING_TIE = 0.01
"""Ratings as near as this are ties."""
UNREADABLE = "the answer in words could not be read"


@dataclass(frozen=True, kw_only=True)
class SheetEntry:
    """What stands under, and on, one image."""

    name: str
    rating: float = math.nan
    """Higher is better, and the same measure for all images of a sheet; NaN where not valid."""
    std: float = math.nan
    second: float = math.nan
    """A second measure, such as the rating of the full answer; NaN where it was not asked for."""
    rank: int | None = None
    """1 is best; equal numbers are ties. Without any, the higher rating comes first."""
    valid: bool = True
    error: str | None = None
    """Why there is no rating."""
    bbox: "Box | None" = None
    """Region that round 1 named, as fractions (left, top, right, bottom)."""
    crop_box: "PixelBox | None" = None
    """Region that round 2 looked at, in pixels of the image."""
    rationale: str = ""
    note: str = ""
    """How the image was made, or another remark; one line or two."""


def entry_of(
    name: str,
    *,
    rating: float,
    std: float = math.nan,
    second: float = math.nan,
    rank: int | None = None,
    error: str | None = None,
    assessment: "Assessment | None" = None,
) -> SheetEntry:
    """Return the entry of a rated image, with the reason and the regions of its assessment where there is one.

    A NaN rating is one that could not be measured. The rating shown is the one given, not the assessment's; a note
    says so where its words could not be read.

    >>> entry_of("b", rating=math.nan, error="truncated").valid
    False
    """
    turns = assessment.turns if assessment is not None else ()
    return SheetEntry(
        name=name, rating=rating, std=std, second=second, rank=rank, valid=not math.isnan(rating), error=error,
        bbox=turns[0].bbox if turns else None,
        crop_box=turns[1].crop_box if len(turns) > 1 else None,
        rationale=rationale_line(assessment) if assessment is not None else "",
        note=UNREADABLE if assessment is not None and not assessment.valid else "",
    )  # fmt: skip


def rationale_line(assessment: "Assessment") -> str:
    """Return in one line what is wrong, where and how much: the last round's first section, its summary.

    The later sections say what to do and what was decided. Text that could not be read is no explanation: the line
    is empty for an assessment that is not valid, and for a round that holds neither a section nor a whole
    `<think>...</think>`.
    """
    if not assessment.valid or not assessment.turns:
        return ""
    last = assessment.turns[-1]
    sections = [" ".join(body.split()) for body in last.sections.values() if body.strip()]
    if sections:
        return sections[0]
    thought = re.search(r"<think>(.*?)</think>", last.text, re.DOTALL)
    return " ".join(thought[1].split()) if thought else ""


def best_first(entries: Sequence[SheetEntry]) -> list[int]:
    """Return the indices of the entries, best first: by rank, then by rating; those without a rating come last."""

    def order(entry: SheetEntry) -> tuple[bool, float, bool, float]:
        rank = math.inf if entry.rank is None else entry.rank
        is_rated = entry.valid and not math.isnan(entry.rating)
        return not entry.valid, rank, not is_rated, -entry.rating if is_rated else 0.0

    return sorted(range(len(entries)), key=lambda k: order(entries[k]))


def places(entries: Sequence[SheetEntry], tie: float, *, is_second_first: bool = False) -> list[str]:
    """Return what to write for the place of each entry, given best first: `#3`, or `#1-2, tied` for a tie.

    Neighbours are tied if they share a rank, or if the measure that put them in order differs by at most `tie`. That is
    the rating; with `is_second_first` it is the second measure, and the rating only where the second ones are equal.

    >>> entries = [SheetEntry(name="a", rating=3.004), SheetEntry(name="b", rating=3.0), SheetEntry(name="c", rating=2)]
    >>> places(entries, 0.01)
    ['#1-2, tied', '#1-2, tied', '#3']
    """
    groups: list[list[int]] = []
    for k, entry in enumerate(entries):
        if k and entry.valid and _are_tied(entries[k - 1], entry, tie, is_second_first):
            groups[-1].append(k)
        else:
            groups.append([k])
    shown = [""] * len(entries)
    for group in groups:
        for k in group:
            if not entries[k].valid:
                shown[k] = "not rated"
            elif len(group) == 1:
                shown[k] = f"#{k + 1}"
            else:
                shown[k] = f"#{group[0] + 1}-{group[-1] + 1}, tied"
    return shown


def _are_tied(better: SheetEntry, worse: SheetEntry, tie: float, is_second_first: bool) -> bool:
    if better.rank is not None and better.rank == worse.rank:
        return True
    if is_second_first and math.isnan(better.second) != math.isnan(worse.second):
        return False
    values = better.rating, worse.rating
    if is_second_first and not math.isnan(better.second) and better.second != worse.second:
        values = better.second, worse.second
    if values[0] == values[1]:  # both may be infinite
        return True
    return abs(values[0] - values[1]) <= tie + 1e-6  # float32: two ratings exactly `tie` apart are tied
