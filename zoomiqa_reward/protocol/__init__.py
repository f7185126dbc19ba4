"""How a Zoom-IQA model is asked and how its answers are read; `docs/protocol.md` is the guide."""

from zoomiqa_reward.protocol.answers import AnswerError, Route, read_rating, read_route, read_sections, read_tool
from zoomiqa_reward.protocol.crops import box_shares, rating_to_score, usable_box, zoom, zoom_box, zoomed_size
from zoomiqa_reward.protocol.level_words import LEVEL_WORDS, level_words
from zoomiqa_reward.protocol.official import import_official
from zoomiqa_reward.protocol.spec import (
    PROTOCOL_FILE,
    CropPolicy,
    Decoding,
    PairPrompt,
    Prompt,
    Protocol,
    ProtocolError,
    ViewPolicy,
)

__all__ = [
    "LEVEL_WORDS",
    "PROTOCOL_FILE",
    "AnswerError",
    "CropPolicy",
    "Decoding",
    "PairPrompt",
    "Prompt",
    "Protocol",
    "ProtocolError",
    "Route",
    "ViewPolicy",
    "box_shares",
    "import_official",
    "level_words",
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
