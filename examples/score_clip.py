"""Make a clip that is blurred in its third second and flickers in its last one, and find both. A CPU is enough.

    python examples/score_clip.py [photo.jpg]

Needs the extra `video`.
"""

import sys
import tempfile
from pathlib import Path

import av
import numpy as np

from restoration.demo import bundled_photograph
from zoomiqa_reward import ZoomIQA, score_clip
from zoomiqa_reward.images import load_image, to_pil
from zoomiqa_reward.images.filters import gaussian_blur

FPS, SECONDS, BLURRED, FLICKERING = 10, 5, 2, 4


def write_clip(path: Path, image: str | Path) -> None:
    """Write a clip that moves over the photograph by two pixels per frame."""
    photograph = load_image(image)
    blurred = gaussian_blur(photograph[None], 3.0)[0].clamp(0, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "bgr0"
        for number in range(FPS * SECONDS):
            source = blurred if number // FPS == BLURRED else photograph
            pixels = source[:, 40:136, 2 * number : 2 * number + 128]
            if number // FPS == FLICKERING and number % 2:
                pixels = (pixels * 0.9).clamp(0, 1)
            frame = av.VideoFrame.from_ndarray(np.asarray(to_pil(pixels)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def described(second: tuple[int, float] | None) -> str:
    """Return a second of the clip and its value in words."""
    return "none" if second is None else f"{second[0]} ({second[1]:.2f})"


def main(image: str | Path, model: str = "nano") -> list[float]:
    """Print the rating of each chosen frame and the summary; return the ratings and the mean."""
    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder) / "clip.mkv", image)
        score = score_clip(ZoomIQA.from_pretrained(model), Path(folder) / "clip.mkv")
    for frame in score.frames:
        print(f"{frame.time_s:.1f} s, chosen by {frame.chosen_by}: {frame.rating:.2f}")
    print(f"mean {score.rating:.2f}, worst second {described(score.worst_second)}, flicker {score.flicker:.2f} %, "
          f"most in second {described(score.worst_flicker)}")  # fmt: skip
    assert score.worst_flicker is not None
    assert score.worst_flicker[0] == FLICKERING, "the second that flickers must be found"
    if model == "nano":
        assert score.worst_second is not None
        assert score.worst_second[0] == BLURRED, "nano must rate the blurred second lowest"
    return [*(frame.rating for frame in score.frames), score.rating]


if __name__ == "__main__":
    main(*sys.argv[1:2] or [bundled_photograph()])
