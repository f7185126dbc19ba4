"""Clips: ratings of chosen frames, their mean, the worst second and flicker, in one pass and bounded memory.

`score_clip` (`scoring.py`) does it. `decoding.py` reads frames one by one; `choosing.py` says which are rated;
`flicker.py` looks at all of them. docs/video.md is the guide. The extra `video` holds PyAV.
"""

from typing import TYPE_CHECKING

from zoomiqa_reward.lazy import lazy_exports

if TYPE_CHECKING:
    from zoomiqa_reward.video.decoding import VideoError
    from zoomiqa_reward.video.scoring import ClipScore, RatedFrame, score_clip
    from zoomiqa_reward.video.suffixes import VIDEO_SUFFIXES

_HOMES = {
    "VIDEO_SUFFIXES": "suffixes",
    "ClipScore": "scoring",
    "RatedFrame": "scoring",
    "VideoError": "decoding",
    "score_clip": "scoring",
}

__all__ = ["VIDEO_SUFFIXES", "ClipScore", "RatedFrame", "VideoError", "score_clip"]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
