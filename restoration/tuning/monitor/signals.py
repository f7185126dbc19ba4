"""The signals of reward hacking in an image, and the figures of the monitor.

What an image shows when a reward is being hacked: fine energy, a grid, another style, no diversity.

All take BCHW images in [0, 1] and return one float64 number per image or a set; NaN where an image is too small.

What the monitor draws: the reward against a held-out metric, and a strip of the same images over time.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoomiqa_reward.images.drawing import polyline
from zoomiqa_reward.images.filters import gaussian_blur, luma
from zoomiqa_reward.images.loading import load_image, save_png, to_pil
from zoomiqa_reward.runs.outputs import part_folder

FINE_SIGMA_PX = 1.0
"""What a Gaussian of this width takes away is called fine."""
MIN_PERIODS = 4
"""Periods that an image must hold before a peak in its spectrum means anything."""


def fine_energy(images: Tensor) -> Tensor:
    """Return [batch] mean square of what a Gaussian blur takes away: over-sharpening raises it, smoothing lowers it."""
    planes = luma(images.detach().cpu().double())
    return (planes - gaussian_blur(planes, FINE_SIGMA_PX)).square().flatten(1).mean(dim=1)


def grid_peak(images: Tensor, period_px: int) -> Tensor:
    """Return [batch] in dB: power at 1 / `period_px` cycles a pixel over the median of its neighbours, both directions.

    0 for an image without a grid, whatever else is in it. NaN where a side holds fewer than 4 periods, or where the
    period is 1. Power spectra along one axis are averaged over the other; the sides are cut to whole periods.
    """
    planes = luma(images.detach().cpu().double())[:, 0]
    height, width = (side // period_px * period_px for side in planes.shape[-2:])
    if period_px < 2 or min(height, width) < MIN_PERIODS * period_px:
        return torch.full((len(planes),), math.nan, dtype=torch.float64)
    planes = planes[:, :height, :width]
    peaks = []
    for axis, length in ((2, width), (1, height)):
        # Differences flatten a photograph's falling spectrum, so that neighbours are comparable.
        power = torch.fft.rfft(planes.diff(dim=axis, append=planes.narrow(axis, 0, 1)), dim=axis).abs().square()
        spectrum = power.mean(dim=3 - axis)
        harmonic = length // period_px
        near = [k for k in range(harmonic - 3, harmonic + 4) if 0 < k < spectrum.shape[1] and k != harmonic]
        floor = spectrum[:, near].median(dim=1).values + 1e-12
        peaks.append(10 * torch.log10((spectrum[:, harmonic] + 1e-12) / floor))
    return torch.stack(peaks).mean(dim=0)


def gram_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return [batch] mean relative distance of Gram matrices of feature maps BCHW: 0 the same style.

    Of each map: |G - G'|_F / |G'|_F, with G the channels' inner products over positions; then the mean over maps.
    Source: Gatys et al. 2016 (the matrices; the relative form is ours, so that maps weigh alike).
    """
    distances = []
    for first, other in zip(features, others, strict=True):
        mine, theirs = (_gram(maps) for maps in (first, other))
        distances.append((mine - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1).clamp_min(1e-12))
    return torch.stack(distances).mean(dim=0)


def diversity(images: Tensor) -> float:
    """Return how much candidates of one LR image differ: standard deviation over them, mean over pixels.

    Raises ValueError for fewer than two.

    >>> diversity(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]))
    0.5
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} candidates: diversity needs at least 2")
    return float(images.detach().cpu().double().std(dim=0, correction=0).mean())


def _gram(maps: Tensor) -> Tensor:
    flat = maps.detach().cpu().double().flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


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
    for index, (name, colour) in enumerate((("reward", _FIRST), (held_out, _SECOND))):
        values = [row.get(name, math.nan) for row in rows]
        points = _points(rounds, values, box)
        polyline(pen, points, colour, 2)
        for point in points:
            if point:
                pen.ellipse([point[0] - 3, point[1] - 3, point[0] + 3, point[1] + 3], fill=colour)
        finite = [value for value in values if math.isfinite(value)]
        span = f"{min(finite):.4g} .. {max(finite):.4g}" if finite else "not measured"
        pen.text((left, 8 + 17 * index), f"{name}: {span}", fill=colour, font=font)
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
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, (look, image) in enumerate(zip(looks, images, strict=True)):
        sheet.paste(image, (label_px, STRIP_PX * index))
        pen.text((6, STRIP_PX * index + 6), f"round {int(look.stem)}", fill=_INK, font=font)
    return save_png(sheet, file)


def _points(rounds: Sequence[float], values: Sequence[float], box: tuple[int, ...]) -> list[tuple[float, float] | None]:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return [None] * len(rounds)
    low, high = min(finite), max(finite)
    per_unit = (box[3] - box[1] - 16) / ((high - low) or 1.0)
    heights = [box[3] - 8 - per_unit * (value - low) for value in values]
    places = _places(rounds, box[0], box[2])
    return [(x, y) if math.isfinite(y) else None for x, y in zip(places, heights, strict=True)]


def _places(rounds: Sequence[float], left: int, right: int) -> list[float]:
    first, last = rounds[0], rounds[-1]
    return [left + 12 + (right - left - 24) * (value - first) / ((last - first) or 1.0) for value in rounds]
