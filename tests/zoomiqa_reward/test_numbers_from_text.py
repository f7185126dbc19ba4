"""Numbers in a model's answer: read in bounded time, never computed, never pushed onto the scale without a word."""

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_image

from zoomiqa_reward.model.generate import Completion, Sampling
from zoomiqa_reward.model.reason import assess_batch
from zoomiqa_reward.protocol import (
    AnswerError,
    Prompt,
    Protocol,
    read_rating,
    read_route,
    read_sections,
    read_tool,
    zoom_box,
    zoomed_size,
)
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "recorded_sample.json").read_text(encoding="utf-8"))
PROTOCOL = Protocol(
    name="test", round1=Prompt(text="{question}"), round2=Prompt(text="Closer."), questions=("?",), direct_prefix=""
)
FIELDS = '<answer>{{"bbox_2d": [0, 0, 0, 0], "rating": {}, "tool": "final"}}</answer>'
LONGEST_S = 2.0
"""For an answer of a million characters, on a slow machine."""

numbers = st.sampled_from(
    [
        "3.4",
        "1",
        "5",
        "72",
        "0",
        "-3",
        "3-4",
        "3.2-3.6",
        "3.5/5",
        "9**9**9",
        "((9))**9**9",
        "(-9)**99**99",
        '"3_4"',
        "3,4",
        '"3,4"',
        "017",
        "0x5",
        "1e-1",
        "1e999",
        "NaN",
        "-Infinity",
        "true",
        "null",
        "[3]",
        '{"value": 3}',
        "3.4.5",
        "\uff13",
        '"3.4 of 5"',
        "9" * 400,
        "e9",
        "x",
        "1<<9",
        "3&1",
        "'4.2'",
    ]
)
pieces = st.one_of(
    numbers,
    st.text(max_size=12),
    st.sampled_from(
        [
            "<answer>",
            "</answer>",
            "{",
            "}",
            ",",
            ":",
            '"rating"',
            "rating",
            "'",
            '"tool": "crop"',
            '"bbox_2d": [0.1, 0.1, 0.9, 0.9]',
            "<think>",
            "</think>",
            "\n",
            " " * 40,
            "//",
            "/*",
            "*/",
            "\\",
        ]
    ),
)
answers = st.one_of(
    numbers.map(FIELDS.format),
    st.lists(pieces, max_size=14).map("".join),
    st.lists(pieces, max_size=10).map(lambda found: "<answer>{" + "".join(found) + "}</answer>"),
    st.tuples(pieces, numbers, pieces).map(lambda found: FIELDS.format(found[1] + found[2]) + found[0]),
)


def assessed(text: str) -> Any:
    image = make_image(0, 40, 60)
    answer = Completion(text=text, is_truncated=False)
    [one] = assess_batch(
        PROTOCOL, [image], lambda asked, sampling: [answer] * len(asked), question=None, rounds=1, sampling=Sampling()
    )  # type: ignore[list-item]
    return one


@pytest.mark.integration
@settings(max_examples=int(os.environ.get("ZOOMIQA_FUZZ", "2000")), deadline=None)
@given(answers)
def test_fuzzed_answers_are_read_or_refused_and_never_pushed_onto_the_scale(text: str) -> None:
    began = time.monotonic()
    one = assessed(text)
    assert time.monotonic() - began < LONGEST_S
    if one.valid:
        assert one.rating == read_rating(text)
        assert 1 <= one.rating <= 5
    else:
        assert math.isnan(one.rating)
        assert one.error


@pytest.mark.parametrize(
    "written",
    [
        "3-4",
        "3.2-3.6",
        "3.5/5",
        '"3_4"',
        "3_4",
        "72",
        "0",
        "-1",
        "9**9**9",
        "((9**9**9))",
        "(-9)**9**9",
        "*9",
        "3,4",
        "017",
        "0x5",
        "3&1",
        '3, "rating": 4',
        "3, rating: 4",
        "NaN",
        "1e999",
        "true",
    ],
)
def test_what_is_not_one_number_on_the_scale_is_no_rating(written: str) -> None:
    one = assessed(FIELDS.format(written))
    assert not one.valid
    assert math.isnan(one.rating)
    assert one.error


@pytest.mark.parametrize(
    ("written", "rating"), [("3.4", 3.4), ("1", 1.0), ("5.00", 5.0), ("'4.2'", 4.2), ("3.4,", 3.4)]
)
def test_one_number_on_the_scale_is_the_rating(written: str, rating: float) -> None:
    one = assessed(FIELDS.format(written).replace(",,", ","))
    assert (one.valid, one.rating, one.warning) == (True, rating, None)


@pytest.mark.parametrize(
    "piece",
    [
        "<answer>{",
        "<answer> ",
        "}",
        "} ",
        "</answer>",
        '{"a":',
        "[",
        "9",
        "9*",
        "'",
        '"',
        " ",
        "- ",
        "# ",
        "**",
        "Issues to Avoid",
        "Image Quality ",
        "\n",
        "//",
        "/*",
        "'rating': 3, ",
        "\\",
    ],
)
@pytest.mark.parametrize("form", ["{}", "<answer>{{{}}}</answer>", "<answer>{{'rating': {}}}</answer>"])
def test_a_million_characters_take_bounded_time(piece: str, form: str) -> None:
    text = form.format(piece * (1_000_000 // len(piece)))
    began = time.monotonic()
    for read in (read_rating, read_route, read_tool):
        with contextlib.suppress(AnswerError):
            read(text)
    read_sections(text, ROUND1_SECTIONS)
    assert time.monotonic() - began < 4 * LONGEST_S


@pytest.mark.parametrize("row", RECORDED["crops"], ids=str)
def test_recorded_crops(row: dict[str, Any]) -> None:
    box, central = zoom_box(row["bbox_2d"], row["width"], row["height"])
    assert (list(box), central) == (row["pixel_bbox"], row["central_fallback"])
    if row["zoomed_size"] is not None:
        assert list(zoomed_size(box, row["width"], row["height"], central)) == row["zoomed_size"]


@pytest.mark.parametrize("row", RECORDED["answers"], ids=lambda row: row["text"][:60])
def test_recorded_answers(row: dict[str, Any]) -> None:
    if row["rating"] is None:
        with pytest.raises(AnswerError) as caught:
            read_rating(row["text"])
        assert str(caught.value).startswith(row["rating_error"])
    else:
        assert read_rating(row["text"]) == row["rating"]
    if row["routable"]:
        assert read_route(row["text"]).zoom is row["requests_crop"]
    else:
        with pytest.raises(AnswerError) as caught:
            read_route(row["text"])
        assert str(caught.value).startswith(row["route_error"])
