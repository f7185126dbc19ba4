"""Drafts: the tokens that probably come next in an answer, taken from what earlier answers of the call went on with.

Answers of one protocol repeat headings and phrases. The model checks a whole draft in one pass, where writing takes one
pass per token, and only tokens that it would have written itself stay. So a draft changes how long an answer takes, and
not what it says.
Source: speculative decoding (Leviathan et al. 2023), with drafts looked up instead of written by a second model: from
the prompt in prompt lookup decoding (Saxena 2023), from other texts in REST (He et al. 2024).
"""

from collections.abc import Iterable, Sequence

DRAFT = 7
"""Tokens of a draft at most. With the token before them, a pass reads 8 per answer."""
CONTEXTS = (16, 8, 4, 2, 1)
"""Numbers of last tokens by which a draft is looked up, the longest first."""
MOST_CONTEXTS = 2**16
"""Contexts after which a second store begins. When that is full as well, the first one is dropped."""
LEAST_GAIN = 1.75
"""Tokens per answer and pass below which drafts do not pay: a pass that checks them costs up to this many steps."""
PAUSE = 4
"""Blocks of steps without drafts after that."""


class Drafts:
    """What answers went on with, by their last tokens. The newest answer counts."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], tuple[Sequence[int], int]] = {}
        self._older: dict[tuple[int, ...], tuple[Sequence[int], int]] = {}
        self._gain = 2 * LEAST_GAIN
        self._pause = 0

    def learn(self, answer: Sequence[int], start: int) -> None:
        """Take note of the tokens of an answer from `start` on. Later tokens of the same list count as well."""
        if len(self._next) > MOST_CONTEXTS:
            self._older, self._next = self._next, {}
        for index in range(max(start, 1), len(answer)):
            for length in CONTEXTS:
                if length <= index:
                    self._next[tuple(answer[index - length : index])] = (answer, index)

    def after(self, answers: Iterable[Sequence[int]]) -> list[list[int]] | None:
        """Return a draft for each answer, all equally long, or None where writing step by step is faster.

        It is where fewer than half of the answers have a draft, and while few tokens of earlier drafts were accepted.
        An answer without a draft, or with a short one, gets zeros, which are checked like any other token.
        """
        if self._pause:
            self._pause -= 1
            return None
        drafts = [self._draft(answer) for answer in answers]
        if 2 * sum(map(bool, drafts)) < len(drafts) or not any(drafts):
            return None
        longest = max(map(len, drafts))
        return [draft + [0] * (longest - len(draft)) for draft in drafts]

    def accepted(self, tokens: float) -> None:
        """Take note of how many tokens per answer the last pass gave."""
        self._gain = 0.7 * self._gain + 0.3 * tokens
        if self._gain < LEAST_GAIN:
            self._gain, self._pause = LEAST_GAIN, PAUSE

    def _draft(self, answer: Sequence[int]) -> list[int]:
        for length in CONTEXTS:
            if length <= len(answer):
                key = tuple(answer[len(answer) - length :])
                hit = self._next.get(key) or self._older.get(key)
                if hit is not None:
                    source, index = hit
                    return list(source[index : index + DRAFT])
        return []
