"""The HTML page of a report: one file without a network, light or dark as the reader's system asks for.

Images are data URIs. All images of a group show the same part: wheel, buttons and drag zoom and move all of them,
so that the same detail of each stays side by side.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

GENERATOR = '<meta name="generator" content="zoomiqa-reward">'
LOSSLESS_PX = 1_200_000
"""Images with more pixels are stored as WebP of quality 95, and the page says so."""
TINY_PX = 256
"""Images with a shorter longest side are enlarged without blur from the start."""
LONGEST_PX = 2560
"""Larger images are shrunk to this longest side, and the page says so."""

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --card: #f3f4f6; --ink: #17181b; --muted: #5d636e; --line: #d4d7dd;
  --first: #1f62b4; --second: #b4540d; --good: #18794e; --bad: #c62828; }
@media (prefers-color-scheme: dark) { :root { --back: #16181d; --card: #22252c; --ink: #f0f1f3; --muted: #a4aab4;
  --line: #454a55; --first: #6fb1ff; --second: #ffb020; --good: #52c77a; --bad: #ff7b7b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 24px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; } h3 { font-size: 16px; }
p { max-width: 80ch; } .muted { color: var(--muted); } .good { color: var(--good); } .bad { color: var(--bad); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: 4px 12px 4px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 600; } th { white-space: nowrap; }
.text { text-align: left; overflow-wrap: break-word; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 8px 24px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; } dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.group { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 14px; }
.group figure { margin: 0; background: var(--card); border-radius: 6px; overflow: hidden; }
.view { overflow: hidden; cursor: grab; touch-action: none; background: var(--line); }
.view img { width: 100%; height: 100%; object-fit: contain; transform-origin: 0 0; user-select: none; display: block; }
.near img, .tiny img { image-rendering: pixelated; }
figcaption { padding: 8px 12px 12px; font-size: 14px; overflow-wrap: anywhere; }
.bar { margin: 8px 0; } button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 5px; padding: 3px 12px; cursor: pointer; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--line); } svg .soft { fill: var(--muted); }
"""

SCRIPT = """
for (const group of document.querySelectorAll('.group')) {
  let scale = 1, x = 0, y = 0, from = null;
  const views = [...group.querySelectorAll('.view')];
  const show = () => {
    const low = 1 - scale;
    x = Math.min(0, Math.max(low, x)); y = Math.min(0, Math.max(low, y));
    for (const view of views) {
      view.firstElementChild.style.transform =
        `translate(${x * view.clientWidth}px, ${y * view.clientHeight}px) scale(${scale})`;
      view.classList.toggle('near', scale > 2);
    }
  };
  const zoom = (factor, u = 0.5, v = 0.5) => {
    const next = Math.min(16, Math.max(1, scale * factor));
    x = u - (u - x) * next / scale; y = v - (v - y) * next / scale; scale = next; show();
  };
  const at = (view, event) => {
    const box = view.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  for (const view of views) {
    view.addEventListener('wheel', event => {
      event.preventDefault(); zoom(event.deltaY < 0 ? 1.25 : 0.8, ...at(view, event));
    }, { passive: false });
    view.addEventListener('pointerdown', event => {
      event.preventDefault(); view.setPointerCapture(event.pointerId);
      from = { at: at(view, event), x, y, moved: false };
    });
    view.addEventListener('pointermove', event => {
      if (!from) return;
      const [u, v] = at(view, event);
      from.moved ||= Math.hypot(u - from.at[0], v - from.at[1]) > 0.02;
      x = from.x + u - from.at[0]; y = from.y + v - from.at[1]; show();
    });
    view.addEventListener('pointerup', event => {
      if (from && !from.moved) zoom(scale > 1 ? 1 / scale : 4, ...at(view, event));
      from = null;
    });
  }
  const bar = group.previousElementSibling;
  bar.querySelector('.in').addEventListener('click', () => zoom(2));
  bar.querySelector('.out').addEventListener('click', () => zoom(0.5));
  bar.querySelector('.all').addEventListener('click', () => zoom(1 / scale));
}
"""

