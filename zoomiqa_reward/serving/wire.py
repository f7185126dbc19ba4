"""The format of requests and replies, simple enough to write a client in any language.

A request's body is **one safetensors file** (8 bytes little-endian length, a JSON header, raw data). Tensors are named
by the image's index: `0`, `1`, ...; for rewards that need them, its low-quality image is `lq.0` and its reference
`hr.0`. Each is one of

- `F32` of shape [3, H, W] or [1, H, W]: RGB or grey in [0, 1], the pixels as they are;
- `U8` of shape [N]: the N bytes of a PNG file.

Prompts are texts in the header's `__metadata__`: `prompt.0`, ... Nothing is unpickled, and JPEG is refused: both
sides see the same pixels, bit for bit, or an error. A single PNG may also be the whole body (`image/png`).

A reply is JSON: `fingerprint`, `batched`, and `images`, one object per image in order with `value`, `std`, `valid` and
`error`, and `notes` where reading a PNG file lost something, such as transparency. Numbers are float32 values written
so that reading them as doubles and rounding to float32 gives the same bits; NaN is null.
"""

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save
from torch import Tensor

from zoomiqa_reward.images.loading import ImageError, ImageSource, conversions, load_image, to_pil
from zoomiqa_reward.runs.json_lines import as_float, plain
from zoomiqa_reward.serving.errors import ServingError
from zoomiqa_reward.serving.spec import Limits

SAFETENSORS_TYPE = "application/x-safetensors"
PNG_TYPE = "image/png"
TRANSPORTS = ("auto", "png", "float")
WIRE_VERSION = 1
"""Of the format; a client asks no server of another one."""
MAX_HEADER_BYTES = 1 << 20
"""Of the safetensors header: names, shapes and prompts."""
PARTS = ("image", "lq", "hr")

