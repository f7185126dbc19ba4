"""Refinement: where and in which words, no seam, what is kept and why, the folder, and what a kill leaves."""

import json
import math

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import make_tiny_checkpoint, picture, tiny_protocol
from tiny_pipelines import convolutions, sd_x4, small_nano

from restoration.commands.refine import refine as command
from restoration.draw_folder import open_run
from restoration.drawing import pixels_digest
from restoration.fidelity import lr_consistency
from restoration.refinement import Attempt, journal, refine
from restoration.refinement.guidance import Wish, texts_for, wish_of
from restoration.refinement.regions import CONTEXT_LQ_PX, FADE_LQ_PX, MIN_CROP_LQ_PX, Region
from restoration.refinement.strip import CELL_PX, MARGIN_PX, strip_of
from restoration.refinement.verdict import Judge
from restoration.restorer import Restorer
from restoration.selection import best_of_n
from zoomiqa_reward.checkpoint import load_checkpoint
from zoomiqa_reward.commands import inputs
from zoomiqa_reward.generate import Completion, Sampling
from zoomiqa_reward.images import load_image
from zoomiqa_reward.json_lines import read_lines
from zoomiqa_reward.ratings import Ratings
from zoomiqa_reward.reason import assess_images
from zoomiqa_reward.reward import MetricReward

LQ = picture(0, 80, 96)
TARGET = LQ.repeat_interleave(2, 1).repeat_interleave(2, 2)


@pytest.fixture(scope="module", autouse=True)
def checkpoint(tmp_path_factory):
    """A tiny checkpoint, for its tokenizer and template: what it answers is scripted."""
    Scripted.checkpoint = load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("tiny")), device="cpu")


