"""`zoomiqa rank --lq` and `--reference`: ratings, each judged together with another image, in one order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from zoomiqa_reward.cli import output
from zoomiqa_reward.cli.ranking_output import Placed
from zoomiqa_reward.images.loading import ImageSource, ImageSources, load_image, split_images
from zoomiqa_reward.model import ranking
from zoomiqa_reward.model.measuring import Measured
from zoomiqa_reward.model.ratings import Ratings, Scores
from zoomiqa_reward.rewards.base import Reward, ask
from zoomiqa_reward.rewards.find import TOGETHER, judged_together
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward
from zoomiqa_reward.runs.json_lines import plain

if TYPE_CHECKING:
    from zoomiqa_reward.model.zoomiqa import ZoomIQA


OPTION = {"conditioned": "lq", "referenced": "reference"}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One image with the value that ranks it."""

    measured: Measured
    value: float = math.nan
    """Of `conditioned` or `referenced`, on the scale of that reward; NaN where not valid."""
    fidelity: float = math.nan
    """0..1: how much the image agrees with the other one."""
    error: str | None = None
    """Why there is no value."""

    @property
    def valid(self) -> bool:
        """Whether there is a value."""
        return math.isfinite(self.value)


def other_image(lq: str | None, reference: str | None) -> tuple[str, str] | None:
    """Return (`conditioned` or `referenced`, the file) of the two options; None without both.

    Raises ValueError if both are given, ImageError for a file that cannot be read, ValueError without the extra.
    """
    if lq is not None and reference is not None:
        raise ValueError("--lq and --reference: give one of them; a clean reference says more than the input")
    file = reference if lq is None else lq
    if file is None:
        return None
    load_image(file)
    return ("referenced" if lq is None else "conditioned"), file


def judge(
    iqa: "ZoomIQA", measured: Sequence[Measured], other: str, file: str, *, mode: str, question: str | None
) -> list[Judged]:
    """Return the images with their values. No image is rated again; the input is rated once."""
    rating = ZoomIQAReward(iqa, mode, question=question)
    quality = _Remembered(rating, {item.record.image: (item.record.rating, item.record.std) for item in measured})
    reward = judged_together(cast(Reward, quality), other)
    return [_judged(reward, item, TOGETHER[other], file) for item in measured]


def show(judged: Sequence[Judged], other: str, file: str, *, as_json: bool) -> tuple[list[Placed], float]:
    """Print the images best first; return their places and the gap between the first two values (or NaN)."""
    values = torch.tensor([item.value for item in judged])
    nothing = torch.full_like(values, math.nan)
    result = ranking.ranking_of(Ratings(value=values, std=nothing, valid=~values.isnan(), std_kind="none"))
    shared = {index: group[0] for group in result.ties for index in group}
    places = {index: number for number, index in enumerate(result.order, start=1)}
    ordered = [judged[index] for index in result.order]
    placed = [
        Placed(measured=judged[index].measured, rank=places[shared.get(index, index)] if judged[index].valid else None)
        for index in result.order
    ]
    records = [placement.measured.record for placement in placed]
    if as_json:
        for placement, item, record in zip(placed, ordered, records, strict=True):
            output.json_line(record.as_json() | plain(
                {"rank": placement.rank, OPTION[other]: file, "value": item.value, "fidelity": item.fidelity,
                 "not_ranked": item.error}
            ))  # fmt: skip
    else:
        output.table(
            records, ["-" if placement.rank is None else str(placement.rank) for placement in placed],
            columns={other: [item.value for item in ordered], "fidelity": [item.fidelity for item in ordered]},
            reasons=[item.error for item in ordered],
        )  # fmt: skip
    return placed, result.gap


def title(count: int, model: str, other: str, file: str) -> str:
    """Return the title of the contact sheet."""
    what = "the input" if other == "conditioned" else "the reference"
    return (
        f"{count} images, best first by the rating together with {what} {Path(file).name}. Shown: rating by {model}, 1 "
        "bad to 5 excellent, ± standard deviation."
    )


def _judged(reward: Reward, item: Measured, needed: str, file: str) -> Judged:
    if not item.record.valid:
        return Judged(measured=item, error=item.record.error)
    try:
        lq, hr = ([file], None) if needed == "lq" else (None, [file])
        scores = ask(reward, [item.record.image], lq=lq, hr=hr)
    except ValueError as error:  # another size: the others are still ranked
        return Judged(measured=item, error=str(error))
    listed = scores.info.get("fidelity")
    fidelity = float(listed[0]) if isinstance(listed, list) else math.nan
    if not bool(scores.valid[0]):
        return Judged(measured=item, fidelity=fidelity, error=scores.errors[0] or "not measured")
    return Judged(measured=item, value=float(scores.value[0]), fidelity=fidelity)


class _Remembered:
    """A reward that returns the ratings of known files, and rates every other image once."""

    def __init__(self, reward: ZoomIQAReward, rated: dict[str, tuple[float, float]]) -> None:
        self.reward, self.rated = reward, dict(rated)
        self.name, self.score_range, self.needs = reward.name, reward.score_range, reward.needs
        self.deterministic, self.differentiable = reward.deterministic, False
        self.groupwise = False

    def __call__(
        self, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Scores:  # fmt: skip
        rows, errors = [], []
        for source in split_images(images):
            rating, why = self._rating(source)
            rows.append(rating)
            errors.append(why)
        value, std = torch.tensor(rows).T
        return Scores(value=value, valid=~value.isnan(), std=std, errors=tuple(errors))

    def _rating(self, source: ImageSource) -> tuple[tuple[float, float], str | None]:
        if isinstance(source, str) and source in self.rated:
            return self.rated[source], None
        scores = ask(self.reward, [source])
        rating = float(scores.value[0]), float(scores.std[0])
        if isinstance(source, str) and bool(scores.valid[0]):
            self.rated[source] = rating
        return rating, scores.errors[0]
