"""Clips: which frames are rated, the mean over time, the worst second, flicker, skipping, and bad files."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from clips import FPS, brighter, scene, write_clip
from conftest import ROOT

from zoomiqa_reward import MetricReward, score_clip
from zoomiqa_reward.video import VideoError
from zoomiqa_reward.video.choosing import FrameChooser
from zoomiqa_reward.video.decoding import open_clip


def brightness(**options):
    return MetricReward(lambda image: image.mean(), "brightness", True, (0, 1), **options)


def chosen(result):
    return [(round(frame.time_s, 3), frame.chosen_by) for frame in result.frames]


def test_one_frame_a_second_and_one_where_the_content_changes(tmp_path):
    first, second = scene(1), brighter(scene(2), 60)
    clip = write_clip(tmp_path / "a.mkv", [first] * 14 + [second] * 16)
    result = score_clip(brightness(), clip)
    assert chosen(result) == [(0.0, "start"), (1.0, "time"), (1.4, "content"), (2.4, "time")]
    assert result.num_frames == 30
    assert result.duration_s == pytest.approx(3.0)
    assert (result.clip.width, result.clip.height, result.clip.fps) == (64, 48, FPS)
    assert result.valid
    assert result.notes == ()


def test_files_that_were_joined_are_rated_to_their_end(tmp_path):
    """The clock of a transport stream begins again where two were joined; the frames from there on were not rated."""
    sides = {"a.ts": [scene(1)] * 30, "b.ts": [brighter(scene(2), 60)] * 25}
    files = [write_clip(tmp_path / name, frames, codec="mpeg2video") for name, frames in sides.items()]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(file.read_bytes() for file in files))
    result = score_clip(brightness(), joined)
    assert chosen(result) == [(0, "start"), (1, "time"), (2, "time"), (3, "time"), (4, "time"), (5, "time")]
    assert result.duration_s == pytest.approx(5.5)
    first, second = (score_clip(brightness(), file).rating for file in files)
    assert result.rating == pytest.approx((2.5 * first + 3 * second) / 5.5, abs=2e-3)  # the border lies at 2.5 s


def test_the_mean_is_over_time_and_not_over_frames(tmp_path):
    """A frame stands for the time that is nearest to it: the middles between chosen frames are the borders."""
    dark, bright = scene(1), brighter(scene(2), 60)
    clip = write_clip(tmp_path / "a.mkv", [dark] * 14 + [bright] * 16)
    result = score_clip(brightness(), clip)
    levels = [float(dark.mean()) / 255, float(bright.mean()) / 255]
    weights = [0.5 + 0.7, 1.8]  # borders at 0.5, 1.2 and 1.9 s
    expected = (weights[0] * levels[0] + weights[1] * levels[1]) / 3
    assert result.rating == pytest.approx(expected, abs=1e-3)
    spread = (weights[0] * (levels[0] - expected) ** 2 + weights[1] * (levels[1] - expected) ** 2) / 3
    assert result.std == pytest.approx(math.sqrt(spread), abs=1e-3)
    assert result.worst_second == (0, pytest.approx(levels[0], abs=1e-3))


def test_frames_are_those_that_were_written_and_rated_as_images(tmp_path):
    frames = [scene(number) for number in range(12)]
    seen = []

    def record(image):
        seen.append(image.clone())
        return image.mean()

    clip = write_clip(tmp_path / "a.mkv", frames)
    result = score_clip(MetricReward(record, "r", True, (0, 1)), clip, every_s=0.5)
    for frame, image in zip(result.frames, seen, strict=True):
        assert np.abs(255 * image.permute(1, 2, 0).numpy() - frames[frame.index]).max() <= 1
        assert image.dtype == torch.float32


def test_a_step_of_time_and_the_gap_after_a_change(tmp_path):
    flashing = [scene(1), brighter(scene(2), 60)] * 15
    result = score_clip(brightness(), write_clip(tmp_path / "a.mkv", flashing), every_s=2.0)
    times = [frame.time_s for frame in result.frames]
    assert min(np.diff(times)) >= 0.5 - 1e-6  # a quarter of the step
    still = score_clip(brightness(), write_clip(tmp_path / "b.mkv", [scene(1)] * 30), every_s=0.5)
    assert chosen(still) == [(0.0, "start")] + [(0.5 * k, "time") for k in range(1, 6)]
    with pytest.raises(ValueError, match="every_s=0"):
        score_clip(brightness(), tmp_path / "b.mkv", every_s=0)


def test_a_clip_of_varying_rate_keeps_its_times(tmp_path):
    times = [0, 1, 2, 9, 10, 25]
    result = score_clip(brightness(), write_clip(tmp_path / "a.mkv", [scene(1)] * 6, times=times))
    assert chosen(result) == [(0.0, "start"), (1.0, "time"), (2.5, "time")]


@pytest.mark.parametrize(("what", "frames", "least", "most"), [
    ("still", [scene(1)] * 10, 0, 0.01),
    ("every second frame is brighter", [brighter(scene(1), 10 * (k % 2)) for k in range(10)], 3.5, 4.1),
    ("a fade", [brighter(scene(1), 4 * k) for k in range(10)], 0, 0.2),
    ("a cut", [scene(1)] * 5 + [scene(2)] * 5, 0, 0.01),
    ("one flash", [scene(1)] * 5 + [brighter(scene(1), 40)] + [scene(1)] * 6, 1.2, 1.7),
])  # fmt: skip
def test_flicker_counts_what_comes_back_and_nothing_else(tmp_path, what, frames, least, most):
    result = score_clip(brightness(), write_clip(tmp_path / "a.mkv", frames))
    assert least <= result.flicker <= most, what


def test_the_second_that_flickers_most_is_named(tmp_path):
    calm, wild = [scene(1)] * 20, [brighter(scene(1), 20 * (k % 2)) for k in range(10)]
    result = score_clip(brightness(), write_clip(tmp_path / "a.mkv", calm + wild + calm))
    second, value = result.worst_flicker
    assert second == 2
    assert value > 3 * result.flicker
    assert math.isnan(score_clip(brightness(), write_clip(tmp_path / "b.mkv", [scene(1)] * 2)).flicker)


class Clock:
    """A clock that rating moves: each takes `step` seconds."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def __call__(self):
        return self.now


