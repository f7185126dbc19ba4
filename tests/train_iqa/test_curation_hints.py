"""Hints are measured right on images whose values are known, and become words where the thresholds say so."""

import asyncio
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from train_iqa.curation.calibrate import UNTOUCHED, choose, measure
from train_iqa.curation.calibrate import main as calibrate
from train_iqa.curation.config import CurateConfig, Endpoint
from train_iqa.curation.curator import Curator
from train_iqa.curation.endpoint import EndpointReply
from train_iqa.curation.hints import MIN_SIDE_PX, Hints, ImageHints, measure_hints, measure_image
from train_iqa.curation.judges import JudgeVerdict
from train_iqa.curation.states import LOOKS, degrade_to, knows_absent, state_of
from train_iqa.curation.thresholds import STATES, HintThresholds, Threshold, shipped
from train_iqa.data import DatasetSource, LabelledImage
from train_iqa.nano.degradations import DamageRecord, Step
from train_iqa.nano.rationale import word_key
from zoomiqa_reward.images import load_image, save_png
from zoomiqa_reward.protocol.crops import zoom_box
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS, ROUND2_SECTIONS

USUAL = Hints(brightness=0.45, contrast=0.18, colourfulness=30.0, blocking=0.1, blur=0.3, noise=0.004)


def make_image(height: int = 96, width: int = 128) -> np.ndarray:
    """Return smooth structure, HWC float32 in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [0.5 + 0.3 * np.sin(x / (5 + k)) * np.cos(y / (7 + k)) for k in range(3)]
    return np.stack(planes, axis=-1).astype(np.float32)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.clip(0, 1), dtype=np.float32)).permute(2, 0, 1)


def test_values_that_can_be_worked_out_by_hand():
    image = torch.zeros(3, 64, 64)
    image[:, :, 32:] = 1.0
    hints = measure_hints(image)
    assert hints.brightness == pytest.approx(0.5)
    assert hints.contrast == pytest.approx(0.5)
    assert hints.colourfulness == pytest.approx(0.0, abs=1e-9)
    # pure red over half: rg = 255, yb = 127.5 there, else 0, so their deviations and means are half of that
    image[1:, :, 32:] = 0.0
    expected = math.hypot(127.5, 63.75) + 0.3 * math.hypot(127.5, 63.75)
    assert measure_hints(image).colourfulness == pytest.approx(expected)


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_noise_is_measured_in_its_own_unit(sigma):
    noise = np.random.default_rng(0).normal(0, sigma, (128, 128, 3))
    assert measure_hints(tensor(0.5 + noise)).noise == pytest.approx(sigma, rel=0.2)


def test_blur_and_blocks_rise_with_their_damage():
    from train_iqa.nano.degradations import gaussian_blur, jpeg

    rng, clean = np.random.default_rng(0), make_image() + np.random.default_rng(1).normal(0, 0.02, (96, 128, 3))
    clean = clean.clip(0, 1).astype(np.float32)
    blurs = [measure_hints(tensor(gaussian_blur(clean, severity, rng)[0])).blur for severity in (0.1, 0.4, 0.8)]
    blocks = [measure_hints(tensor(jpeg(clean, severity, rng)[0])).blocking for severity in (0.1, 0.5, 0.9)]
    assert blurs == sorted(blurs)
    assert blurs[-1] > blurs[0] + 0.1
    assert blocks == sorted(blocks)
    assert blocks[-1] > blocks[0] + 0.2


@pytest.mark.parametrize("shift", [0, 3])
def test_blocks_are_found_wherever_the_grid_lies(shift):
    steps = np.kron(np.random.default_rng(0).random((16, 16, 1)).repeat(3, axis=2), np.ones((8, 8, 1)))
    assert measure_hints(tensor(steps[shift:, shift:])).blocking > 5


def test_the_box_alone_is_measured_there():
    image = make_image()
    image[:48, :64] += np.random.default_rng(0).normal(0, 0.1, (48, 64, 3)).astype(np.float32)
    found = measure_image(tensor(image), (0.0, 0.0, 0.5, 0.5))
    assert found.box is not None
    assert found.box.noise > 5 * found.whole.noise or found.box.noise > 0.06 > found.whole.noise
    assert measure_image(tensor(image), None).box is None
    tiny = measure_hints(tensor(image), (0.5, 0.5, 0.51, 0.51))  # grown to the smallest region that tells anything
    assert math.isfinite(tiny.blur)


def test_a_flat_image_tells_nothing_of_blur_and_a_tiny_one_is_refused():
    hints = measure_hints(torch.full((3, 64, 64), 0.3))
    assert math.isnan(hints.blur)
    assert math.isnan(hints.blocking)
    assert hints.noise == pytest.approx(0.0, abs=1e-7)  # float rounding
    with pytest.raises(ValueError, match=f"at least {MIN_SIDE_PX} px"):
        measure_hints(torch.zeros(3, MIN_SIDE_PX - 1, 64))


def thresholds() -> HintThresholds:
    of = {state: Threshold(possible=0.0, certain=0.0) for state in STATES}
    of |= {"noisy": Threshold(possible=0.01, certain=0.02), "dark": Threshold(possible=0.4, certain=0.2)}
    of |= {"bright": Threshold(possible=0.5, certain=0.7)}
    return HintThresholds(of=of)


def test_between_possible_and_certain_nobody_is_contradicted():
    limits = thresholds()
    for noise, says_clean_wrong, says_noisy_wrong in ((0.005, False, True), (0.015, False, False), (0.03, True, False)):
        hints = ImageHints(whole=dataclasses.replace(USUAL, noise=noise))
        assert limits.contradicts("noisy", False, hints, in_box=False) is says_clean_wrong
        assert limits.contradicts("noisy", True, hints, in_box=False) is says_noisy_wrong
    assert limits.belief("dark", dataclasses.replace(USUAL, brightness=0.1)) == 1.0
    assert limits.belief("dark", dataclasses.replace(USUAL, brightness=0.45)) == 0.0


def test_box_and_whole_count_together_unless_the_claim_is_about_the_box():
    noisy = dataclasses.replace(USUAL, noise=0.05)
    local, spread = ImageHints(whole=USUAL, box=noisy), ImageHints(whole=noisy, box=USUAL)
    limits = thresholds()
    assert not limits.contradicts("noisy", True, local, in_box=False)
    assert limits.contradicts("noisy", False, local, in_box=False)
    assert limits.contradicts("noisy", True, spread, in_box=True)
    assert not limits.contradicts("noisy", False, spread, in_box=True)


def test_what_could_not_be_measured_contradicts_nobody():
    hints = ImageHints(whole=dataclasses.replace(USUAL, blur=math.nan))
    assert not any(thresholds().contradicts("blurred", present, hints, in_box=False) for present in (True, False))
    assert thresholds().words(hints.whole)["blur"] == "not measurable"


def test_hints_in_words():
    words = thresholds().words(dataclasses.replace(USUAL, noise=0.03, brightness=0.3))
    assert (words["noise"], words["brightness"]) == ("noisy", "perhaps dark")


def test_a_file_of_thresholds_is_checked(tmp_path):
    assert set(shipped().of) == set(STATES)
    assert {"photographs", "least_severity", "error_share", "made_by"} <= set(shipped().provenance)
    file = tmp_path / "thresholds.json"
    content = shipped().as_json()
    file.write_text(json.dumps(content))
    assert HintThresholds.load(file) == shipped()
    content["of"]["noisy"] = {"possible": 0.5, "certain": 0.1}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"thresholds\.json.*noisy: certain=0\.1 must lie beyond"):
        HintThresholds.load(file)


def test_thresholds_are_quantiles_of_both_sides():
    values = {group: [USUAL] * 40 for group in (UNTOUCHED, *LOOKS)}
    levels = np.linspace(0, 0.1, 41)[1:]
    values["noisy"] = [dataclasses.replace(USUAL, noise=float(level)) for level in levels]
    found = choose(values)["noisy"]
    assert found.possible == found.certain == pytest.approx((np.quantile(levels, 0.05) + USUAL.noise) / 2, abs=1e-5)
    overlapping = {**values, UNTOUCHED: [dataclasses.replace(USUAL, noise=0.06)] * 400}
    found = choose(overlapping)["noisy"]
    assert found.possible == pytest.approx(np.quantile(levels, 0.05), abs=1e-5)
    assert found.certain == pytest.approx(0.06)
    with pytest.raises(ValueError, match="at least 20"):
        choose({**values, "noisy": [USUAL] * 3})


def test_calibration_writes_a_file_that_is_read(tmp_path):
    for number in range(20):
        noise = np.random.default_rng(number).normal(0, 0.01, (48, 56, 3))
        save_png(tensor(make_image(48, 56) * (0.6 + 0.02 * number) + noise), tmp_path / f"{number:02d}.png")
    out = tmp_path / "thresholds.json"
    assert calibrate(["--images", str(tmp_path), "--count", "20", "--name", "stripes", "--out", str(out)]) == 0
    found = HintThresholds.load(out)
    assert found.provenance["photographs"] == "20 of stripes"
    assert 0.004 < found.of["noisy"].possible < 0.2
    assert found.of["dark"].certain < found.of["bright"].certain


def test_the_thresholds_are_measured_on_images_as_they_are_rated(tmp_path):
    grey = make_image()[..., 0]
    levels = np.round(grey * 255).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "deep.png")  # white to Pillow
    measured = measure([tmp_path / "a.png"], 0), measure([tmp_path / "deep.png"], 0)
    assert measured[0] == measured[1]


@pytest.mark.parametrize("state", list(LOOKS))
def test_degrading_to_a_state_gives_a_record_that_names_it(state):
    pixels, record = degrade_to(make_image(40, 40), state, 0.7, np.random.default_rng(3))
    assert word_key(record.steps[0]) in LOOKS[state]
    assert state_of(record) == state
    assert pixels.shape == (40, 40, 3)


def test_only_what_the_record_excludes_counts_as_absent():
    jpeg = DamageRecord(steps=(Step(kind="jpeg", severity=0.8, params={"quality": 10}),))
    assert knows_absent(jpeg, "noisy")
    assert not knows_absent(jpeg, "blocky")
    assert not knows_absent(jpeg, "blurred")  # strong compression does take detail away
    assert not knows_absent(jpeg, "dark")  # the photograph may be dark by itself
    assert knows_absent(DamageRecord(steps=()), "blurred")
    dark = DamageRecord(steps=(Step(kind="exposure", severity=0.8, params={"gamma": 3.0}),))
    assert knows_absent(dark, "bright")


def test_round_2_is_judged_by_the_region_that_the_teacher_saw(tmp_path):
    """The crop grows a small box to a quarter of the image, and the words are about the crop."""
    image = make_image()
    height, width = image.shape[:2]
    save_png(tensor(image), tmp_path / "a.png")
    named = (0.45, 0.45, 0.55, 0.55)
    shown = zoom_box(named, width, height)[0]
    asked = []

    class Teacher:
        async def ask(self, call, messages, *, seed=0, start=""):
            sections, box = (ROUND1_SECTIONS, named) if "round1" in call else (ROUND2_SECTIONS, (0, 0, 0, 0))
            answer = {"bbox_2d": box, "rating": 3.0, "tool": "crop" if any(box) else "final"}
            words = "\n".join(f"{label}: fine." for label in sections)
            return EndpointReply(text=f"<think>{words}</think><answer>{json.dumps(answer)}</answer>", is_cut=False,
                                 entropy=math.nan)  # fmt: skip

    class Judge:
        name = "recorder"

        async def judge(self, written, hints, *, key="", is_crop=False):
            asked.append((is_crop, hints.box))
            return [JudgeVerdict(verdict="match", why="") for _ in written.sentences]

    source, teacher = DatasetSource(family="csv", root=tmp_path), Endpoint(model="m", base_url="u")
    config = CurateConfig(sources=(source,), teacher=teacher, out=tmp_path / "run", reliance=None)
    labelled = LabelledImage(dataset="d", id="a.png", path=tmp_path / "a.png", mos=3.0, std=0.1, label=3.0)
    outcome = asyncio.run(Curator(config=config, teacher=Teacher(), judge=Judge()).curate(labelled))
    assert len(outcome["rounds"]) == 2
    loaded = load_image(tmp_path / "a.png")
    region = tuple(side / length for side, length in zip(shown, (width, height) * 2, strict=True))
    assert asked == [(False, measure_hints(loaded, named)), (True, measure_hints(loaded, region))]
    assert measure_hints(loaded, named) != measure_hints(loaded, region)
