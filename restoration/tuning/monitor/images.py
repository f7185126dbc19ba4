"""What the monitor draws: the reward against a held-out metric, and a strip of the same pictures over time."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoomiqa_reward.images.loading import load_image, save_png, to_pil

SIZE_PX = (760, 420)
FRAME_PX = (70, 46, 24, 40)
"""Left, top, right, bottom of the plot."""
LABEL_PX = 24
"""Least distance of the rounds written below the plot."""
STRIP_IMAGES, STRIP_PX, STRIP_LOOKS = 3, 128, 12
_BACK, _INK, _MUTED, _FIRST, _SECOND, _ALARM = (
    (255, 255, 255), (30, 30, 34), (150, 152, 158), (31, 98, 180), (200, 96, 24), (205, 40, 40),
)  # fmt: skip


def plot_reward(rows: Sequence[dict[str, float]], held_out: str, file: Path) -> Path:
    """Write the reward and one held-out signal over rounds, each on its own scale; a look with an alarm is marked.

    rows: one a look, with `round`, `reward`, the signal and `alarms` (their number). Gaps where nothing was measured.
    """
    canvas = Image.new("RGB", SIZE_PX, _BACK)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    left, top, right, bottom = FRAME_PX
    box = (left, top, SIZE_PX[0] - right, SIZE_PX[1] - bottom)
    pen.rectangle(box, outline=_MUTED)
    rounds = [float(row["round"]) for row in rows]
    for place, (name, colour) in enumerate((("reward", _FIRST), (held_out, _SECOND))):
        values = [row.get(name, math.nan) for row in rows]
        points = _points(rounds, values, box)
        for one, other in pairwise(points):
            if one and other:
                pen.line([one, other], fill=colour, width=2)
        for point in points:
            if point:
                pen.ellipse([point[0] - 3, point[1] - 3, point[0] + 3, point[1] + 3], fill=colour)
        known = [value for value in values if math.isfinite(value)]
        span = f"{min(known):.4g} .. {max(known):.4g}" if known else "not measured"
        pen.text((left, 8 + 17 * place), f"{name}: {span}", fill=colour, font=font)
    places, free = _places(rounds, box[0], box[2]), 0.0
    for row, x in zip(rows, places, strict=True):
        if row.get("alarms"):
            pen.line([(x, box[1]), (x, box[3])], fill=_ALARM, width=1)
        if x < free or places[-1] - LABEL_PX < x < places[-1]:  # it would overlap with the one before, or the last
            continue
        free = x + LABEL_PX
        pen.text((x, box[3] + 6), f"{row['round']:g}", fill=_INK, font=font, anchor="ma")
    pen.text((box[2], box[3] + 22), "round (red: alarm)", fill=_MUTED, font=font, anchor="ra")
    return save_png(canvas, file)


def save_look(pictures: Sequence[Tensor], folder: Path, number: int) -> Path:
    """Write the first candidate of the first validation pictures, side by side, as the look of round `number`."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = []
    for own in pictures[:STRIP_IMAGES]:
        height, width = (min(STRIP_PX, side) for side in own.shape[-2:])
        cell = torch.ones(3, STRIP_PX, STRIP_PX)
        cell[:, :height, :width] = own[0, :, :height, :width].clamp(0, 1)
        cells.append(cell)
    return save_png(to_pil(torch.cat(cells, dim=2)), folder / f"{number:05d}.png")


def draw_strip(folder: Path, file: Path) -> Path:
    """Write all looks of a folder below each other, at most 12, the first and the last among them."""
    looks = sorted(folder.glob("*.png"))
    if len(looks) > STRIP_LOOKS:
        looks = [looks[round(k * (len(looks) - 1) / (STRIP_LOOKS - 1))] for k in range(STRIP_LOOKS)]
    pictures = [to_pil(load_image(look)) for look in looks]
    label_px = 64
    sheet = Image.new("RGB", (label_px + max(p.width for p in pictures), STRIP_PX * len(pictures)), _BACK)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (look, picture) in enumerate(zip(looks, pictures, strict=True)):
        sheet.paste(picture, (label_px, STRIP_PX * place))
        pen.text((6, STRIP_PX * place + 6), f"round {int(look.stem)}", fill=_INK, font=font)
    return save_png(sheet, file)


def _points(rounds: Sequence[float], values: Sequence[float], box: tuple[int, ...]) -> list[tuple[float, float] | None]:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return [None] * len(rounds)
    low, high = min(known), max(known)
    per_unit = (box[3] - box[1] - 16) / ((high - low) or 1.0)
    heights = [box[3] - 8 - per_unit * (value - low) for value in values]
    places = _places(rounds, box[0], box[2])
    return [(x, y) if math.isfinite(y) else None for x, y in zip(places, heights, strict=True)]


def _places(rounds: Sequence[float], left: int, right: int) -> list[float]:
    first, last = rounds[0], rounds[-1]
    return [left + 12 + (right - left - 24) * (value - first) / ((last - first) or 1.0) for value in rounds]
