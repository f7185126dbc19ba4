"""Small clips that tests write with PyAV, frame by frame."""

from fractions import Fraction

import av
import numpy as np

FPS = 10


def write_clip(path, frames, *, fps=FPS, codec="ffv1", times=None):
    """Write uint8 HWC frames, lossless by default (a `.mkv` file). times: one number per frame, in frames."""
    with av.open(str(path), "w") as container:
        height, width = frames[0].shape[:2]
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.time_base = Fraction(1, fps)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def scene(seed=0, height=48, width=64):
    """A frame with content on several scales."""
    rng = np.random.default_rng(seed)
    levels = np.zeros((height, width, 3))
    for cell in (24, 12, 6, 3):
        noise = rng.random((-(-height // cell), -(-width // cell), 3))
        levels += noise.repeat(cell, 0).repeat(cell, 1)[:height, :width] * cell
    return (255 * (0.1 + 0.8 * levels / levels.max())).astype(np.uint8)


def brighter(frame, by):
    return np.clip(frame.astype(int) + by, 0, 255).astype(np.uint8)