@pytest.mark.integration
def test_what_cannot_be_kept_up_with_is_passed_over_and_said(tmp_path):
    clip = write_clip(tmp_path / "a.mkv", [scene(1)] * 100)

    def run(step, **options):
        clock = Clock(step)

        def slow(image):
            clock.now += step
            return image.mean()

        return score_clip(MetricReward(slow, "slow", True, (0, 1)), clip, clock=clock, **options)

    slow = run(2.5, keep_up=True)
    rated = [frame.time_s for frame in slow.frames if not frame.is_skipped]
    assert len(slow.frames) == 10
    assert rated == pytest.approx([0, 2, 4, 7, 9])
    for before, number in zip(rated, range(len(rated)), strict=True):
        assert 2.5 * number <= before + 1  # never further behind than the grace when it begins
    assert slow.notes[0].startswith("to keep up, 5 of 10 chosen frames were skipped, from 1.0 to 8.0 s")
    assert slow.valid
    assert run(2.5).notes == ()
    assert len([frame for frame in run(2.5).frames if frame.error is None]) == 10
    assert run(0.5, keep_up=True).notes == ()


def test_frames_without_content_take_no_part(tmp_path):
    black = np.zeros((48, 64, 3), np.uint8)

    def choosy(image):
        return math.nan if float(image.max()) < 0.1 else image.mean()

    reward = MetricReward(choosy, "choosy", True, (0, 1))
    result = score_clip(reward, write_clip(tmp_path / "a.mkv", [black] * 10 + [scene(1)] * 20))
    assert result.rating == pytest.approx(float(scene(1).mean()) / 255, abs=1e-3)
    assert result.notes[0].startswith("1 of 3 chosen frames have no rating; the first, at 0.0 s")
    nothing = score_clip(reward, write_clip(tmp_path / "b.mkv", [black] * 10))
    assert not nothing.valid
    assert math.isnan(nothing.rating)
    assert "none of 1 chosen frames has a rating" in nothing.error


