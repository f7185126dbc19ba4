"""Quality map: where an image is good and where it is bad, from the ratings of overlapping views.

The image is cut into square views that overlap, each is rated as an image of its own, and every pixel gets the mean of
the views that cover it. A view weighs most at its centre and falls linearly towards its edges, so the map has no steps.
Detail that is smaller than a view is not resolved; the map states the side of a view as its resolution.

A view without content (`images.content`), such as clear sky, has no rating. A pixel that only such views cover is NaN.
"""

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.images.loading import ImageSource, load_image
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.pixels import factor_of
from zoomiqa_reward.model.ratings import Ratings
from zoomiqa_reward.model.turns import PixelBox
from zoomiqa_reward.rewards.argument_order import require_order
from zoomiqa_reward.rewards.base import Reward, ask, is_model, require_pointwise
from zoomiqa_reward.whole_numbers import whole_numbers

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

VIEW_FACTORS = 6
"""Side of a view in units of the model's factor, 28 or 32 px. At 4 nano confuses a sharp half with a blurred one."""
MAX_VIEWS = 144
"""Views of a map whose side is not given: the side grows with the image, so that a map costs at most this much."""
MIN_VIEW_PX = 16
PLAIN_FACTOR = 28
"""Unit of a view's side for a reward, whose network is unknown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QualityMap:
    """The map of one image; make it with `quality_map`."""

    values: Tensor
    """[height, width] float32 in pixels of the image, on the scale of the ratings; NaN where no view has a rating."""
    boxes: tuple[PixelBox, ...]
    """(left, top, right, bottom) of each view, row by row."""
    ratings: Ratings
    """One entry per view, in the order of `boxes`; NaN with the reason in `errors` where a view has no rating."""
    resolution_px: int
    """Longer side of a view: two places nearer than that share a view, and smaller detail is not resolved."""
    step_px: tuple[int, int]
    """Largest distance (down, across) between neighbouring views; 0 where a side holds one view."""

    @property
    def valid(self) -> bool:
        """Whether any view has a rating."""
        return bool(self.ratings.valid.any())

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value of the map; NaN where it has none."""
        values = self.values.detach()
        measured = values[~values.isnan()]
        return (float(measured.min()), float(measured.max())) if len(measured) else (math.nan, math.nan)

    @property
    def mean(self) -> float:
        """Mean over the pixels that have a value: not the rating of the image, which also sees the whole."""
        return float(self.values.detach().nanmean())

    def lowest(self) -> int | None:
        """Return the index of the view with the lowest rating, the first of equals; None where none is rated."""
        ratings = self.ratings.mean.detach()
        return int(torch.where(self.ratings.valid, ratings, math.inf).argmin()) if self.valid else None


@canonical
def quality_map(
    iqa_or_reward: "ZoomIQA | RemoteZoomIQA | Reward", image: ImageSource, *, view_px: int | None = None,
    strict: bool = False, grad: bool = False, batch_size: int = 8, question: str | None = None,
) -> QualityMap:  # fmt: skip
    """Return the quality map of one image of any size.

    The rater is a ZoomIQA, which rates each view by `direct`, or any Reward that needs nothing but the image.
    view_px: side of a square view, at least 16; views overlap by half of it or more. None: six times the model's factor
    (28 or 32 px), and larger where the image would take more than 144 views. A view is never larger than the image.
    strict, batch_size, question: as in `ZoomIQA.rate`; a Reward ignores them. grad: keep the graph from the map to the
    image, a tensor that requires a gradient; NaN pixels have none.
    Raises ImageError for an image that cannot be read, ValueError for a view that is too small and for a Reward that
    compares images or needs more than one; TypeError for a number that is not whole.
    """
    require_order("quality_map(iqa_or_reward, image)", judges={"iqa_or_reward": iqa_or_reward}, images={"image": image})
    pixels = load_image(image)
    _, height, width = pixels.shape
    iqa: Any = iqa_or_reward if is_model(iqa_or_reward) else None
    factor = PLAIN_FACTOR
    if hasattr(iqa, "checkpoint"):
        factor = factor_of(iqa.checkpoint.image_processor)
    elif (of_server := getattr(iqa, "factor_px", None)) is not None:
        factor = of_server
    side = _side_for(height, width, factor) if view_px is None else whole_numbers(view_px=view_px)[0]
    if side < MIN_VIEW_PX:
        raise ValueError(f"view_px={view_px}: a view of less than {MIN_VIEW_PX} px shows nothing; pass a larger one")
    boxes = plan_boxes(height, width, side)
    views = [pixels[:, top:bottom, left:right] for left, top, right, bottom in boxes]
    if iqa is not None:
        more: dict[str, bool] = {"grad": True} if grad else {}
        ratings = iqa.rate(views, mode="direct", strict=strict, batch_size=batch_size, question=question, **more)
    else:
        ratings = _ask_reward(cast(Reward, iqa_or_reward), views, grad=grad)
    return QualityMap(
        values=blend(ratings.mean, boxes, height, width), boxes=boxes, ratings=ratings,
        resolution_px=max(min(side, height), min(side, width)),
        step_px=(_step({top for _, top, _, _ in boxes}), _step({left for left, _, _, _ in boxes})),
    )  # fmt: skip