BAR = (
    '<div class="bar"><button class="in">zoom in</button> <button class="out">zoom out</button> '
    '<button class="all">whole image</button> <span class="muted">click: x4 at that place; drag: move; wheel: zoom. '
    "All images of the group move together.</span></div>"
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image with its words."""

    image: Image.Image | None
    title: str
    lines: Sequence[str] = ()
    is_good: bool = False


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """Return the HTML of a report. title, subtitle: texts; sections: HTML."""
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><h1>{text(title)}</h1>\n"
        f'<p class="muted">{text(subtitle)}</p>\n{body}\n<script>{SCRIPT}</script></body></html>\n'
    )


def text(value: object) -> str:
    """Return a value as HTML text; bytes of a file name that are no UTF-8 are escaped.

    >>> text("<a> & b")
    '&lt;a&gt; &amp; b'
    """
    return escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def section(title: str, *parts: str) -> str:
    """Return a section; nothing if it has no content."""
    content = "\n".join(part for part in parts if part)
    return f"<section><h2>{text(title)}</h2>\n{content}</section>" if content else ""


def paragraph(words: str) -> str:
    """Return a paragraph of text; nothing without words."""
    return f"<p>{text(words)}</p>" if words else ""


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Return a list of names and values; None is left out."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(_said(value))}</dd>" for name, value in pairs if value is not None)
    return f"<dl>{rows}</dl>"


def _said(value: object) -> object:
    """Return a value as one says it: yes or no, lists and mappings without brackets."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(str(item) for item in value)
    return value


def table(titles: Sequence[str], rows: Sequence[Sequence[object]], *, words: Sequence[int] = ()) -> str:
    """Return a table. words: columns of text, aligned left."""

    def cells(values: Sequence[object], tag: str) -> str:
        kinds = (' class="text"' if k in words else "" for k in range(len(values)))
        return "".join(f"<{tag}{kind}>{text(value)}</{tag}>" for kind, value in zip(kinds, values, strict=True))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(titles, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def group(cards: Sequence[Card]) -> str:
    """Return images that are zoomed together; they should be of one size."""
    sized = next((card.image for card in reversed(cards) if card.image is not None), None)
    aspect = 1.0 if sized is None else min(max(sized.width / sized.height, 0.5), 3.0)
    return f'{BAR}<div class="group">{"".join(_figure(card, aspect) for card in cards)}</div>' if cards else ""


def side_by_side(charts: Sequence[str]) -> str:
    """Return charts in as many columns as there is room for."""
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _figure(card: Card, aspect: float) -> str:
    lines = "".join(f"<div>{text(line)}</div>" for line in card.lines if line)
    kind = ' class="good"' if card.is_good else ""
    shown, note = ("", "no image") if card.image is None else data_uri(card.image)
    kinds = "view tiny" if card.image is not None and max(card.image.size) < TINY_PX else "view"
    image = f'<img alt="{text(card.title)}" src="{shown}" draggable="false">'
    view = f'<div class="{kinds}" style="aspect-ratio: {aspect:.4f}">{image}</div>' if shown else ""
    note = f'<div class="muted">{text(note)}</div>' if note else ""
    return f"<figure>{view}<figcaption><strong{kind}>{text(card.title)}</strong>{lines}{note}</figcaption></figure>"


def data_uri(image: Image.Image) -> tuple[str, str]:
    """Return an image as a data URI, and what was lost, if anything was."""
    rgb, notes = image.convert("RGB"), []
    if max(rgb.size) > LONGEST_PX:
        notes.append(f"shrunk from {rgb.width} x {rgb.height} px")
        rgb.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    if rgb.width * rgb.height > LOSSLESS_PX:
        notes.append("stored as WebP, quality 95")
        rgb.save(held, format="WEBP", quality=95)
        kind = "webp"
    else:
        rgb.save(held, format="PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode('ascii')}", ", ".join(notes)
