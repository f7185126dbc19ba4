"""What the model asks for when it has assessed a picture: where to restore again, and in which words.

The answer is read by the protocol's own rules. Where: the box that round 1 names when it wants to look closer, as it
stands there, not the larger crop that round 2 is shown. In which words: the two middle ones of the four sections that
each round's reasoning has, "Directions for Improvement" and "Issues to Avoid" unless the protocol calls them otherwise.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from restoration.restorer.image_io import PROMPT, prompt_text
from restoration.restorer.restorer import Restorer
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.turns import PixelBox
from zoomiqa_reward.protocol import AnswerError, CropPolicy, Protocol, read_route, zoom_box
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS

MIN_REGION_LQ_PX = 16
"""Shortest side of a region, where the picture is that large: less is a speck that its own fade would cover."""
DIRECTIONS, ISSUES = 1, 2
"""Places of the two sections among a round's four."""


@dataclass(frozen=True, kw_only=True)
class ZoomRequest:
    """What an assessment asks for."""

    box: PixelBox | None
    """Region to restore again (left, top, right, bottom), in pixels of the low-quality picture; None: nothing."""
    is_central: bool = False
    """The box in the answer meant nothing, so the protocol's fallback, the central half, was looked at."""
    directions: str = ""
    """"Directions for Improvement"; empty where the model wrote none."""
    issues: str = ""
    """"Issues to Avoid"; empty where the model wrote none."""
    rating: float = math.nan
    """The rating in the answer, 1..5; NaN where its last round was unreadable."""
    error: str | None = None
    """Why it cannot be told what the answer asks for."""


def read_zoom_request(assessment: Assessment, protocol: Protocol, width: int, height: int, scale: int) -> ZoomRequest:
    """Return what the assessment of a picture of `width` x `height` pixels asks for.

    scale: how many times larger that picture is than the low-quality one; the box is rounded outwards to its pixels.
    An unreadable round 2 takes nothing back: the region stands in round 1, the words are then round 1's too.
    """
    directions, issues = (section_of(assessment, protocol, place) for place in (DIRECTIONS, ISSUES))
    try:
        route = read_route(assessment.turns[0].text)
    except AnswerError as error:
        return ZoomRequest(box=None, directions=directions, issues=issues, rating=assessment.rating, error=str(error))
    box, is_central = None, False
    if route.zoom:
        # No share of the area is asked for: that rule is for what a model is shown, not for what it named.
        policy = CropPolicy(min_area_frac=0.0, max_area_frac=1.0, min_side_px=MIN_REGION_LQ_PX * scale)
        (left, top, right, bottom), is_central = zoom_box(route.bbox, width, height, policy)
        box = left // scale, top // scale, -(-right // scale), -(-bottom // scale)
    return ZoomRequest(box=box, is_central=is_central, directions=directions, issues=issues, rating=assessment.rating)


def section_of(assessment: Assessment, protocol: Protocol, place: int) -> str:
    """Return a section's text on one line, of the last readable round that has it; empty where none has.

    The section is the one with the official label, or the one at `place` of four with other labels. A protocol with
    neither has no such section.
    """
    # An unreadable round 2 often runs on, and its last section would hold the rest of the answer.
    turns = assessment.turns if assessment.valid else assessment.turns[:1]
    labels = (protocol.sections1, protocol.sections2)
    for turn, known in reversed(list(zip(turns, labels, strict=False))):
        label = ROUND1_SECTIONS[place]
        if label not in known and len(known) == len(ROUND1_SECTIONS):
            label = known[place]
        text = " ".join(turn.sections.get(label, "").split())
        if text:
            return text
    return ""


def texts_for(restorer: Restorer, zoom_request: ZoomRequest | None, image: Tensor) -> dict[str, str]:
    """Return what the restorer is told about this CHW picture: `prompt`, `negative_prompt`, those that it takes.

    Its own text comes first, then the model's. Empty for a restorer that takes no text.
    """
    said = ("", "") if zoom_request is None else (zoom_request.directions, zoom_request.issues)
    pairs: dict[str, tuple[PROMPT, str]] = {
        "prompt": (restorer.prompt, said[0]), "negative_prompt": (restorer.negative_prompt, said[1]),
    }  # fmt: skip
    return {
        key: ", ".join(part for part in (prompt_text(own, image), words) if part)
        for key, (own, words) in pairs.items()
        if key in restorer.engine.prompts
    }
