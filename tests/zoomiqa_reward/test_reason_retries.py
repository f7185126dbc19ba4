"""Answers that cannot be read are asked for again: which, how often, with what seeds, and who does so."""

import math
from dataclasses import replace

import pytest
from scripted_writer import FINAL, NO_NUMBER, SECOND, ZOOM, Writer, ask
from tiny import make_image, tiny_iqa

from zoomiqa_reward.model.generate import Sampling
from zoomiqa_reward.model.reason import assess_images
from zoomiqa_reward.model.zoomiqa import ZoomIQA


def test_what_cannot_be_read_is_asked_for_again_alone_and_told():
    writer = Writer([FINAL, NO_NUMBER, ZOOM], [FINAL.replace("3.25", "1.5")], ["no"], [NO_NUMBER], [SECOND])
    found = ask(writer, [make_image(k) for k in range(3)], retries=2)
    assert [one.rating for one in found] == [3.25, 1.5, 4.0]
    told = "round {}: asked {} times; what was written before cannot be read"
    assert [one.warning for one in found] == [None, told.format(1, 2), told.format(2, 3)]
    assert found[2].turns[1].crop_box == (9, 7, 54, 49)  # of the image, as without
    assert writer.prompts[1] == [writer.prompts[0][1]]
    assert writer.prompts[2] == writer.prompts[3] == writer.prompts[4]


def test_an_answer_asked_for_again_is_sampled_with_a_seed_of_image_round_and_attempt():
    def asked(images, retries=2):
        writer = Writer([NO_NUMBER] * len(images), *[[NO_NUMBER] * len(images)] * retries)
        assert not any(one.valid for one in ask(writer, images, retries=retries))
        assert writer.temperatures == [0.0, *[1.0] * retries]
        return writer.seeds[1:]

    image, other = make_image(), make_image(1)
    seeds = asked([image, other])
    assert len({seed for attempt in seeds for seed in attempt}) == 4
    assert asked([other]) == [(seed,) for _, seed in seeds]  # in any company
    writer = Writer([ZOOM], [NO_NUMBER], [SECOND])
    ask(writer, [image], retries=1)
    assert writer.seeds[2][0] not in seeds[0]


def test_what_is_never_readable_has_no_rating_and_samples_are_not_asked_for_again():
    (found,) = ask(Writer([NO_NUMBER], ["no"], [NO_NUMBER]), [make_image()], retries=2)
    assert (found.valid, math.isnan(found.rating)) == (False, True)
    assert found.error.startswith("round 1: rating is missing")
    (high,) = ask(Writer([FINAL.replace("3.25", "72")], [FINAL]), [make_image()], retries=1)
    assert high.rating == 3.25  # a number off the scale is no rating
    (sampled,) = ask(Writer([NO_NUMBER]), [make_image()], Sampling(temperature=1.0, seed=1), retries=2)
    assert not sampled.valid


@pytest.mark.parametrize("name", ["assess", "rate"])
def test_a_model_asks_again_as_often_as_its_protocol_says(name, monkeypatch):
    checkpoint = tiny_iqa().checkpoint
    iqa = ZoomIQA(replace(checkpoint, protocol=replace(checkpoint.protocol, retries=1)))
    script = Writer([NO_NUMBER], [FINAL])
    monkeypatch.setattr(assess_images, "__kwdefaults__", assess_images.__kwdefaults__ | {"write": script})
    found = (
        iqa.assess(make_image())[0].rating if name == "assess" else iqa.rate(make_image(), mode="reason").mean.item()
    )
    assert found == 3.25
