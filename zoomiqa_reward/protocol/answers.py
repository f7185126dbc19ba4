"""Reading a model's answer: the rating, where it wants to look closer, and the labelled sections of its reasoning.

An answer is `<think>...</think><answer>{"bbox_2d": [...], "rating": 3.47, "tool": "crop"}</answer>`. What counts as
readable follows the official evaluator, as far as its recorded answers show it:

- the tag is lower case, opened and closed, and holds one `{...}` and white space around it; a code fence, a list, a
  missing end or a bare object is no answer. Of several complete answers the first counts.
- inside the braces the JSON may be sloppy (single quotes, trailing commas); `dirtyjson` reads it. Like the official
  reader, and unlike a strict one, it evaluates arithmetic: `"rating": 3.5/5` is read as 0.7.
- a rating and a route are read apart: an answer that cannot be routed may still hold a rating.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dirtyjson

_ANSWER = re.compile(r"<answer>\s*(\{.*?\})\s*</answer>", re.DOTALL)
_ROUTE_FIELDS = ("bbox_2d", "rating", "tool")
# What dirtyjson can raise on hostile text: its own Error is a ValueError; it computes, and it recurses.
_UNREADABLE = (ValueError, ArithmeticError, TypeError, LookupError, RecursionError)


class AnswerError(ValueError):
    """A model's answer from which the asked-for thing cannot be read; the message starts with the reason."""


@dataclass(frozen=True)
class Route:
    """What an answer says about looking closer."""

    bbox: Any
    """`bbox_2d` as it stands in the answer, usable or not; `usable_box` says which, `zoom_box` copes with both."""
    zoom: bool
    """Whether round 2 is wanted: the box is not all zero and the tool is not `final`."""


def read_rating(text: str) -> float:
    """Return the rating of an answer, finite but not clipped: 7.0 and -1.0 come back as they are.

    A number in quotes counts. Raises AnswerError where there is no answer, no number, or NaN or infinity.

    >>> read_rating('<think>Soft.</think><answer>{"bbox_2d": [0, 0, 0, 0], "rating": 2.5, "tool": "final"}</answer>')
    2.5
    """
    value = _read_object(text).get("rating")
    if isinstance(value, bool):  # float(True) is 1.0, the worst rating: a wrong type must not become one
        value = None
    try:
        rating = float(value)  # type: ignore[arg-type]
    except OverflowError as error:  # an integer of more than 308 digits
        raise AnswerError(f"rating is not finite: {_short(value)}") from error
    except (TypeError, ValueError) as error:
        raise AnswerError(f"rating is missing or non-numeric: {_short(value)}; expected 1 to 5") from error
    if not math.isfinite(rating):
        raise AnswerError(f"rating is not finite: {_short(value)}; expected 1 to 5")
    return rating


def read_route(text: str) -> Route:
    """Return the box that an answer names and whether it asks for a closer look.

    The fields `bbox_2d`, `rating` and `tool` must all be there (the first one missing is named), and the box must be
    something that can be iterated over; their values are not judged here. An empty box is all zero.
    Raises AnswerError.

    >>> read_route('<answer>{"bbox_2d": [0.1, 0.2, 0.8, 0.9], "rating": 3, "tool": "crop"}</answer>')
    Route(bbox=[0.1, 0.2, 0.8, 0.9], zoom=True)
    """
    answer = _read_object(text)
    for name in _ROUTE_FIELDS:
        if name not in answer:
            raise AnswerError(f"{name} is missing; the answer holds: {', '.join(map(str, answer)) or 'nothing'}")
    bbox = answer["bbox_2d"]
    if not isinstance(bbox, Iterable):
        raise AnswerError(f"bbox_2d is not iterable: {_short(bbox)}; expected [x1, y1, x2, y2]")
    is_zero = all(side == 0 for side in bbox)
    return Route(bbox=bbox, zoom=not is_zero and answer["tool"] != "final")


def read_tool(text: str) -> str | None:
    """Return the answer's `tool` (`crop`, `final` or whatever was written), None if it is missing or not a text.

    Raises AnswerError where there is no readable answer.
    """
    tool = _read_object(text).get("tool")
    return tool if isinstance(tool, str) else None


def read_sections(text: str, labels: Sequence[str]) -> dict[str, str]:
    """Return label -> text for those `labels` that the reasoning holds, in the order in which they stand there.

    Looks only before the answer, inside `<think>` where that tag exists (either half of it may be missing). A label
    counts where a colon follows, or alone on its line; case, `&` or `and`, markdown emphasis, heading marks and list
    numbers do not matter. The first occurrence counts. A section without text is left out. Never raises.

    >>> read_sections("<think>Summary: soft. Issues to Avoid: blur.</think>", ["Summary", "Issues to Avoid", "Other"])
    {'Summary': 'soft.', 'Issues to Avoid': 'blur.'}
    """
    if not labels:
        return {}
    reasoning = text.split("<answer>", 1)[0].split("</think>", 1)[0].split("<think>", 1)[-1]
    found: dict[str, re.Match[str]] = {}
    for match in _label_pattern(labels).finditer(reasoning):
        name = _normalise(match["inline"] or match["alone"])
        found.setdefault(next(label for label in labels if _normalise(label) == name), match)
    starts = [match.start() for match in found.values()] + [len(reasoning)]
    texts = {
        label: reasoning[match.end() : starts[position + 1]].strip()
        for position, (label, match) in enumerate(found.items())
    }
    return {label: section for label, section in texts.items() if section}


def _read_object(text: str) -> Mapping[str, Any]:
    match = _ANSWER.search(text)
    if match is None:
        raise AnswerError(f"missing <answer>{{...}}</answer> in {_short(text)}")
    try:
        answer = json.loads(match[1])
    except (ValueError, RecursionError):
        try:
            answer = dirtyjson.loads(match[1])
        except _UNREADABLE as error:
            raise AnswerError(f"the answer is not readable as JSON: {_short(match[1])} ({error})") from error
    if not isinstance(answer, Mapping):
        raise AnswerError(f"the answer is not a JSON object: {_short(match[1])}")
    return answer


def _label_pattern(labels: Sequence[str]) -> re.Pattern[str]:
    # Longest first: "Final Decision & Rationale" must win over the "Decision & Rationale" inside it.
    names = "|".join(
        r"\s+".join("(?:&|and)" if word in ("&", "and") else re.escape(word) for word in label.split())
        for label in sorted(labels, key=len, reverse=True)
    )
    lead = r"(?:#{1,6}[ \t]*)?(?:(?:\d{1,2}[.)]|[-*>])[ \t]+)?(?:\*\*|__)?"
    inline = rf"(?<!\w){lead}(?P<inline>{names})[ \t]*(?:\*\*|__)?[ \t]*:(?:\*\*|__)?"
    alone = rf"^[ \t]*{lead}(?P<alone>{names})[ \t]*(?:\*\*|__)?[ \t]*$"
    return re.compile(f"{inline}|{alone}", re.IGNORECASE | re.MULTILINE)


def _normalise(label: str) -> str:
    return " ".join("and" if word == "&" else word for word in label.lower().split())


def _short(value: object, limit: int = 80) -> str:
    """Return `value` for a message: model output may be thousands of characters long."""
    try:
        shown = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return f"an {type(value).__name__} too long to show"
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."
