"""Frames of a clip one by one, by PyAV (FFmpeg): at most one decoded frame is in memory, whatever the length.

Each frame comes with its time and a small grey copy. The full image is converted only for frames that are rated.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images.loading import MAX_PIXELS

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

SMALL_PX = 64
"""Longer side of the grey copy: small enough to compare every frame, and that grain is averaged out."""


RESTART_S = 1.0
"""Where the clock of a file goes back by more, it has begun again, as in files that were joined: it goes on from there.
"""


class VideoError(ZoomIQAError, ValueError):
    """A clip cannot be read. The message names the file, the time where it happened, and the way out."""


class Frame:
    """One decoded frame; valid until the next one is decoded."""

    def __init__(self, decoded: "VideoFrame", index: int, time_s: float) -> None:
        self._decoded, self.index, self.time_s = decoded, index, time_s

    def small(self) -> NDArray[np.float32]:
        """Return the grey copy, [height, width] float32 in 0..1, its longer side 64 px."""
        width, height = self._decoded.width, self._decoded.height
        scale = SMALL_PX / max(width, height)
        size = {"width": max(2, round(width * scale)), "height": max(2, round(height * scale))}
        grey = self._decoded.reformat(**size, format="gray", interpolation="AREA").to_ndarray()
        levels: NDArray[np.float32] = grey.astype(np.float32) / np.float32(255)
        return levels

    def image(self) -> Tensor:
        """Return the frame as [3, height, width] float32 in [0, 1], turned as players show it."""
        pixels = self._decoded.to_ndarray(format="rgb24")
        turns = round(getattr(self._decoded, "rotation", 0) / 90) % 4
        upright = np.ascontiguousarray(np.rot90(pixels, turns).transpose(2, 0, 1))
        return torch.from_numpy(upright).float() / 255


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What the file says about itself; use `open_clip`."""

    file: str
    width: int
    height: int
    fps: float | None
    """Frames per second on average; None where the file does not say."""
    duration_s: float | None
    """None where the file does not say, as a stream without an index."""
    notes: tuple[str, ...] = ()

    def frames(self) -> Iterator[Frame]:
        """Decode the clip from its start and yield its frames. Raises VideoError where data are damaged."""
        with _opened(self.file) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            start, last = None, 0.0
            decoded, index = container.decode(stream), 0
            while True:
                try:
                    frame = next(decoded)
                except StopIteration:
                    return
                except _failures() as error:
                    raise VideoError(f"{self.file}: damaged after {last:.2f} s ({error}); convert it again") from error
                time_s = frame.time
                if time_s is None:  # a raw stream: by its number
                    time_s = index / (self.fps or 25.0) + (start or 0.0)
                start = time_s if start is None else start
                if time_s - start < last - RESTART_S:
                    start = time_s - last - 1 / (self.fps or 25.0)
                last = max(0.0, time_s - start)
                yield Frame(frame, index, last)
                index += 1


def open_clip(file: str | os.PathLike[str]) -> Clip:
    """Return what a file says about its first video stream, without decoding.

    Raises VideoError for a file that cannot be opened, without a video stream, or with frames of more pixels than
    images may have; ImportError naming the extra where PyAV is missing.
    """
    name = os.fspath(file)
    with _opened(name) as container:
        if not container.streams.video:
            raise VideoError(f"{name}: holds no video stream; name a clip")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS or min(width, height) < 1:
            raise VideoError(f"{name}: frames of {width} x {height} px; 1 to {MAX_PIXELS} pixels can be read")
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / 1_000_000
        rate = stream.average_rate
        notes = []
        if len(container.streams.video) > 1:
            notes.append(f"first of {len(container.streams.video)} video streams")
        ratio = stream.sample_aspect_ratio
        if ratio is not None and ratio not in (0, 1):
            notes.append(f"pixels are not square ({ratio}); frames are rated as stored")
        return Clip(
            file=name, width=width, height=height, fps=float(rate) if rate else None, duration_s=duration,
            notes=tuple(notes),
        )  # fmt: skip


def _opened(name: str) -> "InputContainer":
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name}: clips need PyAV: pip install -e '.[video]' in your clone", name="av"
        ) from error
    try:
        container: InputContainer = av.open(name)
        return container
    except _failures() as error:
        why = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{name}: cannot be opened as a clip ({why}); check the path, or convert it") from error


def _failures() -> tuple[type[Any], ...]:
    import av

    return (av.FFmpegError, OSError, ValueError)
