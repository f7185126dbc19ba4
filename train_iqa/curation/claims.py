"""What a sentence claims about the states of an image, and whether about the box alone: rules on words, no model.

A section that wishes ("Directions for Improvement") claims nothing by its praise ("crisp detail") and nothing by what
it denies; damage that it names ("remove the noise") is still claimed to be there.
"""

import re
from dataclasses import dataclass

from train_iqa.curation.hints import Box
from train_iqa.curation.lexicon import COMPILED
from train_iqa.nano.rationale import name_region

_DENIES = re.compile(
    r"\b(?:no|not|without|never|nor|neither|none|nothing|nowhere|hardly any|barely any|free of|free from|devoid of|"
    r"lacks?|lacking|lack of|absence of|absent|isn't|aren't|doesn't|don't|cannot|can't|in vain|far from|"
    r"any sign of|rather than|instead of)\b"
)
_NOT_A_DENIAL = re.compile(r"\bnot only\b|\bno longer\b|\bnot just\b|\bno doubt\b|\bno less\b|\bnothing but\b")
_DENIED_AFTER = re.compile(
    r"^ (?:(?!(?:and|or|nor|but)\b)\w+ ){0,3}?(?:(?:is|are|was|were|stays?|remains?) )?"
    r"(?:(?:all but|nearly|almost|entirely|completely) )?"
    r"(?:absent|negligible|invisible|imperceptible|missing|nowhere|well controlled|under control|avoided|"
    r"not (?:\w+ )?(?:visible|present|noticeable|seen|found|detectable|an issue|a problem)|"
    r"cannot be (?:seen|found|made out)|kept low)\b"
)
_TURN = re.compile(r"[;:]|\b(?:but|while|whereas|although|though|yet|however|except|despite|only)\b")
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|shows?|looks?|appears?|remains?|stays?|suffers?|covers?|spoils?|seems?)\b"
)
_BOX_WORDS = re.compile(
    r"\b(?:crop|cropped|box|boxed|enlarged|named region|this region|the region|selected region|zoomed)\b"
)
_PLACES = tuple(f"{row} {column}" for row in ("upper", "middle", "lower") for column in ("left", "centre", "right"))
_PLACE = re.compile(
    r"\b(upper|top|lower|bottom|middle|central|cent(?:re|er))[ -]?(left|right|cent(?:re|er)|middle)?\b|"
    r"\b(?:on|to) the (left|right)\b"
)


@dataclass(frozen=True)
class Claim:
    """One statement about one state."""

    state: str
    is_present: bool
    in_box: bool
    """It is about the box that the answer names, not about the image as a whole."""


def read_claims(
    sentence: str, *, is_wish: bool = False, is_about_crop: bool = False, box: Box | None = None
) -> list[Claim]:
    """Return the claims of a sentence, each once.

    is_wish: it stands in a section of directions. is_about_crop: the section describes the crop. Where a sentence names
    a place, it speaks of the box if the box lies there.
    """
    text = re.sub(r"(?<=\w)[-‐‑](?=\w)", "", sentence.lower().replace("’", "'"))
    in_box = box is not None and (is_about_crop or _names_box(text, box))
    claims: list[Claim] = []
    for state, patterns in COMPILED.items():
        for pattern, says_present in zip(patterns, (True, False), strict=True):
            for match in pattern.finditer(text):
                is_denied = _is_denied(text, match)
                if is_wish and (is_denied or not says_present):
                    continue
                claim = Claim(state, says_present != is_denied, in_box)
                # "over-saturated", a claim of excess, must not be read as the word inside it
                if claim not in claims and not _is_inside(text, match, state):
                    claims.append(claim)
    return claims


def _is_denied(text: str, match: re.Match[str]) -> bool:
    scope = text[: match.start()]
    turns = list(_TURN.finditer(scope))
    if turns:
        scope = scope[turns[-1].end() :]
    comma = scope.rfind(",")
    while comma >= 0:
        # a comma ends what was denied, unless it only separates items of one list
        if _VERB.search(scope[comma:]) or _VERB.search(text[match.end() : match.end() + 24]):
            scope = scope[comma + 1 :]
            break
        comma = scope.rfind(",", 0, comma)
    scope = _NOT_A_DENIAL.sub(" ", scope)
    is_denied = _DENIES.search(scope) is not None
    # "lacks contrast" is a word of its own: what it matches starts with the denial and is not denied by it
    return is_denied != (_DENIED_AFTER.match(text[match.end() :]) is not None)


def _is_inside(text: str, match: re.Match[str], state: str) -> bool:
    """Return whether a longer phrase of another state covers the match ("oversaturated" over "saturated")."""
    for other, patterns in COMPILED.items():
        for pattern in patterns:
            for longer in pattern.finditer(text):
                covers = longer.start() <= match.start() and match.end() <= longer.end()
                if covers and longer.end() - longer.start() > match.end() - match.start() and other != state:
                    return True
    return False


def _names_box(text: str, box: Box) -> bool:
    if _BOX_WORDS.search(text):
        return True
    row, column = name_region(box).split()
    for match in _PLACE.finditer(text):
        first = {"top": "upper", "bottom": "lower", "central": "middle", "centre": "middle", "center": "middle"}
        said_row = first.get(match[1], match[1]) if match[1] else None
        said_column = match[2] or match[3]
        said_column = "centre" if said_column in ("center", "middle") else said_column
        is_centre = said_row == "middle" and said_column is None
        if is_centre and (row, column) == ("middle", "centre"):
            return True
        if not is_centre and said_row in (None, row) and said_column in (None, column):
            return True
    return False