_NAME = re.compile(r"(?:(lq|hr)\.)?(0|[1-9][0-9]{0,5})")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_LEVEL = 1  # of zlib: the higher ones take longer than sending what they save


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """One image as it travels."""

    data: bytes
    """A PNG file, or float32 little-endian values in C order."""
    shape: tuple[int, ...] | None = None
    """CHW of the values; None: `data` is a PNG file."""

    def size(self) -> tuple[int, int]:
        """Return (width, height) without decoding. Raises ImageError for what is no PNG file."""
        if self.shape is not None:
            return self.shape[2], self.shape[1]
        head = self.data[:24]
        if len(head) < 24 or head[:8] != _PNG_SIGNATURE or head[12:16] != b"IHDR":
            raise ImageError("not a PNG file: send PNG or raw floats; JPEG and others would change the pixels")
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")

    def notes(self) -> tuple[str, ...]:
        """Return what `load` loses of the PNG file, as `conversions` tells it; nothing of raw values."""
        if self.shape is not None:
            return ()
        with Image.open(io.BytesIO(self.data), formats=("PNG",)) as image:
            return conversions(image)

    def load(self) -> Tensor:
        """Return the float32 CHW image in [0, 1], by the rules of `load_image`. Raises ImageError."""
        if self.shape is not None:
            return load_image(torch.from_numpy(np.frombuffer(self.data, dtype="<f4").reshape(self.shape).copy()))
        self.size()
        try:
            with Image.open(io.BytesIO(self.data), formats=("PNG",)) as image:
                return load_image(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise error if isinstance(error, ImageError) else ImageError(f"damaged PNG file: {error}") from error


@dataclass(frozen=True, kw_only=True)
class ScoreItem:
    """One image to be scored, with what the reward needs beside it."""

    image: EncodedImage
    lq: EncodedImage | None = None
    hr: EncodedImage | None = None
    prompt: str | None = None

    @property
    def images(self) -> dict[str, EncodedImage]:
        """The images that are there, by their part."""
        return {name: image for name in PARTS if (image := getattr(self, name)) is not None}


def encode_image(source: ImageSource, transport: str = "auto") -> EncodedImage:
    """Return an image (anything `load_image` takes) ready to travel.

    png: as a PNG file, refused where 8 bits do not hold the pixels exactly; float: as float32 values; auto: PNG where
    it is exact, float32 otherwise. Raises ImageError, ValueError for another transport.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"transport={transport!r}: must be one of {', '.join(TRANSPORTS)}")
    tensor = load_image(source).detach().cpu().contiguous()
    if transport != "float":
        image = to_pil(tensor)
        if torch.equal(load_image(image), tensor):
            out = io.BytesIO()
            image.save(out, format="PNG", compress_level=_PNG_LEVEL)
            return EncodedImage(data=out.getvalue())
        if transport == "png":
            raise ImageError("8 bits do not hold these pixels exactly; send them with transport='float' or 'auto'")
    return EncodedImage(data=tensor.numpy().astype("<f4", copy=False).tobytes(), shape=tuple(tensor.shape))


def encode_request(items: Sequence[ScoreItem]) -> bytes:
    """Return the body of a request."""
    tensors, prompts = {}, {}
    for index, item in enumerate(items):
        for part, image in item.images.items():
            values = np.frombuffer(image.data, dtype=np.uint8 if image.shape is None else "<f4")
            name = str(index) if part == "image" else f"{part}.{index}"
            tensors[name] = values if image.shape is None else values.reshape(image.shape)
        if item.prompt is not None:
            prompts[f"prompt.{index}"] = item.prompt
    return save(tensors, metadata=prompts or None)


def decode_request(body: bytes, content_type: str, limits: Limits) -> list[ScoreItem]:
    """Return the images of a request. Raises ServingError: malformed, too_large, unsupported_media_type.

    Checked here: the format and the number of images. Too many pixels (`oversize`) and whether a PNG or its values can
    be used concern that image alone.
    """
    if content_type == PNG_TYPE:
        items = [ScoreItem(image=EncodedImage(data=body))]
    elif content_type == SAFETENSORS_TYPE:
        items = _items(*_parse(body))
    else:
        raise ServingError(
            "unsupported_media_type", f"{content_type or 'no Content-Type'!r}: send {SAFETENSORS_TYPE} or {PNG_TYPE}"
        )
    if len(items) > limits.max_images:
        raise ServingError("too_large", f"{len(items)} images; at most {limits.max_images} a request")
    return items


def oversize(item: ScoreItem, max_pixels: int) -> str | None:
    """Return which of an item's images has more than `max_pixels` (width x height), or None; decodes nothing."""
    for role, image in item.images.items():
        try:
            width, height = image.size()
        except ImageError:  # told when it is loaded
            continue
        if width * height > max_pixels:
            return f"{role} has {width}x{height} pixels; the server takes {max_pixels}"
    return None


def _parse(body: bytes) -> tuple[dict[str, EncodedImage], dict[str, str]]:
    """Return the images by name, and the header's texts."""
    length = int.from_bytes(body[:8], "little")
    if len(body) < 8 or length > min(MAX_HEADER_BYTES, len(body) - 8):
        raise ServingError("malformed", "not a safetensors file: its first 8 bytes give no length of a header in it")
    try:
        tensors = deserialize(body)  # type: ignore[no-untyped-call] # safetensors gives it no types
        texts = json.loads(body[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError) as error:
        raise ServingError("malformed", f"not a safetensors file: {error}") from error
    images = {}
    for name, tensor in tensors:
        kind, shape = tensor["dtype"], tuple(tensor["shape"])
        if kind == "U8" and len(shape) == 1:
            images[name] = EncodedImage(data=bytes(tensor["data"]))
        elif kind == "F32" and len(shape) == 3 and shape[0] in (1, 3) and min(shape) > 0:
            images[name] = EncodedImage(data=bytes(tensor["data"]), shape=shape)
        else:
            raise ServingError(
                "malformed", f"tensor {name!r} is {kind} {list(shape)}: must be F32 [3, H, W] or [1, H, W], or U8 [N]"
            )
    return images, texts


def _items(images: dict[str, EncodedImage], texts: dict[str, str]) -> list[ScoreItem]:
    for name in images:
        if not _NAME.fullmatch(name):
            raise ServingError("malformed", f"tensor {name!r}: names are '0', '1', ..., and 'lq.0', 'hr.0', ...")
    count = sum(name.isdigit() for name in images)
    expected = {f"{prefix}{index}" for prefix in ("", "lq.", "hr.") for index in range(count)}
    if count == 0 or not set(images) <= expected or not all(str(index) in images for index in range(count)):
        raise ServingError(
            "malformed", f"{count} images: they must be named '0' to '{max(count - 1, 0)}', none left out"
        )
    if unknown := sorted(set(texts) - {f"prompt.{index}" for index in range(count)}):
        raise ServingError("malformed", f"text {unknown[0]!r}: only 'prompt.0', ... belong to {count} images")
    return [
        ScoreItem(
            image=images[str(index)], lq=images.get(f"lq.{index}"), hr=images.get(f"hr.{index}"),
            prompt=texts.get(f"prompt.{index}"),
        )
        for index in range(count)
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One image's answer."""

    value: float = math.nan
    std: float = math.nan
    valid: bool = False
    error: dict[str, Any] | None = None
    """`ServingError.as_json()`; None exactly where valid."""
    notes: tuple[str, ...] = ()
    """What reading the PNG files lost (see `conversions`), each with the part that it was of."""

    @classmethod
    def failed(cls, kind: str, message: str) -> "ScoreRow":
        """Return the answer for an image without a value."""
        return cls(error=ServingError(kind, message).as_json())

    def as_json(self) -> dict[str, Any]:
        """Return the object of a reply, NaN as None."""
        fields: dict[str, Any] = plain({"value": self.value, "std": self.std, "valid": self.valid, "error": self.error})
        return fields | ({"notes": list(self.notes)} if self.notes else {})

    @classmethod
    def from_json(cls, fields: Any) -> "ScoreRow":
        """Return the answer that a reply holds. Raises ServingError (bad_reply) for anything else."""
        try:
            value, std, error = fields["value"], fields["std"], fields["error"]
            if fields["valid"] is True and error is None and not math.isnan(as_float(value)):
                return cls(value=as_float(value), std=as_float(std), valid=True)
            if fields["valid"] is False and value is None and isinstance(error["type"], str):
                return cls(error={key: error[key] for key in ("type", "message", "retryable")})
        except (KeyError, TypeError, ValueError):
            pass
        raise ServingError("bad_reply", f"no answer for an image: {str(fields)[:200]}")
