"""Clips: ratings of chosen frames, their mean, the worst second and flicker, in one pass and bounded memory.

`score_clip` (`scoring.py`) does it. `decoding.py` reads frames one by one; `choosing.py` says which are rated;
`flicker.py` looks at all of them. docs/video.md is the guide. The extra `video` holds PyAV.
"""

from zoomiqa_reward.video.decoding import VIDEO_SUFFIXES, VideoError
from zoomiqa_reward.video.scoring import ClipScore, RatedFrame, score_clip

__all__ = ["VIDEO_SUFFIXES", "ClipScore", "RatedFrame", "VideoError", "score_clip"]
