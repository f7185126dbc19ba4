"""The rating of a clip: of chosen frames, weighed by the time that each stands for; the worst second; flicker."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from zoomiqa_reward.rewards.argument_order import require_order
from zoomiqa_reward.rewards.base import Reward, ask, is_model, require_pointwise
from zoomiqa_reward.video.choosing import FrameChooser, step_for
from zoomiqa_reward.video.decoding import Clip, open_clip
from zoomiqa_reward.video.flicker import FlickerMeter

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

SHORT_S, SHORT_SHARE = 0.5, 0.05
"""What may be missing at the end of a clip, against what the file says: sound often ends later than the frames."""
GAP_FRAMES = 5
"""Times the usual distance of two frames: where the next frame is farther away, frames are missing."""
GRACE_S = 1.0
"""Time that rating may fall behind the clip before frames are skipped: the first rating takes longer."""


@dataclass(frozen=True, kw_only=True)
class RatedFrame:
    """One chosen frame."""

    index: int
    """Of the frame in the clip, from 0."""
    time_s: float
    """From the first frame."""
    chosen_by: str
    """`start`, `time` or `content`."""
    rating: float
    """NaN if it was skipped or has no rating."""
    std: float
    error: str | None = None
    """Why there is no rating."""
    is_skipped: bool = False
    """It was skipped to keep up."""


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """The rating of one clip."""

    clip: Clip
    rating: float
    """Mean over time, on the rater's scale; NaN if not valid."""
    std: float
    """Of the mixture of the frames' distributions: their own spread, and how far they lie apart."""
    valid: bool
    error: str | None
    worst_second: tuple[int, float] | None
    """Start of the second with the lowest mean rating, and that mean."""
    flicker: float
    """Percent of the grey range, over all frames (`flicker.py`); NaN with fewer than three frames."""
    worst_flicker: tuple[int, float] | None
    """Start of the second with the most flicker, and its mean."""
    frames: tuple[RatedFrame, ...]
    """Chosen frames in order, also those without a rating."""
    num_frames: int
    """Decoded frames."""
    duration_s: float
    """Up to the end of the last frame, as decoded."""
    seconds: float
    """Wall-clock time of decoding and rating."""
    notes: tuple[str, ...]
    """What was skipped or could not be rated, and what reading the file gave up."""


