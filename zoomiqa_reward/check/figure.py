"""The check in one image: what was shown, what the reward said, and where it goes the wrong way.

Each row is a kind of damage: the middle of the first photograph step by step, at its own pixels (nothing is resampled),
with the mean value over the photographs that have one beneath. It is red where it does not fall from the step before,
or is missing; beneath an emptied image, where the reward prefers it to the honest candidate on some photograph, or
rates it although it has no content. At the end of the row, all photographs as lines. Pillow alone, with the font that
it bundles.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoomiqa_reward.check.degenerate import empty_rows
from zoomiqa_reward.check.report import CheckReport, number, percent
from zoomiqa_reward.check.tallies import mean
from zoomiqa_reward.check.verdict import FIT, UNFIT
from zoomiqa_reward.images.drawing import BACK, BAD, CARD, GOOD, INK, LINE, MARK, MUTED, Colour, polyline
from zoomiqa_reward.images.lettering import draw_text, text_width
from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.runs.outputs import write_figure

CELL_PX = 144
"""Side of the square cut from the middle of each image."""
CAPTION_PX = 40
HEAD_PX = 56
LABEL_PX = 128
GAP_PX = 10


def ladder_figure(
    report: CheckReport, path: str | os.PathLike[str] | None = None, *, overwrite: bool = False
) -> Image.Image:
    """Return the figure as an RGB image and, with `path`, write it there (by its suffix).

    Raises OutputError where a file stands there that this program did not make (unless `overwrite`).
    """
    rows = _rows(report)
    columns = max(len(row.labels) for row in rows) + 1  # the graph
    width = LABEL_PX + columns * (CELL_PX + GAP_PX) + GAP_PX
    row_px = CELL_PX + CAPTION_PX + GAP_PX
    figure = Image.new("RGB", (width, HEAD_PX + len(rows) * row_px + GAP_PX), BACK)
    draw = ImageDraw.Draw(figure)
    _head(draw, report)
    every = [value for row in rows for values in row.rows for value in values if math.isfinite(value)]
    scale = (min(every), max(every)) if every else (0.0, 1.0)
    for index, row in enumerate(rows):
        top = HEAD_PX + index * row_px
        _label(draw, row, top)
        for step, image in enumerate(row.images):
            left = LABEL_PX + step * (CELL_PX + GAP_PX)
            _step(figure, to_pil(image), (left, top))
            _caption(draw, row, step, (left, top + CELL_PX))
        _graph(draw, row, scale, (LABEL_PX + (columns - 1) * (CELL_PX + GAP_PX), top))
    if path is not None:
        write_figure(figure, path, overwrite=overwrite)
    return figure


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What one row of the figure shows."""

    kind: str
    about: tuple[str, ...]
    """Lines beneath the kind."""
    labels: tuple[str, ...]
    images: tuple[Tensor, ...]
    """Of the first photograph."""
    means: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    is_wrong: tuple[bool, ...]
    """By step: whether the reward goes the wrong way there."""


def _rows(report: CheckReport) -> list[_Row]:
    measures, shown = report.measures, report.shown
    drawn_rows = []
    for ladder, images in [
        *((ladder, shown.ladders[ladder.kind]) for ladder in measures.ladders),
        *((ladder, shown.worsened[ladder.kind]) for ladder in measures.worsened),
    ]:
        about = (f"pairs {percent(ladder.pairs_in_order)}", f"steps {percent(ladder.steps_in_order)}", "in order")
        # Of the photographs that have both values: each mean may be over others.
        rises = [mean(row[k] - row[k - 1] for row in ladder.rows) for k in range(1, len(ladder.labels))]
        is_wrong = (not math.isfinite(ladder.means[0]), *(not rise < 0 for rise in rises))
        drawn_rows.append(_Row(kind=ladder.kind, about=about, labels=ladder.labels, images=images, means=ladder.means,
                          rows=ladder.rows, is_wrong=is_wrong))  # fmt: skip
    emptied = empty_rows(shown.hr, shown.enlarged)
    for row in measures.empty:
        is_wrong = tuple(
            liked > 0 or (rated > 0 and not measures.compares)
            for liked, rated in zip(row.preferred, row.rated, strict=True)
        )
        about = (f"liked {percent(mean(row.preferred[1:]))}", f"rated {percent(mean(row.rated))}", "0 % wanted")
        drawn_rows.append(_Row(kind=row.kind, about=about, labels=row.labels, images=emptied[row.kind], means=row.means,
                          rows=row.rows, is_wrong=is_wrong))  # fmt: skip
    return drawn_rows


