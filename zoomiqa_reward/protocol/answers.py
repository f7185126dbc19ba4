"""Reading a model's answer: the rating, where it wants to look closer, and the labelled sections of its reasoning.

An answer is `<think>...</think><answer>{"bbox_2d": [...], "rating": 3.47, "tool": "crop"}</answer>`. What counts as
readable follows the official evaluator, as far as its recorded answers show it:

- the tag is lower case, opened and closed, and holds one `{...}` and white space around it; a code fence, a list, a
  missing end or a bare object is no answer. Of several complete answers the first counts.
- inside the braces the JSON may be sloppy (single quotes, trailing commas); `dirtyjson` reads it, but it computes
  nothing: `3-4` and `3.5/5` may mean anything, and `9**9**9` never ends. `017` and a name given twice are refused too.
  The official reader computes; none of its recorded answers depends on that.
- a rating and a route are read apart: an answer that cannot be routed may still hold a rating.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dirtyjson.loader import CONSTANT_RE, DirtyJSONLoader

from zoomiqa_reward.errors import ZoomIQAError

# Two searches in place of one lazy pattern, whose time would grow with the square of an answer's length.
_OPENING = re.compile(r"<answer>\s*(?=\{)")
_CLOSING = re.compile(r"\}\s*</answer>")
_NUMBER_LIKE = re.compile(r"[-+*/()0-9.eExXoO_&|]+")  # all that the sloppy reader would compute
_PLAIN_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]*|[0-9]+(?=[.eE]))(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?")
_RATING_NAME = re.compile(r"""["']?rating["']?\s*:""")
_CONTROL_TOKEN = re.compile(r"<\|\w+\|>")
MAX_SLOPPY_CHARS = 20_000
"""Longest object that is read when it is not strict JSON; an answer of 1024 tokens has about 5,000."""
_ROUTE_FIELDS = ("bbox_2d", "rating", "tool")
# What dirtyjson can raise on hostile text: its own Error is a ValueError; it computes, and it recurses.
_UNREADABLE = (ValueError, ArithmeticError, TypeError, LookupError, RecursionError)


class AnswerError(ZoomIQAError, ValueError):
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
    # float(True) is 1.0 and float("3_4") is 34.0: what is no number must not become one.
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise AnswerError(f"rating is missing or non-numeric: {_short(value)}; expected 1 to 5")
    try:
        rating = float(value)  # type: ignore[arg-type]
    except OverflowError as error:  # an integer of more than 308 digits
        raise AnswerError(f"rating is not finite: {_short(value)}") from error
    except (TypeError, ValueError) as error:
        raise AnswerError(f"rating is missing or non-numeric: {_short(value)}; expected 1 to 5") from error
    if not math.isfinite(rating):
        raise AnswerError(f"rating is not finite: {_short(value)}; expected 1 to 5")
    return rating


def ratings_in(text: str) -> list[float]:
    """Return the ratings of all answers in a text that can be read, in order; `read_rating` takes the first answer.

    >>> ratings_in('<answer>{"rating": 2}</answer> No: <answer>{"rating": 4}</answer>')
    [2.0, 4.0]
    """
    ratings: list[float] = []
    at = 0
    while (opening := _OPENING.search(text, at)) and (closing := _CLOSING.search(text, opening.end())):
        at = closing.end()
        with contextlib.suppress(AnswerError):
            ratings.append(read_rating(text[opening.start() : at]))
    return ratings


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


def require_quotable(text: str) -> None:
    """Raise AnswerError for an answer that no prompt can quote.

    A control token that it spells would become one. Half of a character pair (a surrogate) has no tokens.
    """
    if any("\ud800" <= mark <= "\udfff" for mark in text):
        raise AnswerError("the answer holds half of a character, so round 2 cannot quote it")
    if (token := _CONTROL_TOKEN.search(text)) is not None:
        raise AnswerError(f"the answer spells {token[0]}, so round 2 cannot quote it")


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
    matches: dict[str, re.Match[str]] = {}
    for match in _label_pattern(labels).finditer(reasoning):
        name = _normalise(match["inline"] or match["alone"])
        matches.setdefault(next(label for label in labels if _normalise(label) == name), match)
    starts = [match.start() for match in matches.values()] + [len(reasoning)]
    texts = {
        label: reasoning[match.end() : starts[position + 1]].strip()
        for position, (label, match) in enumerate(matches.items())
    }
    return {label: section for label, section in texts.items() if section}


def _read_object(text: str) -> Mapping[str, Any]:
    opening = _OPENING.search(text)
    closing = None if opening is None else _CLOSING.search(text, opening.end())
    if opening is None or closing is None:
        raise AnswerError(f"missing <answer>{{...}}</answer> in {_short(text)}")
    inside = text[opening.end() : closing.start() + 1]
    try:
        answer = json.loads(inside, object_pairs_hook=_named_once)
    except AnswerError:
        raise
    except (ValueError, RecursionError):
        answer = _read_sloppy(inside)
    if not isinstance(answer, Mapping):
        raise AnswerError(f"the answer is not a JSON object: {_short(inside)}")
    return answer


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs) and sum(name == "rating" for name, _ in pairs) > 1:
        raise AnswerError("rating is given twice; expected one")
    return fields


def _read_sloppy(inside: str) -> Any:
    if len(inside) > MAX_SLOPPY_CHARS:
        raise AnswerError(
            f"the answer is not readable as JSON: {len(inside)} characters, and at most {MAX_SLOPPY_CHARS} are read "
            "where it is not strict JSON"
        )
    try:
        answer = _NotComputing(inside).decode()
    except _UNREADABLE as error:
        raise AnswerError(f"the answer is not readable as JSON: {_short(inside)} ({_short(str(error))})") from error
    if len(_RATING_NAME.findall(inside)) > 1:
        raise AnswerError("rating is given twice; expected one")
    return answer


class _NotComputing(DirtyJSONLoader):  # type: ignore[misc] # dirtyjson has no types
    """The sloppy reader without its arithmetic, which it hands to `eval`, and without octal and hexadecimal numbers."""

    def scan(self) -> Any:
        number = _NUMBER_LIKE.match(self.content, self.pos)
        is_constant = CONSTANT_RE.match(self.content, self.pos) is not None  # -Infinity starts like a number
        if number is not None and not is_constant and _PLAIN_NUMBER.fullmatch(number[0]) is None:
            raise ValueError(f"{_short(number[0], 40)} is not one plain number")
        return super().scan()


def _label_pattern(labels: Sequence[str]) -> re.Pattern[str]:
    # Longest first: "Final Decision & Rationale" must win over the "Decision & Rationale" inside it.
    names = "|".join(
        r"\s+".join("(?:&|and)" if word in ("&", "and") else re.escape(word) for word in label.split())
        for label in sorted(labels, key=len, reverse=True)
    )
    # `*+` gives nothing back: two runs of spaces beside each other take time that grows with the square of the text.
    lead = r"(?:#{1,6}[ \t]*)?(?:(?:\d{1,2}[.)]|[-*>])[ \t]+)?(?:\*\*|__)?"
    inline = rf"(?<!\w){lead}(?P<inline>{names})[ \t]*+(?:(?:\*\*|__)[ \t]*+)?:(?:\*\*|__)?"
    alone = rf"^[ \t]*{lead}(?P<alone>{names})[ \t]*+(?:(?:\*\*|__)[ \t]*+)?$"
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
