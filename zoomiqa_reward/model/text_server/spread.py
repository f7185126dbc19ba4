"""The distribution over ratings that the log-probabilities of a text's rating tokens describe.

A server lists, at every token that was written, the likeliest alternatives. Along the rating's tokens they form a
part of the tree of all ratings: `3` `.` `4` `2` was written, but `2` might have stood first with probability 0.2, and
the server gives no tokens for what would have followed it. Such an open branch counts as uniform over the ratings
1.00 .. 5.00 that begin like it; its centre is then wrong by at most half its width (0.5 for a first digit, 0.05 for a
third).
Tokens may hold any number of digits, and a number that ends early (`4,`) is that rating.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from zoomiqa_reward.model.ratings import RatingSpread
from zoomiqa_reward.model.text_server.replies import Token
from zoomiqa_reward.model.trie import RATING_TEXTS
from zoomiqa_reward.protocol.answers import AnswerError, read_rating

_RATING_KEY = re.compile(rb"""["']?rating["']?\s*:\s*["']?""")
_NUMBER = re.compile(rb"\d+(?:\.\d+)?")
_ENDS = frozenset(",}\"' \n\r\t")


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Ratings that begin alike, and how probable they are together."""

    text: str
    """The number so far, such as `3.4`; empty: nothing yet."""
    is_done: bool
    """The number ends here."""
    probability: float

    @property
    def reach(self) -> float:
        """Half of the width of the ratings that it may become; 0 where it is done."""
        low, _, high = _range(self.text)
        return 0.0 if self.is_done else (high - low) / 2


def grow(text: str, token: str) -> tuple[str, bool] | None:
    """Return (number so far, whether it is done) after one more token; None where it can be no rating any more.

    >>> grow("", " 3."), grow("3.", "42, "), grow("4", ","), grow("", "7"), grow("5", ".5")
    (('3.', False), ('3.42', True), ('4', True), None, None)
    """
    for char in token if text else token.lstrip():
        if _completions(text + char):
            text += char
            if text in RATING_TEXTS:
                return text, True
        elif char in _ENDS and text[-1:].isdigit():
            return text, True
        else:
            return None
    return text, False


def follow(tokens: Sequence[Token], *, text: str = "", lead: bytes = b"", probability: float = 1.0) -> list[Branch]:
    """Return the branches along the tokens of a number, whose start `text` (probable by `probability`) is known.

    lead: what the first token holds before the number. Empty of the written number where that is no rating.
    """
    branches = []
    for token in tokens:
        options = dict(token.alternatives) | {token.text: token.logprob}
        written, share = None, 0.0
        for option, logprob in options.items():
            if not option.startswith(lead):
                continue
            grown = grow(text, option[len(lead) :].decode(errors="replace"))
            if option == token.text:
                written, share = grown, probability * math.exp(logprob)
            elif grown is not None and grown != (text, False):  # white space alone leads nowhere yet
                branches.append(Branch(text=grown[0], is_done=grown[1], probability=probability * math.exp(logprob)))
        if written is None:
            return branches
        (text, is_done), probability, lead = written, share, b""
        if is_done:
            return [*branches, Branch(text=text, is_done=True, probability=probability)]
    return [*branches, Branch(text=text, is_done=False, probability=probability)]


def summarise_branches(branches: Sequence[Branch]) -> RatingSpread:
    """Return mean, standard deviation and mass; mean and deviation are NaN where there is no mass.

    >>> summarise_branches([Branch(text="3", is_done=True, probability=0.5), Branch(text="4", is_done=True,
    ... probability=0.5)])
    RatingSpread(mean=3.5, std=0.5, mass=1.0)
    """
    mass = math.fsum(branch.probability for branch in branches)
    if mass == 0:
        return RatingSpread(mean=math.nan, std=math.nan, mass=0.0)
    shapes = [(branch.probability / mass, *_shape(branch)) for branch in branches]
    mean = math.fsum(share * centre for share, centre, _ in shapes)
    variance = math.fsum(share * (inner + (centre - mean) ** 2) for share, centre, inner in shapes)
    return RatingSpread(mean=mean, std=math.sqrt(variance), mass=min(mass, 1.0))


def spread_in_answer(tokens: Sequence[Token], text: str) -> RatingSpread | None:
    """Return the distribution at the rating of an answer's text, None where that cannot be found token by token.

    None as well for a rating that is not written as one within 1.00 .. 5.00 (`7`, `3.5/5`, `1e0`), and for tokens of
    another answer, with another rating than the text.
    """
    whole = b"".join(token.text for token in tokens)
    try:
        rating = read_rating(whole.decode(errors="replace"))
        if rating != read_rating(text):
            return None
    except AnswerError:
        return None
    for key in _RATING_KEY.finditer(whole, max(0, whole.find(b"<answer>"))):
        number = _NUMBER.match(whole, key.end())
        if number is not None and float(number[0]) == rating and grow("", f"{number[0].decode()},") is not None:
            return summarise_branches(_follow_from(tokens, number.start()))
    return None


def _follow_from(tokens: Sequence[Token], start: int) -> list[Branch]:
    """Return the branches of the number at this byte of the joined tokens."""
    begin = 0
    for index, token in enumerate(tokens):
        if begin + len(token.text) > start:
            return follow(tokens[index:], lead=token.text[: start - begin])
        begin += len(token.text)
    raise ValueError(f"byte {start} lies behind the last token")


def _shape(branch: Branch) -> tuple[float, float]:
    """Return (centre, variance) of the ratings that a branch may become."""
    if branch.is_done:
        return float(branch.text), 0.0
    low, count, high = _range(branch.text)
    return (low + high) / 2, (count**2 - 1) / 12 * 0.01**2  # uniform over `count` hundredths


def _range(text: str) -> tuple[float, int, float]:
    completions = _completions(text)
    return float(completions[0]), len(completions), float(completions[-1])


@lru_cache(maxsize=1024)
def _completions(text: str) -> tuple[str, ...]:
    return tuple(rating for rating in RATING_TEXTS if rating.startswith(text))
