"""`zoomiqa score` and `zoomiqa rank` of clips: which arguments are clips, and their lines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from zoomiqa_reward.video.suffixes import is_clip

if TYPE_CHECKING:
    from zoomiqa_reward.model.measuring import Measured
    from zoomiqa_reward.model.zoomiqa import ZoomIQA
    from zoomiqa_reward.video import ClipScore

Every = Annotated[
    float | None,
    typer.Option(
        "--every", help="Of clips: seconds between frames; default 1, more for clips over 5 minutes.", min=0.001
    ),
]
KeepUp = Annotated[
    bool, typer.Option("--keep-up", help="Of clips: skip frames while rating is slower than the clip; notes say which.")
]


@dataclass(frozen=True)
class MeasuredClip:
    """A clip's record, as rankings and tables take it, and its score; None where it could not be read."""

    measured: "Measured"
    score: "ClipScore | None"

    def as_json(self) -> dict[str, object]:
        """Return the fields of an image's line, and those that only clips have."""
        return self.measured.record.as_json() | clip_fields(self.score)


def are_clips(files: Sequence[str], every: float | None, keep_up: bool, **refused: object) -> bool:
    """Return whether the files are clips. refused: options by name that clips do not have, and their values.

    Raises ValueError where images and clips are mixed, for an option that clips do not have, and for one of clips where
    there is none.
    """
    clips = [file for file in files if is_clip(file)]
    images = [file for file in files if not is_clip(file)]
    if clips and images:
        raise ValueError(f"{clips[0]} is a clip and {images[0]} is none: give clips and images in calls of their own")
    if clips and (given := [name for name, value in refused.items() if value]):
        raise ValueError(f"{clips[0]}: --{given[0]} is for images; --json prints the ratings of clips")
    if images and (every is not None or keep_up):
        name = "--keep-up" if every is None else "--every"
        raise ValueError(f"{name} is for clips, and {images[0]} is none")
    return bool(clips)


def measure_clips(
    iqa: "ZoomIQA", files: Sequence[str], *, mode: str, question: str | None, every_s: float | None, keep_up: bool
) -> Iterator[MeasuredClip]:
    """Yield one record per clip, in order. A clip that cannot be read is not valid, with its error."""
    from zoomiqa_reward.model.measuring import Measured, RatedImage
    from zoomiqa_reward.video import VideoError, score_clip

    for file in files:
        try:
            score = score_clip(iqa, file, every_s=every_s, keep_up=keep_up, mode=mode, question=question)
        except VideoError as error:
            failed = RatedImage(image=file, valid=False, error=str(error), mode=mode, model=iqa.name)
            yield MeasuredClip(Measured(record=failed), None)
            continue
        record = RatedImage(
            image=file, rating=score.rating, std=score.std, valid=score.valid, error=score.error, mode=mode,
            model=iqa.name, notes=(*_summary(score), *score.notes),
        )  # fmt: skip
        yield MeasuredClip(Measured(record=record), score)


def _summary(score: "ClipScore") -> list[str]:
    """Return what stands below a clip's name in a table."""
    rated = sum(frame.error is None for frame in score.frames)
    lines = [f"{rated} of {score.num_frames} frames rated, {score.duration_s:.1f} s, "
             f"{score.clip.width} x {score.clip.height} px"]  # fmt: skip
    if score.worst_second is not None:
        second, rating = score.worst_second
        lines.append(f"worst second: {_clock(second)}, {rating:.2f}")
    if score.worst_flicker is not None:
        second, value = score.worst_flicker
        lines.append(f"flicker: {score.flicker:.2f} %, most at {_clock(second)}: {value:.2f} %")
    return lines


def _clock(second: int) -> str:
    return f"{second // 3600}:{second // 60 % 60:02d}:{second % 60:02d}"


def clip_fields(score: "ClipScore | None") -> dict[str, object]:
    """Return the fields that only clips have; None for all of them where the clip could not be read."""
    from zoomiqa_reward.runs.json_lines import plain

    names = ("worst_second", "flicker", "worst_flicker", "frames", "num_frames", "duration_s", "fps", "width",
             "height", "skipped", "seconds")  # fmt: skip
    if score is None:
        return dict.fromkeys(names)
    worst, flicker = score.worst_second, score.worst_flicker
    fields: dict[str, object] = {
        "worst_second": None if worst is None else {"start_s": worst[0], "rating": worst[1]},
        "flicker": score.flicker,
        "worst_flicker": None if flicker is None else {"start_s": flicker[0], "flicker": flicker[1]},
        "frames": [
            {"index": frame.index, "time_s": round(frame.time_s, 4), "chosen_by": frame.chosen_by,
             "rating": frame.rating, "std": frame.std, "error": frame.error}
            for frame in score.frames
        ],
        "num_frames": score.num_frames, "duration_s": round(score.duration_s, 4), "fps": score.clip.fps,
        "width": score.clip.width, "height": score.clip.height,
        "skipped": sum(frame.is_skipped for frame in score.frames), "seconds": round(score.seconds, 3),
    }  # fmt: skip
    assert set(fields) == set(names)
    result: dict[str, object] = plain(fields)
    return result
