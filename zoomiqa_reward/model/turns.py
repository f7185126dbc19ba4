"""One turn of the protocol: request and answer. Inference, SFT and RL use this type.

Round 2 does not continue the tokens of round 1. It is a new conversation that quotes the answer of round 1. So a
trajectory of two rounds is two independent rows of (messages, completion). Only this module builds them.
Source: the shape of the official Zoom-IQA evaluator's messages.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoomiqa_reward.protocol.spec import PairPrompt, Protocol

Box = tuple[float, float, float, float]
PixelBox = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """Request of one turn: chat messages in the form of transformers, and the images in the order of their mention."""

    messages: tuple[dict[str, Any], ...]
    images: tuple[Tensor, ...]
    """Float32 CHW in [0, 1], one for each `{"type": "image"}` item."""
    start: str = ""
    """What the answer begins with; the model writes on from there."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One round of an assessment: what was asked, what was answered, and the region."""

    prompt: str
    """The user's text of this turn, rendered by the protocol, without the chat template."""
    text: str
    """The model's raw answer."""
    sections: dict[str, str]
    """Section label -> text, for the labels of this round that were found."""
    bbox: Box | None
    """Box in the answer, as fractions of the sides within the image, corners in order, widened by the protocol's
    `box_margin`; None if it is all zero or unreadable. An answer may hold pixels or other corners:
    `read_route(text).bbox` is what stands in it."""
    crop_box: PixelBox | None
    """Region shown in this turn, in pixels (left, top, right, bottom); None in round 1."""
    tool: str | None
    rating: float
    """Rating in the text, not clipped; NaN if unreadable."""


def require_question(question: str | None) -> None:
    """Raise ValueError for a question that is no text or an empty one; None stands for the protocol's own."""
    if question is not None and not (isinstance(question, str) and question.strip()):
        raise ValueError(f"question={question!r}: must be a text; leave it out to ask the protocol's own question")


def _asked(protocol: Protocol, question: str | None) -> str:
    require_question(question)
    return protocol.questions[0] if question is None else question


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


_IMAGE = {"type": "image"}


def round1(protocol: Protocol, image: Tensor, question: str | None = None) -> Prompted:
    """Return the request of round 1: prompt and whole image, in the order of the protocol."""
    prompt = _text(protocol.round1.render(_asked(protocol, question)))
    content = [prompt, _IMAGE] if protocol.image_order == "text_first" else [_IMAGE, prompt]
    return Prompted(messages=({"role": "user", "content": content},), images=(image,))


def pair_turn(pair: PairPrompt, first: Tensor, second: Tensor) -> Prompted:
    """Return the request that compares two images: the prompt, then each image after its label."""
    content = [_text(pair.text), _text(pair.labels[0]), _IMAGE, _text(pair.labels[1]), _IMAGE]
    return Prompted(messages=({"role": "user", "content": content},), images=(first, second))


def round2(protocol: Protocol, image: Tensor, crop: Tensor, answer1: str, question: str | None = None) -> Prompted:
    """Return the request of round 2: round 1 as a quotation, then the whole image and the crop."""
    question = _asked(protocol, question)
    whole_label, crop_label = protocol.image_labels
    content = [_text(protocol.round2.render(question)), _text(whole_label), _IMAGE, _text(crop_label), _IMAGE]
    history: tuple[dict[str, Any], ...] = ()
    if protocol.history_style == "question_answer":
        history = (
            {"role": "user", "content": [_text(question)]},
            {"role": "assistant", "content": [_text(answer1)]},
        )
    return Prompted(messages=(*history, {"role": "user", "content": content}), images=(image, crop))