def plan_boxes(height: int, width: int, side: int) -> tuple[PixelBox, ...]:
    """Return the views of an image row by row: evenly spread from edge to edge, overlapping by half or more.

    >>> plan_boxes(40, 30, 40)
    ((0, 0, 30, 40),)
    >>> plan_boxes(20, 40, 20)
    ((0, 0, 20, 20), (10, 0, 30, 20), (20, 0, 40, 20))
    """
    tops, lefts = _offsets(height, side), _offsets(width, side)
    return tuple((left, top, min(left + side, width), min(top + side, height)) for top in tops for left in lefts)


def blend(ratings: Tensor, boxes: tuple[PixelBox, ...], height: int, width: int) -> Tensor:
    """Return [height, width]: at each pixel the weighted mean of the views there, NaN where none has a rating.

    A view's weight is the product of two triangles over its sides, highest at its centre and above 0 at its edges.
    """
    total = ratings.new_zeros(height, width)
    weights = ratings.new_zeros(height, width)
    for rating, (left, top, right, bottom) in zip(ratings, boxes, strict=True):
        if bool(rating.detach().isnan()):
            continue
        weight = _triangle(bottom - top, ratings)[:, None] * _triangle(right - left, ratings)[None]
        weights[top:bottom, left:right] += weight
        total[top:bottom, left:right] = total[top:bottom, left:right] + rating * weight
    # The gradient of a division by zero would be NaN for the whole map, so what has no weight is divided by 1.
    return torch.where(weights > 0, total / torch.where(weights > 0, weights, 1.0), math.nan)


def _ask_reward(reward: Reward, views: list[Tensor], *, grad: bool) -> Ratings:
    """Return a reward's values of the views; those without content are not measured."""
    require_pointwise(reward, "the views of a map are compared with one another")
    if reward.needs:
        raise ValueError(
            f"reward {reward.name!r} needs {', '.join(sorted(reward.needs))}, but a map is made of one image: "
            "use a reward that needs nothing else"
        )
    errors = [contentless(view) for view in views]
    shown = [index for index, why in enumerate(errors) if why is None]
    value = torch.full((len(views),), math.nan)
    std = value.clone()
    if shown:
        scores = ask(reward, [views[index] for index in shown], grad=grad)
        rows = torch.tensor(shown, device=scores.value.device)
        value = value.to(scores.value).index_copy(0, rows, scores.value)
        std = std.to(scores.std).index_copy(0, rows, scores.std)
        for row, index in enumerate(shown):
            errors[index] = None if bool(scores.valid[row]) else scores.reason(row, reward.name)
    return Ratings(value=value, valid=~value.detach().isnan(), std=std, std_kind="none", errors=tuple(errors))


def _offsets(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    # Spans of one step that cover what is left of the first view are the fewest with an overlap of half.
    step = max(1, side // 2)
    count = 1 + -(-(length - side) // step)
    return [index * (length - side) // (count - 1) for index in range(count)]


def _side_for(height: int, width: int, factor: int) -> int:
    side = VIEW_FACTORS * factor
    while len(_offsets(height, side)) * len(_offsets(width, side)) > MAX_VIEWS:
        side += factor
    return side


def _step(offsets: set[int]) -> int:
    ordered = sorted(offsets)
    return max((after - before for before, after in itertools.pairwise(ordered)), default=0)


def _triangle(length: int, like: Tensor) -> Tensor:
    centres = torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
    return 1 - (centres / (length / 2) - 1).abs()