class Scripted:
    """A model whose answers are written by the test and read by the real protocol; rates by closeness to TARGET."""

    name, fingerprint, checkpoint = "scripted", "scripted", None

    def __init__(self, *answers):
        self.answers, self.looked = list(answers), []

    @property
    def protocol(self):
        return self.checkpoint.protocol

    def assess(self, images, strict=False):
        assert strict
        self.looked += [tuple(image.shape) for image in images]
        texts = list(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

        def write(checkpoint, rows, sampling):
            return [Completion(text=texts.pop(0), is_truncated=False) for _ in rows]

        [[found]] = assess_images(self.checkpoint, images, sampling=Sampling(), strict=True, write=write)
        return [found]

    def rate(self, images, mode, strict, question=None, batch_size=8):
        mean = torch.tensor([1 + 4 * near_target(image) for image in images])
        return Ratings(mean=mean, std=torch.zeros_like(mean), valid=mean > 0, std_kind="token")


def answer(bbox, tool="crop", better="More detail.", avoid="Noise.", rating=2.0):
    """Both rounds' texts; a second round that says the same of the crop."""
    words = f"Directions for Improvement: {better} Issues to Avoid: {avoid}"
    first = f'<think>{words}</think><answer>{{"bbox_2d": {bbox}, "rating": {rating}, "tool": "{tool}"}}</answer>'
    again = f'<think>{words}</think><answer>{{"bbox_2d": [0, 0, 0, 0], "rating": {rating}, "tool": "final"}}</answer>'
    return first, again


ASKS = answer([0.25, 0.25, 0.5, 0.5])
CONTENT = answer([0, 0, 0, 0], tool="final")


def near_target(image):
    return float(1 - (image - TARGET).abs().mean())


def nearness(**options):
    return MetricReward(near_target, **({"name": "near", "higher_is_better": True, "score_range": (0, 1)} | options))


def grainy(image, seed):
    """Twice as large, with grain whose strength and place the seed fixes."""
    generator = torch.Generator().manual_seed(seed)
    large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    strength = 0.05 + 0.2 * torch.rand(1, generator=generator)
    return (large + strength * torch.randn(large.shape, generator=generator)).clamp(0, 1)


def run(restorer=grainy, reward=None, iqa=None, **options):
    options = {"min_gain": 0.0, "lr_consistency_slack_db": 1.0, "progress": False, "rounds": 2} | options
    return refine(restorer, LQ, reward or nearness(), assessor=iqa or Scripted(ASKS), **options)


def summary(result):
    return [
        (one.number, one.wish, one.region, one.prompt, one.negative_prompt, one.attempts, one.reward,
         one.lr_consistency, one.accepted, one.reason, one.stop, one.pixels)
        for one in result.history
    ]  # fmt: skip


def same(left, right):
    return repr(summary(left)) == repr(summary(right)) and left.stopped == right.stopped  # repr: NaN equals NaN


# ---- regions -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=st.integers(5, 200), width=st.integers(5, 200), scale=st.integers(1, 3))
def test_crops_hold_their_box_with_context_and_weights_are_over_before_the_crops_edge(data, height, width, scale):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    region = Region.around((left, top, right, bottom), torch.zeros(3, height, width))
    weights = region.weights(scale)
    x0, y0, x1, y1 = region.crop
    assert weights.shape == ((y1 - y0) * scale, (x1 - x0) * scale)
    for first, last, start, end, length in ((x0, x1, left, right, width), (y0, y1, top, bottom, height)):
        assert 0 <= first <= max(start - CONTEXT_LQ_PX, 0)
        assert length >= last >= min(end + CONTEXT_LQ_PX, length)
        assert last - first >= min(MIN_CROP_LQ_PX, length)
    inside = weights[(top - y0) * scale : (bottom - y0) * scale, (left - x0) * scale : (right - x0) * scale]
    assert (inside == 1).all()
    unused = (CONTEXT_LQ_PX - int(FADE_LQ_PX[1])) * scale
    if x0 > 0:
        assert (weights[:, :unused] == 0).all()
    if y1 < height:
        assert (weights[-unused:] == 0).all()


@pytest.mark.parametrize("box", [(30, 40, 60, 70), (0, 0, 20, 90), (90, 10, 131, 40), (0, 0, 131, 150)])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_small_network_leaves_no_seam_at_all(box, scale):
    """It sees 5 px to each side: the part restored by itself is the part of the whole, wherever it is used."""
    network, image = Restorer.from_pretrained(convolutions(scale=scale, layers=5)), picture(1, 150, 131)
    whole = next(network.restore(image, [0])).image
    region = Region.around(box, image)
    patch = next(network.restore(region.cut(image), [0])).image
    torch.testing.assert_close(region.blended(whole, patch, image), whole, atol=1e-5, rtol=0)
    old = torch.zeros_like(whole)
    found = region.blended(old, patch, image)
    left, top, right, bottom = (side * scale for side in box)
    torch.testing.assert_close(found[:, top:bottom, left:right], whole[:, top:bottom, left:right], atol=1e-5, rtol=0)


def test_a_network_that_looks_further_than_the_margin_is_noticed():
    """So that the test above can fail."""
    network, image = Restorer.from_pretrained(convolutions(scale=1, layers=20)), picture(1, 150, 131)
    whole = next(network.restore(image, [0])).image
    region = Region.around((60, 60, 90, 90), image)
    patch = next(network.restore(region.cut(image), [0])).image
    assert (region.blended(whole, patch, image) - whole).abs().max() > 1e-3


def test_another_brightness_fades_in_and_what_is_outside_keeps_its_bits():
    image, scale, step = picture(1, 150, 131), 2, 0.2
    large = image.repeat_interleave(2, 1).repeat_interleave(2, 2) * 0.5
    region = Region.around((50, 50, 80, 80), image)
    patch = region.cut(large, scale) + step
    found = region.blended(large, patch, image)
    rise = found - large
    assert rise.max() == pytest.approx(step, abs=1e-6)
    # A raised cosine over 8 LR pixels: its steepest step is pi / 2 of a straight one's.
    steepest = step * math.pi / 2 / ((FADE_LQ_PX[1] - FADE_LQ_PX[0]) * scale)
    assert max(rise.diff(dim=1).abs().max(), rise.diff(dim=2).abs().max()) <= 1.001 * steepest
    rise[:, 80:180, 80:180] = 0  # the box with 10 LR pixels around it
    assert torch.equal(rise, torch.zeros_like(rise))
    with pytest.raises(ValueError, match="28 x 128 px were expected"):
        region.blended(large, patch[:, 1:], image)
    with pytest.raises(ValueError, match="must hold a pixel"):
        Region.around((5, 5, 5, 9), image)


# ---- guidance ------------------------------------------------------------------------------------------------------


def wish(texts, width=192, height=160, scale=2, protocol=None):
    iqa = Scripted(texts)
    [found] = iqa.assess([torch.rand(3, height, width)], strict=True)
    return wish_of(found, protocol or iqa.protocol, width, height, scale)


@pytest.mark.parametrize(
    ("bbox", "box"),
    [
        ([0.25, 0.25, 0.5, 0.5], (24, 20, 48, 40)),
        ([0.5, 0.5, 0.25, 0.25], (24, 20, 48, 40)),  # corners in any order
        ([33, 41, 121, 119], (16, 20, 61, 60)),  # pixels, odd ones rounded outwards
        ([0.5, 0.5, 0.51, 0.51], (40, 32, 56, 48)),  # a speck becomes 32 px of the picture
        ([0, 0, 1, 1], (0, 0, 96, 80)),
    ],
)
def test_the_named_box_is_read_in_pixels_of_the_low_quality_picture(bbox, box):
    found = wish(answer(bbox))
    assert (found.box, found.is_central, found.error) == (box, False, None)


def test_a_box_that_means_nothing_is_the_central_half_and_no_box_is_no_wish():
    found = wish(answer('"left"'))
    assert (found.box, found.is_central) == ((24, 20, 72, 60), True)
    for texts in (CONTENT, answer([0.1, 0.1, 0.5, 0.5], tool="final"), answer([0, 0, 0, 0])):
        assert wish(texts) == Wish(box=None, directions="More detail.", issues="Noise.", rating=2.0)
    garbled = wish(("nothing",))
    assert garbled.box is None
    assert "missing <answer>" in garbled.error
    assert "tool is missing" in wish(('<answer>{"bbox_2d": [0, 0, 1, 1], "rating": 3}</answer>',)).error


def test_words_are_those_of_the_last_round_that_can_be_read():
    first, _ = answer([0.1, 0.1, 0.5, 0.5], better="Whole\n frame.", avoid="Blur.")
    _, second = answer(0, better="Crop.", avoid="Ringing.")
    assert [wish((first, second)).directions, wish((first, second)).issues] == ["Crop.", "Ringing."]
    torn = wish((first, "<think>Directions for Improvement: Cr Issues to Avoid: Noise. <answ 1, 2, 3"))
    assert (torn.box, torn.directions, torn.issues) == ((9, 8, 48, 40), "Whole frame.", "Blur.")
    assert math.isnan(torn.rating)
    silent = '<think>Soft.</think><answer>{"bbox_2d": [0, 0, 0, 0], "rating": 2, "tool": "final"}</answer>'
    assert wish((first, silent)).directions == "Whole frame."
    assert wish((silent,)).directions == ""


def test_other_labels_are_found_by_their_place(monkeypatch):
    four = tiny_protocol(sections1=("Summary", "Do", "Don't", "Decision"))
    text = answer([0, 0, 0, 0])[0].replace("Directions for Improvement", "Do").replace("Issues to Avoid", "Don't")
    monkeypatch.setattr(Scripted, "protocol", four)
    checkpoint = Scripted.checkpoint
    monkeypatch.setattr(Scripted, "checkpoint", type("Other", (), {"__getattr__": lambda _, key: (
        four if key == "protocol" else getattr(checkpoint, key))})())  # fmt: skip
    found = wish((text,), protocol=four)
    assert (found.directions, found.issues) == ("More detail.", "Noise.")


def test_texts_go_to_restorers_that_take_them_after_their_own():
    def worded(image, seed, prompt, negative_prompt):
        return image

    asks = Wish(box=None, directions="Sharp edges.", issues="Noise.")
    own = Restorer.from_pretrained(worded, prompt=lambda image: f"{image.shape[2]} px", negative_prompt="")
    assert texts_for(own, asks, LQ) == {"prompt": "96 px, Sharp edges.", "negative_prompt": "Noise."}
    assert texts_for(own, None, LQ) == {"prompt": "96 px", "negative_prompt": ""}
    assert texts_for(Restorer.from_pretrained(grainy), asks, LQ) == {}


# ---- the verdict ---------------------------------------------------------------------------------------------------


def tried(reward, consistency=30.0, seed=0):
    return Attempt(seed=seed, reward=reward, lr_consistency=consistency, valid=True)


def test_a_try_is_kept_if_the_reward_rises_and_the_consistency_does_not_fall():
    judge = Judge(reward=2.0, lr_consistency=30.0, floor_db=29.5, min_gain=0.25)
    for one, accepted in (
        (tried(2.25), True), (tried(2.24), False), (tried(2.0), False), (tried(3.0, 29.5), True),
        (tried(3.0, 29.4), False), (tried(3.0, math.nan), False), (Attempt(seed=0, error="no"), False),
    ):  # fmt: skip
        assert judge.accepts(one) is accepted
    assert not Judge(reward=2.0, lr_consistency=30.0, floor_db=29.5, min_gain=0.0).accepts(tried(2.0))
    failed = Attempt(seed=9, error="out of memory")
    assert judge.best_of([tried(4.0, 20.0), failed, tried(2.5), tried(2.5, seed=3), tried(2.3)]) == tried(2.5)
    assert judge.best_of([failed, tried(1.0)]) == tried(1.0)


def test_the_verdict_says_why():
    judge = Judge(reward=2.0, lr_consistency=30.0, floor_db=29.5, min_gain=0.25)
    failed = Attempt(seed=9, error="out of memory")
    assert judge.reason([tried(2.5, 29.8)]) == "reward 2.000 to 2.500, LR-consistency 30.00 to 29.80 dB"
    assert judge.reason([tried(3.0, 20.0), tried(2.0)]).startswith("1 of 2 raise the reward by 0.25 or more, all with")
    assert judge.reason([tried(2.1), failed]) == (
        "none of 2 raises the reward by 0.25; the best changes it by +0.100; 1 of 2 failed, the first: out of memory"
    )
    assert judge.reason([failed]) == "none of 1 could be made or measured, the first: out of memory"


# ---- the loop ------------------------------------------------------------------------------------------------------


def test_only_the_region_changes_and_every_number_is_that_of_the_8_bit_picture():
    iqa = Scripted(ASKS, answer([0.5, 0.5, 1, 1]))
    result = run(iqa=iqa, rounds=2)
    start, *later = result.history
    assert [one.accepted for one in result.history] == [True, True, True]
    assert iqa.looked == [(3, 160, 192)] * 2  # nobody asks about the LR picture where no text is taken
    plain = best_of_n(grainy, LQ, nearness(), n=4, seed=0, progress=False)
    assert start.pixels == plain.best.pixels
    before = load_image(start.image)
    for one, box in zip(later, [(24, 20, 48, 40), (48, 40, 96, 80)], strict=True):
        assert one.region == box
        after = load_image(one.image)
        assert one.reward == pytest.approx(near_target(after), abs=1e-6)
        assert one.lr_consistency == pytest.approx(lr_consistency(after, LQ))
        assert one.pixels == pixels_digest(one.image)
        assert one.reward == max(attempt.reward for attempt in one.attempts)
        left, top, right, bottom = (2 * side for side in box)
        changed = (after != before).any(dim=0)
        assert changed[top:bottom, left:right].float().mean() > 0.95
        changed[max(top - 20, 0) : bottom + 20, max(left - 20, 0) : right + 20] = False
        assert not changed.any()
        before = after
    assert result.stopped == "budget"
    assert result.reward == later[-1].reward > later[0].reward > start.reward
    assert result.gain == result.reward - start.reward
    assert torch.equal(load_image(result.image), before)


def test_it_stops_when_the_model_asks_for_no_closer_look():
    result = run(iqa=Scripted(ASKS, CONTENT), rounds=5)
    assert [(one.number, one.stop) for one in result.history] == [(0, None), (1, None), (2, "satisfied")]
    assert (result.stopped, result.kept.number) == ("satisfied", 1)
    with pytest.raises(ValueError, match="round 2 made no picture: the model asks for no closer look"):
        _ = result.history[-1].image
    never = run(iqa=Scripted(CONTENT))
    assert (never.stopped, len(never.history), never.gain) == ("satisfied", 2, 0)
    torn = run(iqa=Scripted(("garbage",)))
    assert torn.stopped == "unreadable"
    assert "missing <answer>" in torn.history[-1].reason


def test_a_refused_region_is_tried_with_new_seeds_without_asking_again():
    iqa = Scripted(ASKS, CONTENT)
    result = run(iqa=iqa, rounds=3, min_gain=0.9)
    assert [one.accepted for one in result.history] == [True, False, False, False]
    assert len(iqa.looked) == 1
    assert [one.region for one in result.history[1:]] == [(24, 20, 48, 40)] * 3
    seeds = [attempt.seed for one in result.history for attempt in one.attempts]
    assert len(set(seeds)) == len(seeds) == 12
    assert not set(seeds) & {candidate.seed for candidate in result.start.candidates}
    assert result.gain == 0
    assert result.image.tobytes() == result.history[0].image.tobytes() != result.history[1].image.tobytes()
    assert result.history[1].reason.startswith("none of 4 raises the reward by 0.9")


def test_what_the_reward_likes_but_the_low_quality_picture_contradicts_is_refused():
    def brighter(image, seed):
        large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
        rise = seed % 100 / 1e4
        return (large + rise if image.shape == LQ.shape else large + 0.3 + rise).clamp(0, 1)

    bright = MetricReward(lambda image: image.mean(), "bright", True, (0, 1))
    refused = run(brighter, bright, rounds=1, lr_consistency_slack_db=0.1)
    [_, one] = refused.history
    assert one.reward > refused.history[0].reward + 0.01
    assert one.lr_consistency < refused.history[0].lr_consistency - 1
    assert (one.accepted, refused.gain) == (False, 0)
    assert "4 of 4 raise the reward" in one.reason
    assert run(brighter, bright, rounds=1, lr_consistency_slack_db=60).kept.number == 1


def test_losses_within_the_slack_do_not_add_up():
    calls = []

    def darkening(image, seed):
        """Each time a little darker in the region."""
        calls.append(seed)
        large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
        return large - 0.03 * (len(calls) - 1) * large

    dark = MetricReward(lambda image: -image.mean(), "dark", True, (-1, 0))
    result = run(darkening, dark, rounds=3, seeds_per_round=1, lr_consistency_slack_db=8.0)
    levels = [one.lr_consistency for one in result.history]
    assert [one.accepted for one in result.history] == [True, True, False, False]
    assert levels[1] >= levels[0] - 8.0
    assert levels[2] > levels[1] - 8.0  # against the last one alone it would have passed
    assert levels[2] < levels[0] - 8.0


def test_a_deterministic_restorer_runs_once_a_round_and_stops_when_it_cannot_help():
    calls = []

    def fixed(image):
        calls.append(1)
        return image.repeat_interleave(2, 1).repeat_interleave(2, 2)

    result = run(fixed, rounds=5)
    assert len(calls) == 2
    assert result.stopped == "deterministic"
    assert [len(one.attempts) for one in result.history] == [0, 1]
    assert len(result.start.candidates) == 1


def test_failures_are_named_and_never_kept():
    def moody(image, seed):
        if image.shape != LQ.shape and seed % 2:
            raise RuntimeError("out of memory")
        return grainy(image, seed)

    def odd(image):
        return near_target(image) if near_target(image) < 0.93 else math.nan

    result = run(moody, rounds=2)
    attempts = [attempt for one in result.history for attempt in one.attempts]
    assert {attempt.error for attempt in attempts if attempt.seed % 2} == {"moody: out of memory"}
    assert all(attempt.valid == (attempt.seed % 2 == 0) for attempt in attempts)
    assert any(attempt.valid for attempt in attempts)
    broken = run(lambda image, seed: grainy(image, seed) if image.shape == LQ.shape else image / 0, rounds=1)
    assert not broken.history[1].has_image()
    assert broken.history[1].reason.startswith("none of 4 could be made or measured")
    assert broken.stopped == "budget"
    odd_reward = MetricReward(odd, "odd", True, (0, 1))
    assert all(one.reward < 0.93 for one in run(reward=odd_reward, rounds=2).history if one.accepted)
    with pytest.raises(ValueError, match="none of 4 candidates could be measured"):
        run(reward=MetricReward(lambda image: math.nan, "blind", True, (0, 1)))


def test_directions_and_issues_become_the_prompts():
    heard = []

    def worded(image, seed, prompt, negative_prompt):
        heard.append((tuple(image.shape[1:]), prompt, negative_prompt))
        return grainy(image, seed)

    iqa = Scripted(answer([0, 0, 1, 1], better="Less fog.", avoid="Halos."), ASKS)
    restorer = Restorer.from_pretrained(worded, prompt="photo", negative_prompt="text")
    result = run(restorer, iqa=iqa, rounds=1, seeds_per_round=2)
    assert iqa.looked == [(3, 80, 96), (3, 160, 192)]
    assert heard[:2] == [((80, 96), "photo, Less fog.", "text, Halos.")] * 2
    assert heard[2:] == [((64, 64), "photo, More detail.", "text, Noise.")] * 2
    assert [one.prompt for one in result.history] == ["photo, Less fog.", "photo, More detail."]
    assert result.history[1].negative_prompt == "text, Noise."
    assert (restorer.prompt, restorer.negative_prompt) == ("photo", "text")


def test_a_diffusion_pipeline_hears_them_too():
    pipeline = Restorer.from_pretrained(sd_x4(), steps=1, guidance_scale=2.0)
    options = {"rounds": 1, "seeds_per_round": 1, "min_gain": 0.0, "progress": False}
    reward = MetricReward(lambda image: image.std(), "contrast", True, (0, 1))
    small = picture(0, 32, 40)
    spoken = [
        refine(pipeline, small, reward, assessor=Scripted(answer([0, 0, 0, 0], "final", avoid=avoid)), **options)
        for avoid in ("Noise.", "Blur and halos.")
    ]
    assert [one.history[0].prompt for one in spoken] == ["More detail."] * 2
    assert [one.history[0].negative_prompt for one in spoken] == ["Noise.", "Blur and halos."]
    assert spoken[0].history[0].pixels != spoken[1].history[0].pixels


# ---- the folder ----------------------------------------------------------------------------------------------------


def test_the_folder_holds_everything_and_save_writes_the_same(tmp_path):
    answers = ASKS, answer([0.5, 0.5, 1, 1]), CONTENT
    result = run(out=tmp_path / "run", iqa=Scripted(*answers), rounds=3)
    saved = run(iqa=Scripted(*answers), rounds=3).save(tmp_path / "saved")
    names = ["refined.png", "strip.png", "rounds/00.png", "rounds/01.png", "rounds/02.png", "rounds.jsonl",
             "start/best.png"]  # fmt: skip
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (saved / name).read_bytes(), name
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert report["finished"]
    assert (report["stopped"], report["kept"]) == ("satisfied", 2)
    assert report["rounds"] == read_lines(tmp_path / "run" / "rounds.jsonl")
    assert report["rounds"][3]["reward"] is None
    with Image.open(tmp_path / "run" / "refined.png") as image:
        assert pixels_digest(image) == result.kept.pixels
    assert result.save(tmp_path / "run") == tmp_path / "run"
    assert len(read_lines(tmp_path / "run" / "rounds.jsonl")) == 4
    assert not list(tmp_path.rglob("*.tmp"))


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("at", [3, 4, 11])
def test_killed_and_resumed_is_the_same_run(tmp_path, at):
    drawn = []

    def counted(image, seed, prompt):
        if len(drawn) == at and not is_resumed:
            raise Interrupted
        drawn.append(seed)
        return grainy(image, seed)

    is_resumed = True
    answers = [answer([0, 0, 0, 0]), ASKS, ASKS, answer([0.5, 0.5, 1, 1])]
    restorer = Restorer.from_pretrained(counted, fingerprint="1")
    expected = run(restorer, iqa=Scripted(*answers), rounds=3)
    every, is_resumed = list(drawn), False
    drawn.clear()
    with pytest.raises(Interrupted):
        run(restorer, iqa=Scripted(*answers), rounds=3, out=tmp_path)
    is_resumed = True
    (tmp_path / "rounds" / "x.png.tmp").write_bytes(b"half")
    done = len(read_lines(tmp_path / "rounds.jsonl"))
    assert done == (0 if at < 4 else at // 4)
    drawn.clear()
    resumed = run(restorer, iqa=Scripted(*answers[done and done :]), rounds=3, out=tmp_path)
    assert same(resumed, expected)
    assert drawn == every[at - at % 4 if done else at :]  # the round in work again, none before it
    assert not list(tmp_path.rglob("*.tmp"))
    drawn.clear()
    assert same(run(restorer, iqa=Scripted(("nobody asks",)), rounds=3, out=tmp_path), expected)
    assert drawn == []
    assert json.loads((tmp_path / "run.json").read_text())["finished"]


def test_a_kill_between_picture_and_line_loses_one_round(tmp_path, monkeypatch):
    expected = run(rounds=2)
    true, lines = journal.append_line, []

    def killed(file, row):
        if len(lines) == 2:
            raise Interrupted
        lines.append(row)
        true(file, row)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append_line", killed)
        with pytest.raises(Interrupted):
            run(rounds=2, out=tmp_path)
    assert (tmp_path / "rounds" / "02.png").exists()
    assert same(run(rounds=2, out=tmp_path), expected)


def test_more_rounds_go_on_and_another_run_is_refused(tmp_path):
    first = run(rounds=1, out=tmp_path)
    for options in ({"seed": 1}, {"seeds_per_round": 3}, {"min_gain": 0.1}, {"lr_consistency_slack_db": 0.0},
                    {"reward": nearness(name="other")}, {"restorer": convolutions(scale=2)}):  # fmt: skip
        with pytest.raises(ValueError, match="holds another run"):
            run(out=tmp_path, **options)
    longer = run(rounds=3, out=tmp_path)
    assert repr(summary(longer)[:2]) == repr(summary(first))
    assert same(longer, run(rounds=3))
    assert same(run(rounds=1, out=tmp_path), first)  # and fewer: what is there stays
    assert len(read_lines(tmp_path / "rounds.jsonl")) == 4
    (tmp_path / "rounds" / "02.png").unlink()
    with pytest.raises(ValueError, match=r"02\.png is missing"):
        run(rounds=3, out=tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"without run\.json"):
        run(rounds=3, out=tmp_path)


def test_two_processes_cannot_share_a_folder(tmp_path):
    pytest.importorskip("fcntl")

    def intruder(image):
        if (tmp_path / "rounds.jsonl").exists() and not refused:
            with pytest.raises(ValueError, match="another process"), open_run(tmp_path / "start", {}):
                pass
            refused.append(1)
        return near_target(image)

    refused = []
    run(reward=MetricReward(intruder, "near", True, (0, 1)), rounds=1, out=tmp_path)
    assert refused


# ---- what cannot be, the strip, the command ------------------------------------------------------------------------


def test_what_cannot_be_refined_is_refused():
    for options in ({"rounds": 0}, {"seeds_per_round": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="at least 1, 1 and 0"):
            run(**options)
    for options in ({"min_gain": -0.1}, {"min_gain": math.nan}, {"lr_consistency_slack_db": -1}):
        with pytest.raises(ValueError, match="both must be finite and at least 0"):
            run(**options)
    with pytest.raises(ValueError, match="no finite range"):
        run(reward=nearness(score_range=(0, math.inf)), min_gain=None)
    with pytest.raises(ValueError, match="needs hr"):
        run(reward=nearness(needs=("hr",)))
    grouped = nearness()
    grouped.groupwise = True
    with pytest.raises(ValueError, match="normalised within a group"):
        run(reward=grouped)
    with pytest.raises(ValueError, match="pass assessor="):
        refine(grainy, LQ, nearness())
    with pytest.raises(TypeError, match="must be a ZoomIQA or a Reward"):
        refine(grainy, LQ, "nano")
    with pytest.raises(ValueError, match="needs 5 px"):
        refine(grainy, picture(0, 4, 20), nearness(), assessor=Scripted(ASKS))


def test_the_least_gain_is_a_four_hundredth_of_the_range_and_a_zoomiqa_rates_and_looks():
    result = refine(grainy, LQ, Scripted(ASKS), rounds=1, progress=False)
    assert result.report["settings"]["min_gain"] == pytest.approx(0.01)
    assert result.reward == pytest.approx(1 + 4 * near_target(load_image(result.image)), abs=1e-4)


def test_the_strip_shows_every_picture_with_its_detail_before_and_after():
    result = run(iqa=Scripted(ASKS, CONTENT), rounds=3)
    strip = np.asarray(strip_of(result)).astype(int)
    assert strip.shape[1] == 3 * CELL_PX + 4 * MARGIN_PX  # low quality, start, round 1
    left, top, right, bottom = (2 * side for side in result.history[1].region)
    for column, one in ((1, result.history[0]), (2, result.history[1])):
        detail = np.asarray(one.image.crop((left, top, right, bottom)))
        detail = detail.repeat(2, 0).repeat(2, 1)
        x = MARGIN_PX + column * (CELL_PX + MARGIN_PX)
        assert shows(strip[:, x : x + CELL_PX], detail)
    before = np.asarray(result.history[0].image.crop((left, top, right, bottom))).repeat(2, 0).repeat(2, 1)
    assert shows(strip[:, x : x + CELL_PX], before)
    assert not shows(strip[:, : MARGIN_PX + CELL_PX], before)


def shows(strip, detail):
    """Whether the detail stands somewhere in the strip, pixel by pixel."""
    height, width = detail.shape[:2]
    hits = (strip[: strip.shape[0] - height + 1, : strip.shape[1] - width + 1] == detail[0, 0]).all(axis=2)
    return any((strip[y : y + height, x : x + width] == detail).all() for y, x in np.argwhere(hits))


def test_the_command_prints_a_line_a_round_and_tells_what_was_not_measured(tmp_path, monkeypatch, capsys):
    small_nano().save_pretrained(tmp_path / "pipeline")
    Image.fromarray((LQ * 255).byte().permute(1, 2, 0).numpy()).crop((0, 0, 48, 40)).save(tmp_path / "lq.png")

    class Rating(Scripted):
        def rate(self, images, **options):
            mean = torch.tensor([1 + 4 * float(image.mean()) for image in images])
            return Ratings(mean=mean, std=mean * 0, valid=mean > 0, std_kind="token")

    app = typer.Typer()
    app.command()(command)
    arguments = [str(tmp_path / "lq.png"), "--restorer", str(tmp_path / "pipeline"), "--device", "cpu", "--steps", "1",
                 "--seeds-per-round", "2", "--rounds", "2", "--slack-db", "30", "--min-gain", "0"]  # fmt: skip
    for answers, code, stopped in (((ASKS, CONTENT), 0, "satisfied"), ((("garbage",),), 2, "unreadable")):
        monkeypatch.setattr(inputs, "load_model", lambda *_, _answers=answers, **__: Rating(*_answers))
        out = tmp_path / stopped
        for more in (["--json"], []):  # the second one reads what the first one made
            assert app([*arguments, "--out", str(out), *more], standalone_mode=False) == code
            printed = capsys.readouterr()
            assert f"stopped: {stopped}" in printed.err
            if more:
                rows = [json.loads(line, parse_constant=pytest.fail) for line in printed.out.splitlines()]
                assert [row["number"] for row in rows] == list(range(len(rows)))
                assert rows[0]["image"] == str(out / "rounds" / "00.png")
                assert rows[-1]["stop"] == stopped
            else:
                assert "the whole picture" in printed.out
                assert "nan" not in printed.out.lower()
        assert (out / "strip.png").exists()
