"""Answers are read as the vectors say, and nothing that a model can write breaks the reader."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoomiqa_reward.protocol import AnswerError, read_rating, read_route, read_sections, read_tool
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS, ROUND2_SECTIONS

VECTORS = json.loads((Path(__file__).parents[1] / "fixtures" / "protocol_vectors.json").read_text(encoding="utf-8"))
ANSWERS = [pytest.param(row, id=row["why"]) for row in VECTORS["answers"]]


@pytest.mark.parametrize("row", ANSWERS)
def test_rating(row: dict[str, Any]) -> None:
    if "rating" in row:
        assert read_rating(row["text"]) == row["rating"]
        assert isinstance(read_rating(row["text"]), float)
    else:
        with pytest.raises(AnswerError) as caught:
            read_rating(row["text"])
        assert str(caught.value).startswith(row["rating_error"])


@pytest.mark.parametrize("row", ANSWERS)
def test_route(row: dict[str, Any]) -> None:
    if "zoom" in row:
        assert read_route(row["text"]).zoom is row["zoom"]
    else:
        with pytest.raises(AnswerError) as caught:
            read_route(row["text"])
        assert str(caught.value).startswith(row["route_error"])


@pytest.mark.parametrize("row", ANSWERS)
def test_tool(row: dict[str, Any]) -> None:
    if "tool" in row:
        assert read_tool(row["text"]) == row["tool"]
    else:
        with pytest.raises(AnswerError):
            read_tool(row["text"])


def test_route_keeps_the_box_as_written() -> None:
    assert read_route('<answer>{"bbox_2d": [1, 2], "rating": 1, "tool": "crop"}</answer>').bbox == [1, 2]
    assert read_route('<answer>{"bbox_2d": "x", "rating": 1, "tool": "crop"}</answer>').bbox == "x"


def test_answer_error_is_a_value_error_and_stays_short() -> None:
    with pytest.raises(ValueError, match="missing") as caught:
        read_rating("word " * 10_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "inside",
    [
        '{"rating": ' + "9" * 5000 + "}",  # longer than Python turns into an integer
        '{"rating": 1' + "0" * 400 + "}",  # longer than a float holds
        '{"rating": 1/0}',
        '{"rating": ' + "[" * 5000 + "}",
        '{"a": ' * 5000 + "}",
        "{'rating': '\\ud800', }",
        '{"rating": {"value": 3}}',
        '{"rating": [3]}',
        "{{}}",
    ],
)
def test_hostile_answers_raise_only_answer_error(inside: str) -> None:
    for read in (read_rating, read_route):
        with pytest.raises(AnswerError):
            read(f"<answer>{inside}</answer>")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="{}[]\"':,.0123456789eE+-/ \nNaINfityrangbox_2dtolcp<>#", max_size=60))
def test_any_text_is_read_or_refused(inside: str) -> None:
    text = f"<think>{inside}</think><answer>{{{inside}}}</answer>"
    for read in (read_rating, read_route, read_tool):
        try:
            read(text)
        except AnswerError:
            continue
    read_sections(text, ROUND1_SECTIONS)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_rating_comes_back(rating: float) -> None:
    assert read_rating(f'<answer>{{"rating": {json.dumps(rating)}}}</answer>') == rating


FOUR = {
    "Image Quality Summary": "Soft overall.",
    "Directions for Improvement": "Crisp leaves: each vein visible.",
    "Issues to Avoid": "Blown sky.",
    "Decision & Rationale": "A crop is needed.",
}
ANSWER = '<answer>{"bbox_2d": [0, 0, 0, 0], "rating": 3, "tool": "final"}</answer>'


@pytest.mark.parametrize(
    "body",
    [
        " ".join(f"{label}: {text}" for label, text in FOUR.items()),
        "\n\n".join(f"**{label}:** {text}" for label, text in FOUR.items()),
        "\n".join(f"{n}. **{label}**: {text}" for n, (label, text) in enumerate(FOUR.items(), 1)),
        "\n".join(f"### {label}\n{text}" for label, text in FOUR.items()),
        "\n".join(f"- {label.upper().replace('&', 'and')} : {text}" for label, text in FOUR.items()),
        "I look first. " + "\n".join(f"{label}:\n  {text}" for label, text in FOUR.items()),
    ],
)
@pytest.mark.parametrize(
    "wrap", ["<think>{}</think>{}", "<think>\n{}\n</think>\n\n{}", "{}</think>{}", "<think>{}{}", "{}{}"]
)
def test_sections_in_every_dress(body: str, wrap: str) -> None:
    assert read_sections(wrap.format(body, ANSWER), ROUND1_SECTIONS) == FOUR


def test_missing_and_empty_sections_are_left_out() -> None:
    text = "<think>Image Quality Summary: soft. Issues to Avoid: Decision & Rationale: none.</think>"
    assert read_sections(text, ROUND1_SECTIONS) == {"Image Quality Summary": "soft.", "Decision & Rationale": "none."}
    assert read_sections("", ROUND1_SECTIONS) == {}
    assert read_sections("no label here", ROUND1_SECTIONS) == {}
    assert read_sections(text, ()) == {}


def test_a_label_inside_a_longer_one_is_not_it() -> None:
    text = "<think>Crop Inspection Summary: sharp. Final Decision & Rationale: 4.</think>"
    assert read_sections(text, ROUND2_SECTIONS) == {
        "Crop Inspection Summary": "sharp.",
        "Final Decision & Rationale": "4.",
    }


def test_mentions_without_a_colon_and_repeats_do_not_cut() -> None:
    text = "<think>Issues to Avoid: blur. The Directions for Improvement help. As in Issues to Avoid: noise.</think>"
    assert read_sections(text, ROUND1_SECTIONS) == {
        "Issues to Avoid": "blur. The Directions for Improvement help. As in Issues to Avoid: noise."
    }


def test_sections_come_in_the_order_of_the_text() -> None:
    assert list(read_sections("B: 1 A: 2", ["A", "B"])) == ["B", "A"]


def test_sections_after_the_reasoning_are_not_read() -> None:
    assert read_sections("<think>A: 1</think> B: 2 <answer>{}</answer> C: 3", ["A", "B", "C"]) == {"A": "1"}


def test_a_long_run_of_spaces_behind_a_label_takes_no_long_time() -> None:
    began = time.process_time()
    assert read_sections("Issues to Avoid" + " " * 80_000 + "x", ROUND1_SECTIONS) == {}
    assert time.process_time() - began < 2  # 29 s where spaces are tried in every division
