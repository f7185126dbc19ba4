"""Charts of a report as SVG, in the colours of the page: axes with numbers, a label for each axis, gaps for NaN."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from restoration.report.page import text
from zoomiqa_reward.images.drawing import ticks

WIDTH, HEIGHT, ROW_PX = 720, 260, 26
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 28, 44
COLOURS = ("var(--first)", "var(--second)", "var(--good)", "var(--bad)", "var(--muted)")


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values, with a range where there is one."""

    name: str
    values: Sequence[float]
    ranges: Sequence[tuple[float, float]] = ()
    """Low and high end of the bar through each value; NaN for none."""


def lines(
    title: str, x: Sequence[float], series: Sequence[Series], *, x_label: str, marks: Sequence[float] = ()
) -> str:
    """Return a chart of values over x as lines. marks: places of x with a red line. Nothing without a finite value."""
    finite = [value for entry in series for value in entry.values if math.isfinite(value)]
    if not finite or not x:
        return ""
    y_ticks, x_ticks = ticks(min(finite), max(finite)), ticks(min(x), max(x), 8)
    if all(value == round(value) for value in x):  # rounds have no halves
        whole = [(mark, f"{mark:g}") for mark, _ in x_ticks if mark == round(mark)]
        x_ticks = whole if len(whole) > 1 else x_ticks
    frame = _Frame((x_ticks[0][0], x_ticks[-1][0]), (y_ticks[0][0], y_ticks[-1][0]), HEIGHT)
    parts = [*_axes(frame, x_ticks, y_ticks, title, x_label)]
    parts += [_line(frame.x(mark), TOP, frame.x(mark), frame.bottom, "var(--bad)") for mark in marks]
    for k, values in enumerate(series):
        parts += _curve(frame, x, values.values, COLOURS[k % len(COLOURS)])
    return _svg(HEIGHT, [*parts, *_legend([values.name for values in series])])


def dots(title: str, names: Sequence[str], series: Sequence[Series], *, x_label: str) -> str:
    """Return a chart with one row per name and a dot per series; a range is a bar through its dot."""
    ends = [value for values in series for value in values.values if math.isfinite(value)]
    ends += [end for values in series for ends_of in values.ranges for end in ends_of if math.isfinite(end)]
    if not ends:
        return ""
    marks = ticks(min(ends), max(ends), 6)
    height = TOP + ROW_PX * len(names) + BOTTOM
    frame = _Frame((marks[0][0], marks[-1][0]), (0.0, 1.0), height, left=220)
    parts = [_text(frame.left, 16, title, "start", bold=True)]
    for value, label in marks:
        parts.append(_line(frame.x(value), TOP, frame.x(value), frame.bottom, "var(--line)"))
        parts.append(_text(frame.x(value), frame.bottom + 16, label, "middle"))
    parts.append(_text((frame.left + WIDTH - RIGHT) / 2, height - 8, x_label, "middle", soft=True))
    for row, name in enumerate(names):
        middle = TOP + ROW_PX * (row + 0.5)
        shown = name if len(name) <= 32 else f"{name[:14]}…{name[-16:]}"
        parts.append(f"<g><title>{text(name)}</title>{_text(frame.left - 10, middle + 4, shown, 'end')}</g>")
        for k, values in enumerate(series):
            value = values.values[row]
            if not math.isfinite(value):
                continue
            colour = COLOURS[k % len(COLOURS)]
            y = middle + 5 * (k - (len(series) - 1) / 2)  # equal values lie below each other
            if values.ranges and all(math.isfinite(end) for end in values.ranges[row]):
                low, high = values.ranges[row]
                parts.append(_line(frame.x(low), y, frame.x(high), y, colour, 2))
            parts.append(f'<circle cx="{frame.x(value):.1f}" cy="{y:.1f}" r="4.5" fill="{colour}">'
                         f"<title>{text(values.name)}: {value:.4g}</title></circle>")  # fmt: skip
    return _svg(height, [*parts, *_legend([values.name for values in series])])


class _Frame:
    """Where values lie in the drawing."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], height: float, left: float = LEFT) -> None:
        self.left, self.bottom = left, height - BOTTOM
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        low, high = self._x
        return self.left + (WIDTH - RIGHT - self.left) * (value - low) / ((high - low) or 1.0)

    def y(self, value: float) -> float:
        low, high = self._y
        return self.bottom - (self.bottom - TOP) * (value - low) / ((high - low) or 1.0)


def _axes(
    frame: _Frame, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], title: str, x_label: str
) -> list[str]:
    parts = [_text(frame.left, 16, title, "start", bold=True)]
    for value, label in y_ticks:
        parts.append(_line(frame.left, frame.y(value), WIDTH - RIGHT, frame.y(value), "var(--line)"))
        parts.append(_text(frame.left - 8, frame.y(value) + 4, label, "end"))
    parts += [_text(frame.x(value), frame.bottom + 16, label, "middle") for value, label in x_ticks]
    parts.append(_line(frame.left, frame.bottom, WIDTH - RIGHT, frame.bottom, "var(--muted)"))
    parts.append(_text((frame.left + WIDTH - RIGHT) / 2, frame.bottom + 36, x_label, "middle", soft=True))
    return parts


def _curve(frame: _Frame, x: Sequence[float], values: Sequence[float], colour: str) -> list[str]:
    parts, run = [], []
    for at, value in [*zip(x, values, strict=True), (math.nan, math.nan)]:
        if math.isfinite(value):
            run.append(f"{frame.x(at):.1f},{frame.y(value):.1f}")
            parts.append(f'<circle cx="{frame.x(at):.1f}" cy="{frame.y(value):.1f}" r="3" fill="{colour}">'
                         f"<title>{at:g}: {value:.4g}</title></circle>")  # fmt: skip
            continue
        if len(run) > 1:
            parts.append(f'<polyline points="{" ".join(run)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        run = []
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    if len(names) < 2:
        return []
    parts, right = [], float(WIDTH - RIGHT)
    for k, name in reversed(list(enumerate(names))):
        right -= 7.2 * len(name) + 24
        parts.append(f'<circle cx="{right:.1f}" cy="12" r="4.5" fill="{COLOURS[k % len(COLOURS)]}"/>')
        parts.append(_text(right + 9, 16, name, "start"))
    return parts


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, width: int = 1) -> str:
    return (f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"/>')  # fmt: skip


def _text(x: float, y: float, words: str, anchor: str, *, soft: bool = False, bold: bool = False) -> str:
    kind = (' class="soft"' if soft else "") + (' font-weight="600"' if bold else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{text(words)}</text>'


def _svg(height: float, parts: Sequence[str]) -> str:
    return (f'<svg viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img">'
            f"{''.join(parts)}</svg>")  # fmt: skip