def test_bad_files_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("just words")
    for file, word in (("text.mp4", "cannot be opened"), ("no.mp4", "cannot be opened")):
        with pytest.raises(VideoError, match=f"{file}: {word}"):
            score_clip(brightness(), tmp_path / file)
    whole = write_clip(tmp_path / "whole.mp4", [scene(k, 96, 128) for k in range(60)], codec="mpeg4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])  # its index, at the end, is gone
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        score_clip(brightness(), cut)
    with pytest.raises(ValueError, match="needs lq"):
        score_clip(brightness(needs=("lq",)), whole)


def test_a_clip_that_ends_early_says_so(tmp_path):
    whole = write_clip(tmp_path / "whole.mkv", [scene(k) for k in range(60)])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    result = score_clip(brightness(), cut)
    assert 20 < result.num_frames < 40
    assert result.notes[0].startswith("the file states 6.0 s, and ")
    assert score_clip(brightness(), whole).notes == ()


def test_frames_that_are_missing_in_the_middle_are_told(tmp_path):
    frames = [scene()] * 20
    whole = write_clip(tmp_path / "whole.mkv", frames, times=range(20))
    lacking = write_clip(tmp_path / "lacking.mkv", frames, times=[*range(10), *range(16, 26)])
    assert score_clip(brightness(), whole).notes == ()
    assert score_clip(brightness(), lacking).notes == (
        "no frame from 0.9 to 1.6 s: the file is damaged there, or its frame rate varies",
    )


def test_damaged_frames_are_an_error_with_their_time(tmp_path):
    data = bytearray(write_clip(tmp_path / "whole.mkv", [scene(k) for k in range(60)]).read_bytes())
    begin = len(data) // 2
    data[begin : begin + 20_000] = np.random.default_rng(0).bytes(20_000)
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(bytes(data))
    with pytest.raises(VideoError, match=r"broken\.mkv: damaged after [23]\."):
        score_clip(brightness(), broken)


def test_what_the_file_says(tmp_path):
    clip = open_clip(write_clip(tmp_path / "a.mp4", [scene(1)] * 25, codec="mpeg4", fps=25))
    assert clip.fps == 25
    assert clip.duration_s == pytest.approx(1.0, abs=0.05)


def test_the_chooser_looks_at_the_last_choice_so_that_a_slow_change_counts():
    chooser = FrameChooser(100.0)
    grey = np.full((4, 4), 0.2, np.float32)
    reasons = [chooser.choose(float(k), grey + 0.005 * k) for k in range(0, 60, 5)]
    assert reasons[0] == "start"
    assert "content" in reasons


@pytest.mark.integration
def test_memory_does_not_grow_with_the_length(tmp_path):
    """3,000 frames of 640 x 360 are 2 GB of pixels."""
    code = f"""
import resource, sys
sys.path[:0] = [{str(ROOT / "tests" / "support")!r}]
from clips import scene, write_clip
from zoomiqa_reward import MetricReward, score_clip
reward = MetricReward(lambda image: image.mean(), "m", True, (0, 1))
frames = [scene(k, 360, 640) for k in range(4)]
peaks = []
for count in (50, 3000):
    clip = write_clip({str(tmp_path)!r} + f"/{{count}}.mp4", frames * (count // 4), codec="mpeg4")
    score_clip(reward, clip)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(*peaks)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    short, long = map(float, done.stdout.split())
    assert long - short < 40, "MiB"
