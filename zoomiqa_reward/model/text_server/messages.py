"""From a prompted turn to the messages of a chat completion: pictures as PNG data URLs, texts as they are.

PNG is lossless, but holds 8 bits: a float picture is rounded to 256 steps on its way. What the server does with the
picture then (its own uint8 route, its own resize and pixel budget) is its matter and cannot be seen from here.
"""

import base64
import io
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.model.checkpoint import VISION_TOKENS
from zoomiqa_reward.model.inputs import PromptError
from zoomiqa_reward.model.pixels import resized, whole_size
from zoomiqa_reward.model.turns import Prompted
from zoomiqa_reward.protocol.spec import Protocol


def data_url(image: Tensor) -> str:
    """Return a float32 CHW image in [0, 1] as the data URL of a PNG, rounded to 8 bits."""
    file = io.BytesIO()
    to_pil(image).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def chat_messages(prompted: Prompted) -> list[dict[str, Any]]:
    """Return the turn's messages in OpenAI's form; a message without picture is a plain text.

    Raises PromptError where a text holds an image token, which the server would take for a picture.
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
    size = whole_size(
        height, width, factor=factor_px, min_pixels=protocol.min_pixels, max_pixels=protocol.max_pixels
    )  # fmt: skip
    return image if size == (height, width) else resized(image, *size).clamp(0, 1)
