"""Refinement's guidance: where the model wants a closer look, and which words reach the restorer."""

import math

import pytest
import torch
from scripted_refinement import ASKS, CONTENT, LQ, Scripted, answer, grainy, run, scripted_checkpoint
from tiny import make_image, tiny_iqa, tiny_protocol
from tiny_pipelines import sd_x4

from restoration.refinement import refine
from restoration.refinement.regions import ZoomRequest, read_zoom_request, texts_for
from restoration.restorer.restorer import Restorer
from zoomiqa_reward.rewards.metric import MetricReward


def wish(texts, width=192, height=160, scale=2, protocol=None):
    iqa = Scripted(texts)
    [found] = iqa.assess([torch.rand(3, height, width)], strict=True)
    return read_zoom_request(found, protocol or iqa.protocol, width, height, scale)


@pytest.mark.parametrize(
    ("bbox", "box"),
    [
        ([0.25, 0.25, 0.5, 0.5], (24, 20, 48, 40)),
        ([0.5, 0.5, 0.25, 0.25], (24, 20, 48, 40)),  # corners in any order
        ([33, 41, 121, 119], (16, 20, 61, 60)),  # pixels, odd ones rounded outwards
        ([0.5, 0.5, 0.51, 0.51], (40, 32, 57, 49)),  # a speck becomes 32 px of the image
        ([0, 0, 1, 1], (0, 0, 96, 80)),
    ],
)
def test_the_named_box_is_read_in_pixels_of_the_low_quality_image(bbox, box):
    found = wish(answer(bbox))
    assert (found.box, found.is_central, found.error) == (box, False, None)


def test_a_box_that_means_nothing_is_the_central_half_and_no_box_is_no_wish():
    found = wish(answer('"left"'))
    assert (found.box, found.is_central) == ((24, 20, 72, 60), True)
    for texts in (CONTENT, answer([0.1, 0.1, 0.5, 0.5], tool="final"), answer([0, 0, 0, 0])):
        assert wish(texts) == ZoomRequest(box=None, directions="More detail.", issues="Noise.", rating=2.0)
    garbled = wish(("nothing",))
    assert garbled.box is None
    assert "missing <answer>" in garbled.error
    assert "tool is missing" in wish(('<answer>{"bbox_2d": [0, 0, 1, 1], "rating": 3}</answer>',)).error


def test_an_image_that_was_not_asked_about_wishes_nothing_and_says_why():
    """Another reward may rate an even sky; the model that names regions refuses it, and refinement must not fail."""
    iqa = tiny_iqa()
    [found] = iqa.assess([torch.full((3, 96, 96), 0.5)], strict=True)
    assert found.turns == ()
    wanted = read_zoom_request(found, iqa.protocol, 96, 96, 2)
    assert (wanted.box, wanted.directions, wanted.issues) == (None, "", "")
    assert "no content" in wanted.error


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
    checkpoint = scripted_checkpoint()
    monkeypatch.setattr(Scripted, "checkpoint", type("Other", (), {"__getattr__": lambda _, key: (
        four if key == "protocol" else getattr(checkpoint, key))})())  # fmt: skip
    found = wish((text,), protocol=four)
    assert (found.directions, found.issues) == ("More detail.", "Noise.")


def test_texts_go_to_restorers_that_take_them_after_their_own():
    def worded(image, seed, prompt, negative_prompt):
        return image

    asks = ZoomRequest(box=None, directions="Sharp edges.", issues="Noise.")
    own = Restorer.from_pretrained(worded, prompt=lambda image: f"{image.shape[2]} px", negative_prompt="")
    assert texts_for(own, asks, LQ) == {"prompt": "96 px, Sharp edges.", "negative_prompt": "Noise."}
    assert texts_for(own, None, LQ) == {"prompt": "96 px", "negative_prompt": ""}
    assert texts_for(Restorer.from_pretrained(grainy), asks, LQ) == {}


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
    small = make_image(0, 32, 40)
    spoken = [
        refine(pipeline, small, reward, assessor=Scripted(answer([0, 0, 0, 0], "final", avoid=avoid)), **options)
        for avoid in ("Noise.", "Blur and halos.")
    ]
    assert [one.history[0].prompt for one in spoken] == ["More detail."] * 2
    assert [one.history[0].negative_prompt for one in spoken] == ["Noise.", "Blur and halos."]
    assert spoken[0].history[0].pixels != spoken[1].history[0].pixels


def test_a_reward_that_needs_a_text_gets_the_prompt_alone_in_every_round():
    """With the model's directions in it the values of two rounds could not be compared."""
    seen, heard = [], []

    def like(image, prompt):
        seen.append(prompt)
        return image.mean()

    def worded(image, seed, prompt):
        heard.append(prompt)
        return grainy(image, seed)

    reward = MetricReward(like, "text", True, (0, 1), needs=("prompts",), fingerprint="text")
    options = {"reward": reward, "iqa": Scripted(ASKS), "rounds": 1, "seeds_per_round": 2}
    result = run(grainy, prompt="a red house", **options)
    assert seen == ["a red house"] * 4
    assert result.report["settings"]["prompt"] == "a red house"
    run(Restorer.from_pretrained(worded, prompt="photo"), prompt="a red house", **options)
    assert heard == ["a red house, More detail."] * 4
    run(Restorer.from_pretrained(worded, prompt="photo"), **options)
    assert seen[4:] == ["a red house"] * 4 + ["photo"] * 4
    assert heard[4:] == ["photo, More detail."] * 4
    with pytest.raises(ValueError, match="reward 'text' needs prompts: pass prompt="):
        run(grainy, **options)