def _head(draw: ImageDraw.ImageDraw, report: CheckReport) -> None:
    draw_text(draw, (GAP_PX, 8), report.reward, 18, INK)
    x = GAP_PX + text_width(report.reward, 18) + 24
    for verdict in report.verdicts:
        colour = {FIT: GOOD, UNFIT: BAD}.get(verdict.verdict, MARK)
        text = f"{verdict.use}: {verdict.verdict}"
        draw_text(draw, (x, 8), text, 18, colour)
        x += text_width(text, 18) + 24
    count = report.measures.num_photographs
    is_whole = report.measures.measured_share == 1
    of_those = "" if is_whole else ", of those that have a value"
    about = f"images: the middle of {Path(report.shown.name).name}; numbers: mean over {count} photographs{of_those}"
    draw_text(draw, (GAP_PX, 33), about, 13, MUTED)


def _label(draw: ImageDraw.ImageDraw, row: _Row, top: int) -> None:
    small = ImageFont.load_default(13)
    draw.text((GAP_PX, top + 2), row.kind, font=ImageFont.load_default(16), fill=INK)
    for index, line in enumerate(row.about):
        draw.text((GAP_PX, top + 28 + 18 * index), line, font=small, fill=MUTED)


def _step(figure: Image.Image, image: Image.Image, at: tuple[int, int]) -> None:
    width, height = (min(side, CELL_PX) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    figure.paste(CARD, (*at, at[0] + CELL_PX, at[1] + CELL_PX))
    middle = image.crop((left, top, left + width, top + height))
    figure.paste(middle, (at[0] + (CELL_PX - width) // 2, at[1] + (CELL_PX - height) // 2))


def _caption(draw: ImageDraw.ImageDraw, row: _Row, step: int, at: tuple[int, int]) -> None:
    draw.text((at[0], at[1] + 2), row.labels[step], font=ImageFont.load_default(12), fill=MUTED)
    colour = BAD if row.is_wrong[step] else INK
    value = row.means[step]
    text = number(value) if math.isfinite(value) else "no value"
    draw.text((at[0], at[1] + 17), text, font=ImageFont.load_default(16), fill=colour)


def _graph(draw: ImageDraw.ImageDraw, row: _Row, scale: tuple[float, float], at: tuple[int, int]) -> None:
    """Draw every photograph's values, and their mean, over the steps; the scale is the same in every row."""
    draw.rectangle((*at, at[0] + CELL_PX - 1, at[1] + CELL_PX - 1), fill=CARD)
    for values in row.rows:
        _values(draw, values, scale, at, LINE, 1)
    _values(draw, row.means, scale, at, MARK if any(row.is_wrong) else GOOD, 3)


def _values(
    draw: ImageDraw.ImageDraw,
    values: Sequence[float],
    scale: tuple[float, float],
    at: tuple[int, int],
    colour: Colour,
    width: int,
) -> None:
    low, high = scale
    inside = CELL_PX - 2 * GAP_PX
    points = [
        (at[0] + GAP_PX + inside * step / (len(values) - 1),
         at[1] + GAP_PX + inside * (1 - (value - low) / ((high - low) or 1.0)))
        if math.isfinite(value) else None
        for step, value in enumerate(values)
    ]  # fmt: skip
    polyline(draw, points, colour, width)
