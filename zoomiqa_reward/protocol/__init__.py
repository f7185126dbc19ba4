"""How a Zoom-IQA model is asked and how its answers are read; `docs/protocol.md` is the guide."""

from zoomiqa_reward.protocol.answers import AnswerError, Route, read_rating, read_route, read_sections, read_tool
from zoomiqa_reward.protocol.crops import rating_to_score, usable_box, zoom, zoom_box, zoomed_size
from zoomiqa_reward.protocol.official import import_official
from zoomiqa_reward.protocol.spec import (
    PROTOCOL_FILE,
    CropPolicy,
    Decoding,
    Prompt,
    Protocol,
    ProtocolError,
    ViewPolicy,
)

__all__ = [
    "PROTOCOL_FILE",
    "AnswerError",
    "CropPolicy",
    "Decoding",
    "Prompt",
    "Protocol",
    "ProtocolError",
    "Route",
    "ViewPolicy",
    "import_official",
    "rating_to_score",
    "read_rating",
    "read_route",
    "read_sections",
    "read_tool",
    "usable_box",
    "zoom",
    "zoom_box",
    "zoomed_size",
]
