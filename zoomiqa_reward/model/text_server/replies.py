"""The messages of a chat completion, and its reply.

Messages: images as PNG data URLs, texts as they are. PNG is lossless but has 8 bits, so a float image is rounded to 256
steps. What the server does with the image afterwards (its own uint8 route, its own resize and pixel budget) cannot be
seen from here.

The reply gives the text, whether it was cut, and the log-probabilities, if there are any. It is read from the JSON
field by field, because servers are often only nearly compatible: what is missing or wrong must be named, not filled in.
Source: OpenAI's reference of chat completions (shape of `choices`).
"""

import base64
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.model.checkpoint import VISION_TOKENS
from zoomiqa_reward.model.inputs import PromptError
from zoomiqa_reward.model.pixels import whole_size
from zoomiqa_reward.model.repeatable import resized
from zoomiqa_reward.model.turns import Prompted
from zoomiqa_reward.protocol.spec import Protocol


def data_url(image: Tensor) -> str:
    """Return a float32 CHW image in [0, 1] as the data URL of a PNG, rounded to 8 bits."""
    file = io.BytesIO()
    to_pil(image).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def chat_messages(prompted: Prompted) -> list[dict[str, Any]]:
    """Return the turn's messages in OpenAI's form; a message without image is a plain text.

    Raises PromptError where a text holds an image token, which the server would take for an image.
    """
    images = iter(prompted.images)
    return [{"role": message["role"], "content": _content(message["content"], images)} for message in prompted.messages]


def _content(items: list[dict[str, Any]], images: Iterator[Tensor]) -> str | list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for item in items:
        if item["type"] == "image":
            parts.append({"type": "image_url", "image_url": {"url": data_url(next(images))}})
            continue
        if held := [token for token in VISION_TOKENS if token in item["text"]]:
            raise PromptError(f"a question or a quoted answer holds the image token {held[0]}")
        parts.append({"type": "text", "text": item["text"]})
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def resize_to_budget(image: Tensor, protocol: Protocol, factor_px: int | None) -> Tensor:
    """Return the CHW image at the size that the protocol's pixel budget gives it, where `factor_px` is known.

    A server whose own budget is at least as wide then finds nothing to resize. The bicubic overshoot that a local
    model sees is cut off, since a PNG cannot hold it. Raises ImageError for an aspect ratio above 200.
    """
    if factor_px is None:
        return image
    _, height, width = image.shape
    size = whole_size(height, width, factor=factor_px, min_pixels=protocol.min_pixels, max_pixels=protocol.max_pixels)
    return image if size == (height, width) else resized(image, *size).clamp(0, 1)


class ReplyError(ZoomIQAError, ValueError):
    """A reply that is no chat completion; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token that was written, and what else might have stood there."""

    text: bytes
    logprob: float
    """Natural logarithm, at most 0."""
    alternatives: tuple[tuple[bytes, float], ...]
    """(text, logprob) of the likeliest tokens there; whether the one written is among them is the server's matter."""


@dataclass(frozen=True, kw_only=True)
class ServerReply:
    """One answer of a text server."""

    text: str
    is_truncated: bool
    """It ran into the limit of tokens."""
    tokens: tuple[Token, ...] | None
    """None: the server told no log-probabilities."""


def read_reply(body: str, think_join: tuple[str, str]) -> ServerReply:
    """Return the first choice of a chat completion.

    Servers with a reasoning parser take the text inside <think> out of the answer and drop the tags with the white
    space around them; it is put back as think_join[0] + reasoning + think_join[1] + answer. An answer that ended
    inside its reasoning gets no second part. Raises ReplyError.
    """
    try:
        data = json.loads(body)
    except ValueError as error:
        raise ReplyError(f"is not JSON: {_short(body)}") from error
    try:
        choice = data["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content, reasoning = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ReplyError(f"holds no choices[0].message: {_short(body)}") from error
    if content is None and reasoning is None:
        refusal = message.get("refusal")
        raise ReplyError(f"holds no text{f': {_short(refusal)}' if refusal else ''}")
    if not isinstance(content or "", str) or not isinstance(reasoning or "", str):
        raise ReplyError(f"holds something else where its text belongs: {_short(content)}, {_short(reasoning)}")
    text = content or ""
    if reasoning:
        text = think_join[0] + reasoning + (think_join[1] + text if text else "")
    return ServerReply(text=text, is_truncated=reason == "length", tokens=_tokens(choice.get("logprobs")))


def _tokens(logprobs: Any) -> tuple[Token, ...] | None:
    content = logprobs.get("content") if isinstance(logprobs, dict) else logprobs
    if not content:
        return None
    try:
        return tuple(
            Token(
                text=_text(entry),
                logprob=_logprob(entry),
                alternatives=tuple((_text(other), _logprob(other)) for other in entry.get("top_logprobs") or ()),
            )
            for entry in content
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ReplyError(f"holds log-probabilities that cannot be read: {_short(content)}") from error


def _text(entry: dict[str, Any]) -> bytes:
    """Return the token's bytes: a token may be a part of a character, which its text cannot show."""
    raw = entry.get("bytes")
    return entry["token"].encode() if raw is None else bytes(raw)


def _logprob(entry: dict[str, Any]) -> float:
    value = float(entry["logprob"])
    if math.isnan(value) or value > 1e-3:  # a server's rounding may leave a hair above 0
        raise ValueError(f"{value} is no log-probability")
    return min(value, 0.0)


def _short(value: object, limit: int = 120) -> str:
    shown = repr(value)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."