def score_clip(
    iqa_or_reward: "ZoomIQA | RemoteZoomIQA | Reward", file: str | os.PathLike[str], *, every_s: float | None = None,
    keep_up: bool = False, mode: str = "direct", question: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ClipScore:  # fmt: skip
    """Return the rating of a clip from chosen frames, decoded one by one; at most one frame is in memory.

    The rater is a ZoomIQA or any Reward that needs nothing but the image. Frames are chosen by content and time
    (`choosing.py`); every_s: seconds between two choices by time; None: 1, and more for clips of more than 5 minutes.
    keep_up: skip chosen frames while rating lies more than a second behind the clip, as a live stream needs; the
    result then depends on the machine, and `notes` say what was skipped. mode, question: as in `ZoomIQA.rate`.
    clock: seconds, for tests.

    A frame without content, such as black between two scenes, has no rating and takes no part in the mean.
    Raises VideoError for a file that cannot be read to its end, ValueError for a step that is not above 0 and for a
    Reward that compares images or needs more than one, ImportError where PyAV is missing.
    """
    require_order("score_clip(iqa_or_reward, file)", judges={"iqa_or_reward": iqa_or_reward})
    rate = _rater_of(iqa_or_reward, mode, question)
    clip = open_clip(file)
    chooser = FrameChooser(step_for(clip.duration_s) if every_s is None else every_s)
    meter, frames = FlickerMeter(), []
    began, last_s, step_s, count, widest = clock(), 0.0, 0.0, 0, (0.0, 0.0)
    for frame in clip.frames():
        small = frame.small()
        meter.add(frame.time_s, small)
        step_s, last_s, count = frame.time_s - last_s, frame.time_s, count + 1
        widest = max(widest, (step_s, last_s))
        why = chooser.choose(frame.time_s, small)
        if why is None:
            continue
        chosen: dict[str, Any] = {"index": frame.index, "time_s": frame.time_s, "chosen_by": why}
        if keep_up and clock() - began > frame.time_s + GRACE_S:
            error = "skipped to keep up"
            frames.append(RatedFrame(**chosen, rating=math.nan, std=math.nan, error=error, is_skipped=True))
            continue
        rating, std, why_not = rate(frame.image())
        frames.append(RatedFrame(**chosen, rating=rating, std=std, error=why_not))
    seconds = clock() - began
    duration_s = last_s + (step_s if count > 1 else 1 / clip.fps if clip.fps else 0.0)
    rating, std = _over_time(frames, duration_s)
    valid = math.isfinite(rating)
    return ClipScore(
        clip=clip, rating=rating, std=std, valid=valid, error=None if valid else _why_not(frames, clip.file),
        worst_second=_worst_second(frames), flicker=meter.mean, worst_flicker=meter.worst, frames=tuple(frames),
        num_frames=count, duration_s=duration_s, seconds=seconds,
        notes=(*clip.notes, *_cut_short(clip, duration_s), *_gap(clip, *widest), *_notes(frames, duration_s, seconds)),
    )  # fmt: skip


def _rater_of(
    source: "ZoomIQA | RemoteZoomIQA | Reward", mode: str, question: str | None
) -> Callable[[Tensor], tuple[float, float, str | None]]:
    """Return what gives (rating, std, error) of one image. Raises ValueError as `score_clip` says."""
    if is_model(source):
        iqa = cast("ZoomIQA | RemoteZoomIQA", source)

        def by_model(image: Tensor) -> tuple[float, float, str | None]:
            ratings = iqa.rate([image], mode=mode, strict=True, question=question)
            valid = bool(ratings.valid[0])
            return float(ratings.mean[0]), float(ratings.std[0]), None if valid else ratings.errors[0] or "no rating"

        return by_model
    reward = cast(Reward, source)
    require_pointwise(reward, "the frames of a clip are rated one by one")
    if reward.needs:
        raise ValueError(f"reward {reward.name!r} needs {', '.join(sorted(reward.needs))}, but a frame is one image")

    def by_reward(image: Tensor) -> tuple[float, float, str | None]:
        scores = ask(reward, [image])
        valid = bool(scores.valid[0])
        return float(scores.value[0]), float(scores.std[0]), None if valid else scores.reason(0, reward.name)

    return by_reward


def _over_time(frames: list[RatedFrame], duration_s: float) -> tuple[float, float]:
    """Return the mean and the standard deviation of the mixture; a frame stands for the time that is nearest to it."""
    rated = [frame for frame in frames if frame.error is None]
    if not rated:
        return math.nan, math.nan
    times = [frame.time_s for frame in rated]
    borders = [0.0, *((a + b) / 2 for a, b in pairwise(times)), max(duration_s, times[-1])]
    spans = [max(after - before, 1e-9) for before, after in pairwise(borders)]
    whole = sum(spans)
    mean = sum(span * frame.rating for span, frame in zip(spans, rated, strict=True)) / whole
    spread = sum(
        span * ((frame.std if math.isfinite(frame.std) else 0.0) ** 2 + (frame.rating - mean) ** 2)
        for span, frame in zip(spans, rated, strict=True)
    )
    return mean, math.sqrt(spread / whole)


def _worst_second(frames: list[RatedFrame]) -> tuple[int, float] | None:
    by_second: dict[int, list[float]] = {}
    for frame in frames:
        if frame.error is None:
            by_second.setdefault(int(frame.time_s), []).append(frame.rating)
    means = {second: sum(ratings) / len(ratings) for second, ratings in by_second.items()}
    return min(means.items(), key=lambda item: item[1], default=None)


def _why_not(frames: list[RatedFrame], file: str) -> str:
    if not frames:
        return f"{file}: holds no frames"
    return f"{file}: none of {len(frames)} chosen frames has a rating; the first: {frames[0].error}"


def _cut_short(clip: Clip, duration_s: float) -> list[str]:
    """Return a note where the file ends before the time that it states."""
    stated = clip.duration_s
    if stated is None or stated - duration_s <= max(SHORT_S, SHORT_SHARE * stated):
        return []
    return [f"the file states {stated:.1f} s, and {duration_s:.1f} s could be decoded: it is cut short or damaged"]


def _gap(clip: Clip, step_s: float, end_s: float) -> list[str]:
    """Return a note where frames are missing. step_s: the longest time without a frame; end_s: where it ends."""
    if clip.fps is None or step_s * clip.fps <= GAP_FRAMES:
        return []
    return [f"no frame from {end_s - step_s:.1f} to {end_s:.1f} s: the file is damaged there, or its frame rate varies"]


def _notes(frames: list[RatedFrame], duration_s: float, seconds: float) -> list[str]:
    """Return what a reader of the numbers needs to know."""
    notes = []
    skipped = [frame for frame in frames if frame.is_skipped]
    if skipped:
        notes.append(
            f"to keep up, {len(skipped)} of {len(frames)} chosen frames were skipped, from {skipped[0].time_s:.1f} "
            f"to {skipped[-1].time_s:.1f} s; decoding and rating the others took {seconds:.1f} s for {duration_s:.1f} s"
        )
    failed = [frame for frame in frames if frame.error is not None and not frame.is_skipped]
    if failed and len(failed) < len(frames):
        notes.append(
            f"{len(failed)} of {len(frames)} chosen frames have no rating; the first, at {failed[0].time_s:.1f} s: "
            f"{failed[0].error}"
        )
    return notes
