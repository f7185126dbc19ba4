"""Answers written from a record: readable by the protocol, and true to the record."""

import numpy as np
import pytest

from train_iqa.nano.degradations import DamageRecord, Step, sample_box, sample_steps
from train_iqa.nano.rationale import DIRECT_PREFIX, EFFECTS, WORDS, answer1, answer2, name_region, nano_protocol
from zoomiqa_reward.protocol import read_rating, read_route, read_sections
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS, ROUND2_SECTIONS

BLUR = Step(kind="motion_blur", severity=0.8, params={"length_px": 12.0, "angle_rad": 0.0})


def test_local_damage_zooms_to_its_place_and_names_it():
    record = DamageRecord(steps=(BLUR,), box=(0.0, 0.1, 0.3, 0.3))
    text = answer1(record, 2.4, "2.40", ("0.00", "0.10", "0.30", "0.30"))
    route = read_route(text)
    assert read_rating(text) == 2.4
    assert route.zoom
    assert list(route.bbox) == [0.0, 0.1, 0.3, 0.3]
    sections = read_sections(text, ROUND1_SECTIONS)
    assert set(sections) == set(ROUND1_SECTIONS)
    assert "strong motion blur in the upper left" in sections["Image Quality Summary"]
    assert "blur" not in sections["Directions for Improvement"]
    second = answer2(record, 2.4, "2.41", first=2.4)
    assert read_rating(second) == 2.41
    assert not read_route(second).zoom
    assert set(read_sections(second, ROUND2_SECTIONS)) == set(ROUND2_SECTIONS)


def test_even_damage_and_no_damage_decide_at_once():
    for record in (DamageRecord(steps=(BLUR,)), DamageRecord(steps=())):
        text = answer1(record, 3.0, "3.00", None)
        assert not read_route(text).zoom
        assert read_rating(text) == 3.0
    assert "no damage" in text


@pytest.mark.parametrize(
    ("first", "word"), [(2.4, "stays"), (2.2, "stays"), (3.0, "falls"), (1.6, "rises"), (1.0, "rises")]
)
def test_round_2_says_what_the_closer_look_did_to_the_rating(first, word):
    text = answer2(DamageRecord(steps=(BLUR,), box=(0.0, 0.1, 0.3, 0.3)), 2.4, "2.40", first)
    assert word in read_sections(text, ROUND2_SECTIONS)["Final Decision & Rationale"]


def test_the_summary_names_the_effect_of_the_strongest_damage_at_its_strength():
    weak = Step(kind="motion_blur", severity=0.2, params={})
    for step, sentence in ((weak, "Contours are smeared."), (BLUR, "Contours are doubled and smeared.")):
        text = answer1(DamageRecord(steps=(step, Step(kind="jpeg", severity=0.1))), 3.0, "3.00", None)
        assert sentence in read_sections(text, ROUND1_SECTIONS)["Image Quality Summary"]


def test_every_look_has_a_word_and_an_effect():
    assert set(EFFECTS) == set(WORDS)


def test_directions_never_name_a_fault():
    faults = {word for wrong, _ in WORDS.values() for word in wrong.split()} - {
        "contrast",
        "colours",
        "resolution",
        "colour",
    }
    for _, right in WORDS.values():
        assert not faults & set(right.split()), right


def test_every_sampled_record_gives_a_readable_answer():
    rng = np.random.default_rng(0)
    rows = 0
    for _ in range(200):
        steps = tuple(
            Step(kind=s.kind, severity=s.severity, params={"up": "box", "gain": 0.5, "gamma": 0.5, "saturation": 0.3})
            for s in sample_steps(rng)
        )
        box = sample_box(rng) if rng.random() < 0.5 else None
        texts = tuple(f"{v:.2f}" for v in box) if box else None
        text = answer1(DamageRecord(steps=steps, box=box), 2.0, "2.00", texts)
        assert read_route(text).zoom is (box is not None)
        rows += 1
    assert rows == 200


@pytest.mark.parametrize(("box", "name"), [((0, 0, 0.2, 0.2), "upper left"), ((0.4, 0.4, 0.6, 0.6), "middle centre")])
def test_places(box, name):
    assert name_region(box) == name


def test_protocol_prompts_render_and_prefix_leads_to_the_rating():
    protocol = nano_protocol()
    prompt = protocol.round1.render("Q?")
    assert prompt.startswith("Q? ")
    assert '{"bbox_2d"' in prompt
    assert "{{" not in prompt
    assert read_rating(DIRECT_PREFIX + '3.21, "tool": "final"}</answer>') == 3.21
