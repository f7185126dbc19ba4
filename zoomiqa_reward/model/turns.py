"""One turn of the protocol: what is asked, what is answered. Inference, SFT and RL all use this row type.

Round 2 does not continue round 1's token stream: it is a fresh conversation that quotes round 1's answer. So a
two-round trajectory is two independent (messages, completion) rows. This is the one place that builds them.
Source: the shape of the official Zoom-IQA evaluator's messages.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoomiqa_reward.protocol.spec import Protocol

Box = tuple[float, float, float, float]
PixelBox = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """What one turn asks: chat messages in transformers' form, and the images in the order they are named."""

    messages: tuple[dict[str, Any], ...]
    images: tuple[Tensor, ...]
    """Float32 CHW in [0, 1], one for each `{"type": "image"}` item."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One answered turn."""

    prompt: str
    """The user's text of this turn as rendered by the protocol (without chat template)."""
    text: str
    """The model's raw answer."""
    sections: dict[str, str]
    """Section label -> text, for the labels of this round that were found."""
    bbox: Box | None
    """Box as the model named it (shares of the sides, 0..1); None where it names none (all zero) or is unreadable."""
    crop_box: PixelBox | None
    """The region that this turn looked at, in pixels (left, top, right, bottom); None in round 1."""
    tool: str | None
    rating: float
    """As read, not clipped; NaN if unreadable."""


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


_IMAGE = {"type": "image"}


def round1(protocol: Protocol, image: Tensor, question: str | None = None) -> Prompted:
    """Return round 1's request: the prompt and the whole image, in the protocol's order."""
    prompt = _text(protocol.round1.render(question or protocol.questions[0]))
    content = [prompt, _IMAGE] if protocol.image_order == "text_first" else [_IMAGE, prompt]
    return Prompted(messages=({"role": "user", "content": content},), images=(image,))


def round2(protocol: Protocol, image: Tensor, crop: Tensor, answer1: str, question: str | None = None) -> Prompted:
    """Return round 2's request: the quoted round 1, then the whole image and the crop."""
    question = question or protocol.questions[0]
    whole_label, crop_label = protocol.image_labels
    content = [_text(protocol.round2.render(question)), _text(whole_label), _IMAGE, _text(crop_label), _IMAGE]
    history: tuple[dict[str, Any], ...] = ()
    if protocol.history_style == "question_answer":
        history = (
            {"role": "user", "content": [_text(question)]},
            {"role": "assistant", "content": [_text(answer1)]},
        )
    return Prompted(messages=(*history, {"role": "user", "content": content}), images=(image, crop))
