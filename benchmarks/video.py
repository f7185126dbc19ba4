"""Whether rating a clip keeps up with it, and what a long clip and 4K take: seconds, frames skipped, memory.

python benchmarks/video.py [--image PHOTO] [--seconds 20] [--fps 25] [--large-frames 120] [--parts keep_up large]

keep_up: a clip of 640 x 360 px that moves over the photograph with a cut every five seconds, rated by the embedded
model with `keep_up=True`, once as it reads images and once with each frame read whole (`ViewPolicy.whole()`).
large: frames of 3840 x 2160 px, decoded and compared, and rated by a mean that costs little, against a tenth as many:
frames per second, and the growth of the peak of resident memory.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from common import write_result
from PIL import Image

from restoration.demo import bundled_photograph
from zoomiqa_reward import MetricReward, ZoomIQA, score_clip
from zoomiqa_reward.protocol.spec import ViewPolicy

CUT_S = 5


def write_clip(path: Path, image: Path, size: tuple[int, int], count: int, fps: int) -> Path:
    """Write a moving clip of MPEG-4; odd scenes are mirrored."""
    width, height = size
    with Image.open(image) as opened:
        large = np.asarray(opened.convert("RGB").resize((width + width // 4, height), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 20 * width * height
        for number in range(count):
            left = number * 2 % (width // 4)
            pixels = large[:, left : left + width]
            if number // (CUT_S * fps) % 2:
                pixels = pixels[::-1, ::-1]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    return path


def keep_up(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return what rating a live clip of 360p takes and skips."""
    clip = write_clip(folder / "small.mp4", args.image, (640, 360), args.seconds * args.fps, args.fps)
    iqa = ZoomIQA.from_pretrained(args.model)
    result = {}
    for name, rater in (("views", iqa), ("whole", iqa.with_views(ViewPolicy.whole()))):
        score = score_clip(rater, clip, keep_up=True)
        result[name] = {
            "clip_s": round(score.duration_s, 2), "took_s": round(score.seconds, 2), "frames": score.num_frames,
            "chosen": len(score.frames), "passed_over": sum(frame.is_skipped for frame in score.frames),
            "rating": round(score.rating, 3), "notes": list(score.notes),
        }  # fmt: skip
    return result


def large(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return speed and memory of decoding and comparing 4K; nothing is rated but by a mean."""
    reward = MetricReward(lambda image: image.mean(), "mean", True, (0, 1))
    found: dict[str, Any] = {}
    for name, count in (("few", max(args.large_frames // 10, 12)), ("many", args.large_frames)):
        clip = write_clip(folder / f"{name}.mp4", args.image, (3840, 2160), count, args.fps)
        began = time.perf_counter()
        score_clip(reward, clip)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found[name] = {"frames": count, "frames_per_s": round(count / seconds, 1), "peak_mib": round(peak)}
    found["growth_mib"] = found["many"]["peak_mib"] - found["few"]["peak_mib"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=None, help="by default the bundled photograph")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--large-frames", type=int, default=120)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--parts", nargs="+", choices=("keep_up", "large"), default=["large", "keep_up"])
    args = parser.parse_args()
    args.image = args.image or Path(bundled_photograph())
    parts = {"large": large, "keep_up": keep_up}
    with tempfile.TemporaryDirectory() as scratch:
        result = {name: parts[name](Path(scratch), args) for name in parts if name in args.parts}
    write_result("video", result)


if __name__ == "__main__":
    main()
