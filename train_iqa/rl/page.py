"""A page to look at: sampled trajectories with the image, the crop that round 2 saw, the words and the rewards.

One self-contained HTML file without scripts; everything that the model wrote is escaped.
"""

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from train_iqa.rl.rollout import AnswerTrajectory
from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.protocol import Protocol, read_route, zoom
from zoomiqa_reward.runs.outputs import part_folder, write_text

THUMBNAIL_PX = 320
_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;background:#16181d;color:#f0f1f3}"
    "section{margin-bottom:2em;border-top:1px solid #444}.group{display:flex;flex-wrap:wrap;gap:1em}"
    "article{background:#22252c;padding:1em;width:340px}img{max-width:100%}pre{white-space:pre-wrap;font-size:12px}"
    "table{border-collapse:collapse}td{padding:0 .6em 0 0}.bad{color:#e85c5c}"
)


@dataclass(frozen=True, kw_only=True)
class PageGroup:
    """One image and its trajectories."""

    name: str
    image: Tensor
    """Float32 CHW in [0, 1]."""
    mos: float
    trajectories: Sequence[AnswerTrajectory]
    rewards: Sequence[dict[str, float]]
    """Name -> value, one for each trajectory; with its advantage."""


def write_page(path: Path, title: str, groups: Sequence[PageGroup], protocol: Protocol) -> None:
    """Write the page in one step; crops are cut again from the boxes that round 1 named, as the rollout cut them."""
    body = "".join(_group(group, protocol) for group in groups)
    text = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{body}</html>\n"
    )
    part_folder(path.parent)
    write_text(path, text)


def _group(group: PageGroup, protocol: Protocol) -> str:
    cards = "".join(
        _card(group.image, trajectory, rewards, protocol)
        for trajectory, rewards in zip(group.trajectories, group.rewards, strict=True)
    )
    return (
        f"<section><h2>{html.escape(group.name)} &middot; MOS {group.mos:.2f}</h2>"
        f"{_image(group.image, 'image')}<div class='group'>{cards}</div></section>"
    )


def _card(image: Tensor, trajectory: AnswerTrajectory, rewards: dict[str, float], protocol: Protocol) -> str:
    assessment = trajectory.assessment
    head = (
        f"<b>{assessment.rating:.2f}</b>"
        if assessment.valid
        else f"<b class='bad'>{html.escape(assessment.error or '')}</b>"
    )
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{'-' if math.isnan(value) else format(value, '.3f')}</td></tr>"
        for name, value in rewards.items()
    )
    parts = [f"<article>{head}<table>{rows}</table>"]
    for number, turn in enumerate(assessment.turns, start=1):
        if turn.crop_box is not None:
            crop, _ = zoom(image, read_route(assessment.turns[0].text).bbox, protocol.crop)
            parts.append(f"<p>round {number} looked at {turn.crop_box}</p>{_image(crop, 'crop')}")
        parts.append(f"<pre>{html.escape(turn.text)}</pre>")
    return "".join([*parts, "</article>"])


def _image(image: Tensor, name: str) -> str:
    thumbnail = to_pil(image.clamp(0, 1))
    thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    thumbnail.save(buffer, format="PNG")
    return f"<img alt='{name}' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
