"""Figures of a tuning run: reward and held-out signal over rounds with axes, and the looks at the first images."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from zoomiqa_reward.images.drawing import Colour, polyline, ticks
from zoomiqa_reward.images.lettering import draw_text, text_width
from zoomiqa_reward.images.loading import load_image, save_png, to_pil
from zoomiqa_reward.runs.outputs import part_folder

PANEL_PX = (760, 230)
FRAME_PX = (70, 34, 24, 12)
"""Left, top, right, bottom of a panel's plot."""
FOOT_PX = 44
LABEL_PX = 24
"""Least distance of the rounds written below the plot."""
STRIP_IMAGES, STRIP_PX, STRIP_LOOKS = 3, 128, 12
_BACK, _INK, _MUTED, _GRID, _FIRST, _SECOND, _ALARM = (
    (255, 255, 255), (30, 30, 34), (120, 122, 128), (226, 228, 232), (31, 98, 180), (200, 96, 24), (205, 40, 40),
)  # fmt: skip


def plot_reward(rows: Sequence[dict[str, float]], held_out: str, file: Path) -> Path:
    """Write the reward and one held-out signal over rounds, each with its own axis; a look with an alarm is marked.

    rows: one a look, with `round`, `reward`, the signal and `alarms` (their number). Gaps where nothing was measured.
    """
    width, height = PANEL_PX
    canvas = Image.new("RGB", (width, 2 * height + FOOT_PX), _BACK)
    pen = ImageDraw.Draw(canvas)
    rounds = [float(row["round"]) for row in rows]
    for index, (name, colour) in enumerate((("reward", _FIRST), (held_out, _SECOND))):
        box = (FRAME_PX[0], index * height + FRAME_PX[1], width - FRAME_PX[2], (index + 1) * height - FRAME_PX[3])
        for row, x in zip(rows, _places(rounds, box), strict=True):
            if row.get("alarms"):
                pen.line([(x, box[1]), (x, box[3])], fill=_ALARM, width=1)
        _panel(pen, rounds, [row.get(name, math.nan) for row in rows], box, colour)
        what = name if index == 0 else f"{name}, which no reward saw"
        draw_text(pen, (box[0], box[1] - 22), what, 15, colour)
    _round_labels(pen, rounds, box)
    return save_png(canvas, file)


def _panel(
    pen: ImageDraw.ImageDraw, rounds: Sequence[float], values: Sequence[float], box: tuple[int, ...], colour: Colour
) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        draw_text(pen, (box[0] + 12, box[1] + 12), "not measured", 13, _MUTED)
        pen.rectangle(box, outline=_MUTED)
        return
    marks = ticks(min(finite), max(finite))
    low, high = marks[0][0], marks[-1][0]

    def y_of(value: float) -> float:
        return box[3] - (box[3] - box[1]) * (value - low) / (high - low)

    for value, label in marks:
        pen.line([(box[0], y_of(value)), (box[2], y_of(value))], fill=_GRID)
        draw_text(pen, (box[0] - 6 - text_width(label, 13), y_of(value) - 8), label, 13, _INK)
    pen.rectangle(box, outline=_MUTED)
    points = [
        (x, y_of(value)) if math.isfinite(value) else None
        for x, value in zip(_places(rounds, box), values, strict=True)
    ]
    polyline(pen, points, colour, 2)
    for point in points:
        if point:
            pen.ellipse([point[0] - 3, point[1] - 3, point[0] + 3, point[1] + 3], fill=colour)


def _round_labels(pen: ImageDraw.ImageDraw, rounds: Sequence[float], box: tuple[int, ...]) -> None:
    places, free = _places(rounds, box), 0.0
    for number, x in zip(rounds, places, strict=True):
        if x < free or places[-1] - LABEL_PX < x < places[-1]:  # it would overlap with the one before, or the last
            continue
        free = x + LABEL_PX
        draw_text(pen, (x - text_width(f"{number:g}", 13) / 2, box[3] + 6), f"{number:g}", 13, _INK)
    caption = "round (red line: alarm)"
    draw_text(pen, (box[2] - text_width(caption, 13), box[3] + 28), caption, 13, _MUTED)


def _places(rounds: Sequence[float], box: tuple[int, ...]) -> list[float]:
    first, last = rounds[0], rounds[-1]
    return [box[0] + 12 + (box[2] - box[0] - 24) * (value - first) / ((last - first) or 1.0) for value in rounds]


def save_look(images: Sequence[Tensor], folder: Path, number: int) -> Path:
    """Write the first candidate of the first validation images, side by side, as the look of round `number`."""
    part_folder(folder)
    cells = []
    for row in images[:STRIP_IMAGES]:
        height, width = (min(STRIP_PX, side) for side in row.shape[-2:])
        cell = torch.ones(3, STRIP_PX, STRIP_PX)
        cell[:, :height, :width] = row[0, :, :height, :width].clamp(0, 1)
        cells.append(cell)
    return save_png(to_pil(torch.cat(cells, dim=2)), folder / f"{number:05d}.png")


def draw_strip(folder: Path, file: Path) -> Path:
    """Write all looks of a folder below each other, at most 12, the first and the last among them."""
    looks = sorted(folder.glob("*.png"))
    if len(looks) > STRIP_LOOKS:
        looks = [looks[round(k * (len(looks) - 1) / (STRIP_LOOKS - 1))] for k in range(STRIP_LOOKS)]
    images = [to_pil(load_image(look)) for look in looks]
    label_px = 64
    sheet = Image.new("RGB", (label_px + max(p.width for p in images), STRIP_PX * len(images)), _BACK)
    pen = ImageDraw.Draw(sheet)
    for index, (look, image) in enumerate(zip(looks, images, strict=True)):
        sheet.paste(image, (label_px, STRIP_PX * index))
        draw_text(pen, (6, STRIP_PX * index + 6), f"round {int(look.stem)}", 13, _INK)
    return save_png(sheet, file)
