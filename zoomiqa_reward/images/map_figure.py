"""A quality map as one figure: the image, the map laid over its luma, and the scale of the colours.

The colours run over the map's own range, red for its worst and blue for its best, told apart by colour-blind people
too; the scale names the numbers, so that two figures are not compared by colour. A map that hardly varies would turn
noise into colour: the scale then spans half a unit at least. Places without a value stay grey.
"""

import math
import os

import numpy as np
from PIL import Image, ImageDraw

from zoomiqa_reward.images.drawing import BACK, INK, MARK, MUTED, fit
from zoomiqa_reward.images.lettering import draw_text, text_width, wrap
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.model.quality_map import QualityMap
from zoomiqa_reward.runs.outputs import write_figure

PANEL_PX = 448
MARGIN_PX = 16
LEAST_WIDTH_PX = 420
"""Of the figure: what stands below the image must fit when the image is narrow."""
NAME_SIZE, TEXT_SIZE, LINE_PX = 16, 13, 22
SCALE_PX = 56
MIN_SPAN = 0.5
"""Least range of the colours, on the scale of the ratings."""
OPACITY = 0.55
"""Of the colours over the luma."""
STOPS = ((178, 24, 43), (239, 138, 98), (247, 247, 247), (103, 169, 207), (33, 102, 172))
"""From the lowest value to the highest, in equal steps."""


def map_figure(
    image: Image.Image,
    quality: QualityMap,
    path: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    colours: tuple[float, float] | None = None,
    overwrite: bool = False,
) -> Image.Image:
    """Return the figure as an RGB image and, with `path`, write it there.

    colours: values of the lowest and the highest colour; pass the same to compare figures. None: the map's own range.
    The outline marks the view with the lowest rating. Raises ValueError where the image has another size than the map
    or colours do not rise, OutputError where `path` holds a file that this program did not make (unless `overwrite`).
    """
    height, width = quality.values.shape
    rgb = to_pil(load_image(image))
    if rgb.size != (width, height):
        raise ValueError(f"image is {rgb.width} x {rgb.height} px, its map {width} x {height}; pass the same image")
    low, high = _span(quality) if colours is None else colours
    if not low < high:
        raise ValueError(f"colours={colours}: the second must be above the first")
    shown, factor = fit(rgb, PANEL_PX)
    overlay, _ = fit(overlay_of(rgb, quality, low, high), PANEL_PX)
    across = max(2 * shown.width + 3 * MARGIN_PX, LEAST_WIDTH_PX)
    names = wrap(name, NAME_SIZE, across - 2 * MARGIN_PX)
    left, top = 2 * MARGIN_PX + shown.width, MARGIN_PX + LINE_PX * max(1, len(names))
    figure = Image.new("RGB", (across, top + shown.height + SCALE_PX + 2 * MARGIN_PX), BACK)
    draw = ImageDraw.Draw(figure)
    for number, line in enumerate(names):
        draw_text(draw, (MARGIN_PX, 12 + LINE_PX * number), line, NAME_SIZE, INK)
    figure.paste(shown, (MARGIN_PX, top))
    figure.paste(overlay, (left, top))
    if (lowest := quality.lowest()) is not None:
        for start in (MARGIN_PX, left):
            box = [side * factor for side in quality.boxes[lowest]]
            corners = (start + box[0], top + box[1], start + box[2] - 1, top + box[3] - 1)
            draw.rectangle(corners, outline=MARK, width=2)
    _scale(figure, quality, (low, high), top + shown.height + MARGIN_PX)
    if path is not None:
        write_figure(figure, path, overwrite=overwrite)
    return figure


def overlay_of(image: Image.Image, quality: QualityMap, low: float, high: float) -> Image.Image:
    """Return the image's luma with the map's colours over it; luma alone where the map has no value."""
    luma = np.asarray(image.convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2)
    values = quality.values.detach().cpu().numpy()
    share = (1 - OPACITY) * luma + OPACITY * colour_of((values - low) / (high - low))
    return Image.fromarray(np.where(np.isnan(values)[..., None], luma, share).round().astype(np.uint8))


def colour_of(shares: np.ndarray) -> np.ndarray:
    """Return float32 [..., 3] in 0..255 of values [...], where 0 is the lowest colour and 1 the highest.

    >>> colour_of(np.array([0.0, 0.5, 2.0])).astype(int).tolist()
    [[178, 24, 43], [247, 247, 247], [33, 102, 172]]
    """
    at = np.linspace(0.0, 1.0, len(STOPS))
    channels = [np.interp(shares, at, [stop[channel] for stop in STOPS]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _span(quality: QualityMap) -> tuple[float, float]:
    low, high = quality.range
    if math.isnan(low):
        return 0.0, 1.0
    missing = max(0.0, MIN_SPAN - (high - low)) / 2
    return low - missing, high + missing


def _scale(figure: Image.Image, quality: QualityMap, span: tuple[float, float], top: int) -> None:
    draw = ImageDraw.Draw(figure)
    left, right = MARGIN_PX, figure.width - MARGIN_PX
    if not quality.valid:
        draw_text(draw, (left, top), "no view could be rated", TEXT_SIZE, MUTED)
        return
    labels = [f"{value:.2f}" for value in span]
    bar_left = round(left + text_width(labels[0], TEXT_SIZE) + 8)
    bar_right = round(right - text_width(labels[1], TEXT_SIZE) - 8)
    bar = np.tile(colour_of(np.linspace(0.0, 1.0, bar_right - bar_left))[None], (14, 1, 1)).round().astype(np.uint8)
    draw_text(draw, (left, top), labels[0], TEXT_SIZE, INK)
    figure.paste(Image.fromarray(bar), (bar_left, top))
    draw_text(draw, (bar_right + 8, top), labels[1], TEXT_SIZE, INK)
    about = f"resolution {quality.resolution_px} px; outline: the lowest view"
    grey = "; grey: no rating" if bool(quality.values.isnan().any()) else ""
    draw_text(draw, (left, top + 26), about + grey, TEXT_SIZE, MUTED)
