"""The protocol file `zoomiqa_protocol.json`: all that a checkpoint needs beyond transformers' own files.

A model must be asked with the prompts that it was trained on, so prompts, crop policy, pixel budget and the way
several views of one image combine travel with the weights. Nothing else in the package knows which model it has.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.runs.digest import digest
from zoomiqa_reward.runs.outputs import claim_file, write_text

PROTOCOL_FILE = "zoomiqa_protocol.json"
FORMAT_VERSION = 1


class ProtocolError(ZoomIQAError, ValueError):
    """A protocol file that is missing, unreadable or breaks a rule; the message names the field and the way out."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt text."""

    text: str
    style: str = "format"
    """`format`: `text.format(question=...)` (doubled braces become single); `verbatim`: sent as it stands."""

    def __post_init__(self) -> None:
        if self.style not in ("format", "verbatim"):
            raise ProtocolError(f"prompt style {self.style!r}: must be 'format' or 'verbatim'")

    def render(self, question: str) -> str:
        """Return the text as sent to the model."""
        if self.style == "verbatim":
            return self.text
        try:
            return self.text.format(question=question)
        except (KeyError, IndexError, ValueError) as error:
            raise ProtocolError(
                f"a 'format' prompt may only hold {{question}} and doubled braces: {error!r}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class PairPrompt:
    """How a model compares two images in one question."""

    text: str
    """Sent as it stands, before the two images."""
    labels: tuple[str, str]
    """Texts before the first and before the second image."""
    answers: tuple[str, str]
    """The answer that prefers the first image, and the one that prefers the second."""
    prefix: str = ""
    """Start of the assistant's answer up to where one of the two stands."""

    def __post_init__(self) -> None:
        if len(self.labels) != 2 or len(self.answers) != 2 or self.answers[0] == self.answers[1]:
            raise ProtocolError(
                f"pair: labels {self.labels} and answers {self.answers}: give two of each, and two different answers"
            )


@dataclass(frozen=True, kw_only=True)
class CropPolicy:
    """How round 2's region is cut; defaults are the official evaluator's."""

    min_area_frac: float = 0.25
    """A smaller box is scaled up about its centre to this share of the image's area."""
    max_area_frac: float = 0.75
    """A larger box is scaled down about its centre to this share."""
    min_side_px: int = 28
    """Shortest side of a crop, where the image is that large."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_area_frac <= self.max_area_frac <= 1 or self.max_area_frac == 0 or self.min_side_px < 1:
            raise ProtocolError(
                f"crop: the shares of the area {self.min_area_frac}..{self.max_area_frac} must be a range in 0..1, and "
                f"min_side_px={self.min_side_px} at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """Which views of an image `direct` reads, and how their ratings combine.

    The rating distributions of a scale's tiles are mixed by the share of pixels that are nearest to each tile, then
    the scales and the whole by their weights. Scales that an image is too small for are left out and the rest
    renormalised; an image too small for all is read whole.
    """

    scales: tuple[float, ...] = (1.0,)
    """Scales (1 = native) read as overlapping tiles; nothing is resampled at 1."""
    weights: tuple[float, ...] = (1.0,)
    """Weight of each scale of `scales`, at least 0."""
    whole_weight: float = 0.0
    """Weight of the whole image as the processor resizes it. An image that it would not change is its own native
    view: it is read once, whole, with this weight and scale 1's together."""
    tile_px: int = 336
    """Longest side of a tile in pixels; a multiple of patch x merge."""
    min_side_px: int = 56
    """A scale at which the image's shorter side falls below this is left out."""

    @classmethod
    def whole(cls) -> "ViewPolicy":
        """Return the cheapest policy: the image once, as the processor resizes it, which hides what is fine."""
        return cls(scales=(1.0,), weights=(0.0,), whole_weight=1.0)

    def __post_init__(self) -> None:
        if len(self.scales) != len(self.weights):
            raise ProtocolError(f"views: {len(self.scales)} scales but {len(self.weights)} weights")
        if any(not 0 < s <= 1 for s in self.scales) or len(set(self.scales)) != len(self.scales):
            raise ProtocolError(f"views: scales {self.scales} must be different and in (0, 1]")
        if any(w < 0 for w in (*self.weights, self.whole_weight)) or sum(self.weights) + self.whole_weight <= 0:
            raise ProtocolError(f"views: weights {self.weights} and {self.whole_weight} must be >= 0, not all 0")
        if self.tile_px < 28 or self.min_side_px < 1:
            raise ProtocolError(f"views: tile_px {self.tile_px} must be >= 28, min_side_px {self.min_side_px} >= 1")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Default decoding of the reasoning rounds."""

    temperature: float = 0.0
    """0 is greedy: one image, one rating."""
    top_p: float = 0.95
    top_k: int = 50
    max_new_tokens: int = 1024
    """Per round."""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.top_k >= 0 and self.max_new_tokens >= 1):
            raise ProtocolError(
                f"decoding: temperature={self.temperature} and top_k={self.top_k} must be at least 0, "
                f"top_p={self.top_p} in (0, 1], max_new_tokens={self.max_new_tokens} at least 1"
            )


ROUND1_SECTIONS = (
    "Image Quality Summary", "Directions for Improvement", "Issues to Avoid", "Decision & Rationale",
)  # fmt: skip
ROUND2_SECTIONS = (
    "Crop Inspection Summary", "Directions for Improvement", "Issues to Avoid", "Final Decision & Rationale",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a Zoom-IQA model is asked and read. Source: official evaluator (shape), `docs/protocol.md` (fields)."""

    name: str
    """Whose prompts these are, for messages and fingerprints."""
    round1: Prompt
    round2: Prompt
    questions: tuple[str, ...]
    """The first one is the default question."""
    direct_prefix: str
    """Start of the assistant's answer up to where the rating's first digit, or the level word, stands."""
    sections1: tuple[str, ...] = ROUND1_SECTIONS
    sections2: tuple[str, ...] = ROUND2_SECTIONS
    image_labels: tuple[str, str] = ("Original image: ", "Cropped Image: ")
    """Texts before the whole image and before the crop in round 2."""
    answer_starts: tuple[str, ...] = ()
    """Empty, or two texts: what the answers of rounds 1 and 2 begin with. The model writes on from there."""
    image_order: str = "text_first"
    """Round 1: `text_first` or `image_first`."""
    history_style: str = "question_answer"
    """Round 2's history: `question_answer` (bare question without image, then round 1's whole answer) or `none`."""
    crop: CropPolicy = field(default_factory=CropPolicy)
    views: ViewPolicy = field(default_factory=ViewPolicy)
    decoding: Decoding = field(default_factory=Decoding)
    min_pixels: int = 3136
    """Pixel budget of one image that the processor may resize: lower bound."""
    max_pixels: int = 1003520
    """Upper bound."""
    levels: tuple[str, ...] = ()
    """Level words from worst to best. Empty: the model answers with a number. Otherwise the rating is the mean of their
    values, evenly spaced over 1..5, by their probabilities; there are no rounds of words."""
    pair: PairPrompt | None = None
    """How two images are compared in one question; None: the model was not trained for that."""
    box_margin: float = 0.0
    """Fraction of the image's sides by which a told box (`Turn.bbox`) reaches further at each edge than the box in the
    words: a correction for a model whose boxes are too small. The crop and every rating follow the words, so it is no
    part of the fingerprint."""
    retries: int = 0
    """How often a greedy answer that cannot be read is asked for again; then it is sampled, seeded by the image."""
    label_metrics: tuple[str, ...] = ()
    """Full-reference metrics that made the pseudo-MOS this model was trained on; refused as a headline elsewhere."""

    def __post_init__(self) -> None:
        if not self.questions:
            raise ProtocolError("protocol: `questions` is empty; the first one is the default question")
        if len(self.answer_starts) not in (0, 2):
            raise ProtocolError(f"protocol: answer_starts {self.answer_starts!r} must be empty or two texts")
        if self.image_order not in ("text_first", "image_first"):
            raise ProtocolError(f"protocol: image_order {self.image_order!r} must be text_first or image_first")
        if self.history_style not in ("question_answer", "none"):
            raise ProtocolError(f"protocol: history_style {self.history_style!r} must be question_answer or none")
        if not 0 <= self.box_margin < 0.5:
            raise ProtocolError(f"protocol: box_margin {self.box_margin!r} must be at least 0 and below 0.5")
        if self.retries < 0:
            raise ProtocolError(f"protocol: retries {self.retries!r} must be at least 0")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ProtocolError(
                f"protocol: min_pixels={self.min_pixels} must be above 0, and at most max_pixels={self.max_pixels}"
            )
        if self.levels and (len(set(self.levels)) < max(2, len(self.levels)) or not all(map(str.strip, self.levels))):
            raise ProtocolError(f"protocol: levels {self.levels} must be two or more different words, worst first")

    @property
    def level_ratings(self) -> dict[str, float]:
        """The rating of each level word, 1 for the worst .. 5 for the best; empty where answers are numbers."""
        steps = max(1, len(self.levels) - 1)
        return {word: 1.0 + 4.0 * index / steps for index, word in enumerate(self.levels)}

    def answer_start(self, number: int) -> str:
        """Return the text that the answer of round 1 or 2 begins with; mostly empty."""
        return self.answer_starts[number - 1] if self.answer_starts else ""

    @property
    def fingerprint(self) -> str:
        """Short hash of all fields that a rating can depend on: two models asked differently are two rewards."""
        return digest(json.dumps(replace(self, box_margin=0.0)._stated(), sort_keys=True))

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps({"format_version": FORMAT_VERSION, **self._stated()}, indent=2, ensure_ascii=False) + "\n"

    def _stated(self) -> dict[str, Any]:
        """Return all fields but those that came later and say nothing: files and fingerprints stay as they were."""
        values = asdict(self)
        return {key: value for key, value in values.items() if key not in _LATER or value}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the file (or `zoomiqa_protocol.json` into the folder `path`) in one step and return where it is.

        Replaces a protocol file; another file only with `overwrite`. Raises OutputError, OSError.
        """
        target = Path(path)
        if target.is_dir():
            target = target / PROTOCOL_FILE
        return write_text(claim_file(target, overwrite=overwrite), self.to_json(), overwrite=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Protocol":
        """Build from the parsed JSON. Raises ProtocolError naming the field that is missing, unknown or wrong."""
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise ProtocolError(f"format_version is {version!r}; this release reads {FORMAT_VERSION}")
        fields = {key: value for key, value in data.items() if key != "format_version"}
        protocol: Protocol = _build(cls, fields, "protocol")
        return protocol

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Protocol":
        """Read a protocol file, or the one in the folder `path`. Raises ProtocolError."""
        target = Path(path)
        if target.is_dir():
            target = target / PROTOCOL_FILE
        try:
            data = json.loads(target.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ProtocolError(f"{target}: no such protocol file") from error
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ProtocolError(f"{target}: not a readable JSON protocol file ({error})") from error
        if not isinstance(data, dict):
            raise ProtocolError(f"{target}: a protocol file holds one JSON object, not a {type(data).__name__}")
        try:
            return cls.from_dict(data)
        except ProtocolError as error:
            raise ProtocolError(f"{target}: {error}") from error


_LATER = ("levels", "pair", "answer_starts", "box_margin", "retries")
_NESTED = {
    "round1": Prompt, "round2": Prompt, "crop": CropPolicy, "views": ViewPolicy, "decoding": Decoding,
    "pair": PairPrompt,
}  # fmt: skip


_KINDS = {str: "a text", int: "a whole number", float: "a finite number"}


def _require_kind(value: Any, hint: Any, where: str) -> None:
    """Raise ProtocolError unless a value of the file is what its field holds: a text is no list of its letters."""
    if get_origin(hint) is not tuple:
        if not _is_kind(value, hint):
            raise ProtocolError(f"{where}: must be {_KINDS[hint]}, not {value!r}")
        return
    kind, *others = get_args(hint)
    count = None if Ellipsis in others else 1 + len(others)
    is_list = isinstance(value, tuple) and count in (None, len(value))
    if not is_list or not all(_is_kind(item, kind) for item in value):
        size = "" if count is None else f" of {count}"
        raise ProtocolError(f"{where}: must be a list{size}, each {_KINDS[kind]}, not {value!r}")


def _is_kind(value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str)
    is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _build(cls: Any, data: Mapping[str, Any], where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ProtocolError(f"{where}: must be a JSON object, not a {type(data).__name__}")
    field_names = {f.name for f in fields(cls)}
    if unknown := sorted(set(data) - field_names):
        raise ProtocolError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(sorted(field_names))}")
    values: dict[str, Any] = {}
    hints = get_type_hints(cls)
    for key, value in data.items():
        if key in _NESTED:
            is_absent = key == "pair" and value is None
            values[key] = None if is_absent else _build(_NESTED[key], value, f"{where}.{key}")
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
            _require_kind(values[key], hints[key], f"{where}.{key}")
    try:
        return cls(**values)
    except TypeError as error:  # a missing field, or a comparison between wrong types in __post_init__
        raise ProtocolError(f"{where}: {error}") from error
