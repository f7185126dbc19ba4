"""Which region is restored again, with which words, and how the result is put into the image.

The answer is read by the protocol's own rules. The region is the box that round 1 names when it asks for a closer look,
not the larger crop that round 2 gets. The words are the two middle ones of the four sections of each round's reasoning:
"Directions for Improvement" and "Issues to Avoid", unless the protocol names them otherwise.

The region is cut out of the low-quality image with context around it, so that the restorer gets its surroundings.
Inside the region the new pixels replace the old ones. Outside they fade into the old ones by a raised cosine, which
ends before the outer 3/8 of the context; the outer part is not used. If a restorer's output depends on no more than
that radius of input, it gives the same pixels there as for the whole image. With other restorers the transition is
gradual.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from restoration.restorer.image_io import PROMPT, prompt_text
from restoration.restorer.restorer import Restorer
from restoration.restorer.tiling import whole_scale
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.turns import PixelBox
from zoomiqa_reward.protocol import AnswerError, CropPolicy, Protocol, read_route, zoom_box
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS

MIN_REGION_LQ_PX = 16
"""Shortest side of a region, where the image is that large: less is a speck that its own fade would cover."""
DIRECTIONS, ISSUES = 1, 2
"""Places of the two sections among a round's four."""


@dataclass(frozen=True, kw_only=True)
class ZoomRequest:
    """What an assessment asks for."""

    box: PixelBox | None
    """Region to restore again (left, top, right, bottom), in pixels of the low-quality image; None: nothing."""
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
    """Return what the assessment of an image of `width` x `height` pixels asks for.

    scale: how many times larger that image is than the low-quality one; the box is rounded outwards to its pixels.
    An unreadable round 2 takes nothing back: the region stands in round 1, the words are then round 1's too. An image
    without content was not asked about; the reason is the request's error.
    """
    if not assessment.turns:
        return ZoomRequest(box=None, error=assessment.error)
    directions, issues = (section_of(assessment, protocol, index) for index in (DIRECTIONS, ISSUES))
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


def section_of(assessment: Assessment, protocol: Protocol, index: int) -> str:
    """Return a section's text on one line, of the last readable round that has it; empty where none has.

    The section is the one with the official label, or the one at `index` of four with other labels. A protocol with
    neither has no such section.
    """
    # An unreadable round 2 often runs on, and its last section would hold the rest of the answer.
    turns = assessment.turns if assessment.valid else assessment.turns[:1]
    labels = (protocol.sections1, protocol.sections2)
    for turn, names in reversed(list(zip(turns, labels, strict=False))):
        label = ROUND1_SECTIONS[index]
        if label not in names and len(names) == len(ROUND1_SECTIONS):
            label = names[index]
        text = " ".join(turn.sections.get(label, "").split())
        if text:
            return text
    return ""


def texts_for(restorer: Restorer, zoom_request: ZoomRequest | None, image: Tensor) -> dict[str, str]:
    """Return what the restorer is told about this CHW image: `prompt`, `negative_prompt`, those that it takes.

    Its own text comes first, then the model's. Empty for a restorer that takes no text.
    """
    sections = ("", "") if zoom_request is None else (zoom_request.directions, zoom_request.issues)
    pairs: dict[str, tuple[PROMPT, str]] = {
        "prompt": (restorer.prompt, sections[0]), "negative_prompt": (restorer.negative_prompt, sections[1]),
    }  # fmt: skip
    return {
        key: ", ".join(part for part in (prompt_text(base, image), words) if part)
        for key, (base, words) in pairs.items()
        if key in restorer.engine.prompts
    }


CONTEXT_LQ_PX = 16
"""Least context on each side, in pixels of the low-quality image, except at the image's own border."""
MIN_CROP_LQ_PX = 64
"""Shortest side that a restorer is given, where the image has it: diffusion models make little of a smaller one."""
FADE_LQ_PX = (2.0, 10.0)
"""Distances from the region at which the fade begins and ends: the context less its outer 3/8."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of the low-quality image, in its pixels: (left, top, right, bottom)."""

    box: PixelBox
    """What was asked for."""
    crop: PixelBox
    """What is restored: the box with its context."""

    @classmethod
    def around(cls, box: PixelBox, image_lq: Tensor) -> "Region":
        """Return the region of a box inside a CHW image. Raises ValueError for an empty box, or one outside."""
        height, width = image_lq.shape[1:]
        left, top, right, bottom = box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"box {box}: must hold a pixel, and lie in the image of {width} x {height} px")
        (x0, x1), (y0, y1) = _with_context(left, right, width), _with_context(top, bottom, height)
        return cls(box=box, crop=(x0, y0, x1, y1))

    def cut(self, image: Tensor, scale: int = 1) -> Tensor:
        """Return the crop out of a CHW image that is `scale` times larger than the low-quality one."""
        left, top, right, bottom = (side * scale for side in self.crop)
        return image[:, top:bottom, left:right].contiguous()

    def weights(self, scale: int) -> Tensor:
        """Return the share of the new pixels in the crop, [height, width] float32: 1 in the box, fading around it."""
        left, top, right, bottom = self.box
        across = _fade(self.crop[0], self.crop[2], left, right, scale)
        down = _fade(self.crop[1], self.crop[3], top, bottom, scale)
        return down[:, None] * across[None]

    def blended(self, image: Tensor, patch: Tensor, image_lq: Tensor) -> Tensor:
        """Return the CHW `image` with the restored crop `patch` faded in; what lies outside keeps its bits.

        Raises ValueError where either is not as many times larger as the other.
        """
        scale = whole_scale(image_lq, image)
        old = self.cut(image, scale)
        if patch.shape != old.shape:
            raise ValueError(
                f"the region came back as {patch.shape[2]} x {patch.shape[1]} px where {old.shape[2]} x "
                f"{old.shape[1]} px were expected: the restorer must enlarge parts as it enlarges the whole"
            )
        left, top, right, bottom = (side * scale for side in self.crop)
        blend = image.clone()
        blend[:, top:bottom, left:right] = old + self.weights(scale) * (patch - old)
        return blend


def _with_context(start: int, end: int, length: int) -> tuple[int, int]:
    """Return the span with its context, as long as it should be wherever it lies.

    >>> _with_context(40, 60, 200), _with_context(0, 20, 200), _with_context(40, 60, 50)
    ((18, 82), (0, 64), (0, 50))
    """
    wanted = min(max(end - start + 2 * CONTEXT_LQ_PX, MIN_CROP_LQ_PX), length)
    first = min(max((start + end - wanted) // 2, 0), length - wanted)
    return first, first + wanted


def _fade(first: int, last: int, start: int, end: int, scale: int) -> Tensor:
    position = (
        first + (torch.arange((last - first) * scale, dtype=torch.float64) + 0.5) / scale
    )  # centres, in LR pixels
    outside = torch.maximum(start - position, position - end).clamp(min=0)
    begins, ends = FADE_LQ_PX
    step = ((outside - begins) / (ends - begins)).clamp(0, 1)
    return (0.5 + 0.5 * torch.cos(math.pi * step)).float()
