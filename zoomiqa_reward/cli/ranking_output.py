"""Ranking and contact sheet of `zoomiqa rank`."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from PIL import Image

from zoomiqa_reward.images.contact_sheet import SheetEntry, SheetWords, contact_sheet, entry_of
from zoomiqa_reward.images.listing import short_names
from zoomiqa_reward.images.loading import ImageError, ImageSources, load_image, to_pil
from zoomiqa_reward.model import ranking
from zoomiqa_reward.model.measuring import Measured
from zoomiqa_reward.model.ratings import Ratings

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One image's place in a ranking."""

    measured: Measured
    rank: int | None
    """1 is best. Tied images share a number. None if the image was not measured."""


@dataclass(frozen=True)
class _Known:
    """Replaces the model if the ratings are already known, so that one function ranks."""

    ratings: Ratings

    def rate(self, images: ImageSources, /, mode: str, strict: bool) -> Ratings:
        return self.ratings


def order_by_rating(measured: Sequence[Measured]) -> tuple[list[Placed], float]:
    """Return the images best first, unmeasured ones last, and the gap between the first two (or NaN)."""
    records = [item.record for item in measured]
    ratings = Ratings(
        value=torch.tensor([record.rating for record in records]),
        std=torch.tensor([record.std for record in records]),
        valid=torch.tensor([record.valid for record in records]),
        std_kind="token" if records and records[0].mode == "direct" else "samples",
    )
    result = ranking.rank(_Known(ratings), ())
    shared = {index: group[0] for group in result.ties for index in group}
    places = {index: number for number, index in enumerate(result.order, start=1)}
    placed = [
        Placed(measured=measured[index], rank=places[shared.get(index, index)] if records[index].valid else None)
        for index in result.order
    ]
    return placed, result.gap


def explain_placed(
    iqa: "ZoomIQA | RemoteZoomIQA", placed: Sequence[Placed], question: str | None = None
) -> Iterator[Placed]:
    """Yield the places with an assessment in words of each image; missing ones are made."""
    for placement in placed:
        measured = placement.measured
        if measured.record.valid and measured.assessment is None:
            assessment = iqa.assess([measured.record.image], question=question, strict=True)[0]
            measured = replace(measured, assessment=assessment)
        yield replace(placement, measured=measured)


def write_sheet(
    placed: Sequence[Placed], path: str | os.PathLike[str], *, overwrite: bool = False, title: str | None = None
) -> None:
    """Write the contact sheet of the images, in this order. Raises OSError, OutputError.

    title: says what the order is by, if it is not by the rating.
    """
    records = [placement.measured.record for placement in placed]
    names = short_names([record.image for record in records])
    entries = [_entry(placement, name) for placement, name in zip(placed, names, strict=True)]
    how = " by the full answer in words" if records and records[0].mode == "reason" else ""
    scale = "1 bad to 5 excellent, ± standard deviation"
    title = title or f"{len(placed)} images, best first. Rating by {records[0].model}{how}: {scale}."
    openers = [partial(_image, record.image) for record in records]
    contact_sheet(openers, entries, path, words=SheetWords(title=title), overwrite=overwrite)


def _entry(placement: Placed, name: str) -> SheetEntry:
    """Return what stands under an image; the rating of the full answer is a second number where it is another one."""
    record, assessment = placement.measured.record, placement.measured.assessment
    second = assessment.rating if record.mode == "direct" and assessment is not None else math.nan
    return entry_of(
        name, rating=record.rating, std=record.std, rank=placement.rank, error=record.error,
        second=second, assessment=assessment,
    )  # fmt: skip


def _image(file: str) -> Image.Image | None:
    try:
        return to_pil(load_image(file))
    except ImageError:
        return None
