"""The protocol file: what is written comes back, and every broken file is refused by name."""

import json
import math
import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from zoomiqa_reward.protocol import (
    PROTOCOL_FILE,
    CropPolicy,
    Decoding,
    Prompt,
    Protocol,
    ProtocolError,
    ViewPolicy,
)

FULL = Protocol(
    name="test",
    round1=Prompt(text="{question} Answer like {{this}}."),
    round2=Prompt(text="{question} {{stays}}", style="verbatim"),
    questions=("How sharp is this?", "Wie gut?"),
    direct_prefix='<answer>{"rating": ',
    sections1=("Faults",),
    sections2=("Closer look",),
    image_labels=("Whole: ", "Part: "),
    answer_starts=("", "<think>Closer look:"),
    image_order="image_first",
    history_style="none",
    crop=CropPolicy(min_area_frac=0.1, max_area_frac=0.5, min_side_px=14),
    views=ViewPolicy(scales=(1.0, 0.5), weights=(0.75, 0.25), whole_weight=0.5, tile_px=112, min_side_px=28),
    decoding=Decoding(temperature=0.7, top_p=0.9, top_k=20, max_new_tokens=64),
    min_pixels=784,
    max_pixels=50176,
    box_margin=0.05,
    retries=2,
    label_metrics=("ssim",),
)


def test_file_round_trip(tmp_path: Path) -> None:
    assert FULL.save(tmp_path) == tmp_path / PROTOCOL_FILE
    assert Protocol.load(tmp_path) == FULL
    assert Protocol.load(FULL.save(tmp_path / "own.json")) == FULL
    assert sorted(os.listdir(tmp_path)) == ["own.json", PROTOCOL_FILE]


def test_no_field_is_left_at_its_default_by_the_round_trip_above() -> None:
    plain = Protocol(name="", round1=Prompt(text=""), round2=Prompt(text=""), questions=("",), direct_prefix="")
    mine, default = json.loads(FULL.to_json()), json.loads(plain.to_json())
    assert [key for key in mine if mine[key] == default.get(key)] == ["format_version"]


def test_file_is_readable_by_people() -> None:
    text = replace(FULL, name="Güte").to_json()
    assert "Güte" in text
    assert text.endswith("}\n")
    assert json.loads(text)["format_version"] == 1


def test_a_format_prompt_is_rendered_and_a_verbatim_one_is_not() -> None:
    assert FULL.round1.render("Sharp?") == "Sharp? Answer like {this}."
    assert FULL.round2.render("Sharp?") == "{question} {{stays}}"


@pytest.mark.parametrize("text", ["{other}", "{0}", "{", "{question!x}", "{}"])
def test_a_format_prompt_with_other_braces_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="doubled braces"):
        Prompt(text=text).render("Sharp?")


def test_fingerprint_follows_every_field() -> None:
    others = [
        replace(FULL, questions=FULL.questions[::-1]),
        replace(FULL, crop=CropPolicy()),
        replace(FULL, round2=Prompt(text=FULL.round2.text)),
        replace(FULL, label_metrics=()),
        replace(FULL, retries=0),
    ]
    assert len({FULL.fingerprint, *(other.fingerprint for other in others)}) == 6
    assert FULL.fingerprint == replace(FULL).fingerprint
    assert FULL.fingerprint == replace(FULL, box_margin=0.0).fingerprint  # no rating depends on it
    assert len(FULL.fingerprint) == 16


def test_a_protocol_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        FULL.name = "other"  # type: ignore[misc]


def broken(**changes: Any) -> dict[str, Any]:
    data = json.loads(FULL.to_json())
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        target = data
        for key in path:
            target = target[key]
        if value is KeyError:
            del target[last]
        else:
            target[last] = value
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version is 2"),
        ({"format_version": KeyError}, "format_version is None"),
        ({"round1": KeyError}, "round1"),
        ({"round1": "text"}, r"protocol\.round1: must be a JSON object"),
        ({"round1__text": KeyError}, "text"),
        ({"round1__style": "jinja"}, "jinja"),
        ({"rounds": 3}, "unknown field 'rounds'; known: .*round1"),
        ({"crop__min_side": 3}, r"protocol\.crop: unknown field 'min_side'"),
        ({"questions": []}, "questions"),
        ({"image_order": "random"}, "random"),
        ({"box_margin": 0.5}, "box_margin 0.5 must be at least 0 and below 0.5"),
        ({"retries": -1}, "retries -1 must be at least 0"),
        ({"answer_starts": ["<think>"]}, "empty or two texts"),
        ({"answer_starts": ["<think>", 2]}, r"protocol\.answer_starts: must be a list, each a text, not"),
        ({"questions": "How good?"}, r"protocol\.questions: must be a list, each a text, not 'How good\?'"),
        ({"image_labels": ["a"]}, r"image_labels: must be a list of 2, each a text"),
        ({"direct_prefix": None}, r"protocol\.direct_prefix: must be a text, not None"),
        ({"round1__text": None}, r"protocol\.round1\.text: must be a text, not None"),
        ({"views__weights": [math.nan, 1.0]}, r"protocol\.views\.weights: must be a list, each a finite number"),
        ({"views__tile_px": 64.5}, r"protocol\.views\.tile_px: must be a whole number, not 64\.5"),
        ({"decoding__max_new_tokens": True}, r"max_new_tokens: must be a whole number, not True"),
        ({"decoding__top_p": 5}, r"top_p=5 in \(0, 1\]"),
        ({"crop__min_area_frac": 0.9}, r"0\.9\.\.0\.5 must be a range in 0\.\.1"),
        ({"history_style": "all"}, "all"),
        ({"min_pixels": 10**9}, "at most max_pixels"),
        ({"min_pixels": "few"}, "protocol"),
        ({"views__weights": [1.0]}, "2 scales but 1 weights"),
        ({"views__scales": [1.0, 2.0]}, "scales"),
        ({"views__scales": [1.0, 1.0]}, "different"),
        ({"views__weights": [1.0, -1.0]}, "weights"),
        ({"views__weights": [0.0, 0.0], "views__whole_weight": 0.0}, "not all 0"),
        ({"views__tile_px": 8}, "tile_px"),
    ],
)
def test_broken_files_name_the_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken(**changes)), encoding="utf-8")
    with pytest.raises(ProtocolError, match=message) as caught:
        Protocol.load(path)
    assert "broken.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not a readable JSON"), (b"\xff\xfe", "not a readable JSON"), (b"[]", "not a list"), (None, "no such")],
)
def test_files_that_are_no_protocol(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / PROTOCOL_FILE).write_bytes(content)
    with pytest.raises(ProtocolError, match=message):
        Protocol.load(tmp_path)
