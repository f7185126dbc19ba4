"""Measuring a list of files one after another: what could not be measured never stops the others."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoomiqa_reward.images.listing import IMAGE_SUFFIXES
from zoomiqa_reward.images.loading import ImageError, conversions, load_image
from zoomiqa_reward.model.direct import NO_RATING
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.protocol import rating_to_score
from zoomiqa_reward.runs.json_lines import plain

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

BATCH = 8
"""Images in one forward pass with `--batched`."""
FIELDS = ("image", "rating", "std", "score_0_100", "valid", "error", "mode", "rounds", "model", "notes")
"""Of `RatedImage.as_json`, in their order."""


@dataclass(frozen=True, kw_only=True)
class RatedImage:
    """One image's line, as `zoomiqa score --json` prints it."""

    image: str
    rating: float = math.nan
    """1 bad .. 5 excellent; NaN (JSON null) where not valid."""
    std: float = math.nan
    valid: bool
    error: str | None = None
    mode: str
    rounds: int = 0
    """Rounds of text behind the rating; 0 for `direct`."""
    model: str
    notes: tuple[str, ...] = ()
    """What reading the file gave up: transparency, a profile, further frames."""

    @property
    def score_0_100(self) -> float:
        """The rating's affine map to 0..100; NaN where not valid."""
        return float(rating_to_score(self.rating)) if self.valid else math.nan

    def as_json(self) -> dict[str, Any]:
        """Return the documented fields in their documented order, NaN as None."""
        values = asdict(self) | {"score_0_100": self.score_0_100}
        fields: dict[str, Any] = plain({key: values[key] for key in FIELDS})
        return fields


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A record and, where words were asked for, the answer. The pixels are not kept: there may be thousands."""

    record: RatedImage
    assessment: Assessment | None = None


def measure(
    iqa: "ZoomIQA | RemoteZoomIQA", files: Sequence[str], *, mode: str, strict: bool = True, question: str | None = None
) -> Iterator[Measured]:
    """Yield one `Measured` a file, in order, each as soon as it is there.

    A file that cannot be read, and an image that the model refuses, gives `valid=False` and the error.
    """
    step = 1 if strict else BATCH
    for start in range(0, len(files), step):
        chunk = files[start : start + step]
        images = [_load(file) for file in chunk]
        readable = [image for image in images if not isinstance(image, ImageError)]
        answers = iter(_ask(iqa, readable, mode, strict, question))
        for file, image in zip(chunk, images, strict=True):
            measured = _measured(iqa.name, file, mode, image if isinstance(image, ImageError) else next(answers))
            yield replace(measured, record=replace(measured.record, notes=conversions(file)))


def _load(file: str) -> Tensor | ImageError:
    if not file:
        return ImageError("'': is an empty file name; leave it out")
    if os.path.isdir(file):
        return ImageError(f"{file}: {_why_nothing(file)}")
    try:
        return load_image(file)
    except ImageError as error:
        return error


def _why_nothing(folder: str) -> str:
    try:
        os.listdir(folder)
    except OSError as error:
        return f"is a folder that cannot be listed ({error.strerror}); allow reading it"
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    return f"is a folder without images ({suffixes}); subfolders are searched by `score --recursive`"


def _ask(
    iqa: "ZoomIQA | RemoteZoomIQA", images: list[Tensor], mode: str, strict: bool, question: str | None
) -> list[Any]:
    """Return for each image an Assessment, a (rating, std, valid, error) tuple, or the error that stands for it."""
    if not images:
        return []
    try:
        if mode == "reason":
            return list(iqa.assess(images, question=question, strict=strict))
        ratings = iqa.rate(images, mode="direct", strict=strict, question=question)
        rows = ratings.mean.tolist(), ratings.std.tolist(), ratings.valid.tolist(), ratings.errors
        return list(zip(*rows, strict=True))
    except (ValueError, torch.OutOfMemoryError) as error:
        if len(images) == 1:
            return [error]
    return [_ask(iqa, [image], mode, strict, question)[0] for image in images]  # so that one does not fail the rest


def _measured(model: str, file: str, mode: str, answer: Any) -> Measured:
    if isinstance(answer, Exception):
        reason = " ".join(str(answer).split()) or type(answer).__name__
        return Measured(record=RatedImage(image=file, valid=False, error=reason, mode=mode, model=model))
    if isinstance(answer, Assessment):
        record = RatedImage(
            image=file, rating=answer.rating, std=answer.std, valid=answer.valid, error=answer.error, mode=mode,
            rounds=len(answer.turns), model=model,
        )  # fmt: skip
        return Measured(record=record, assessment=answer)
    rating, std, valid, why = answer
    error = None if valid else why or NO_RATING
    return Measured(
        record=RatedImage(image=file, rating=rating, std=std, valid=valid, error=error, mode=mode, model=model)
    )
