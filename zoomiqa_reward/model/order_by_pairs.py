"""An order from pair probabilities, with as few questions as possible and how sure each step of it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor


@dataclass(kw_only=True)
class PairJudge:
    """The probability that one image is better than another, from ratings or from a question."""

    by_rating: Tensor
    """[images, images]: from the ratings, without another call of the model."""
    question: Callable[[int, int], float] | None = None
    """From the model, which reads both images; NaN without an answer. None: the model cannot compare."""
    asked: dict[tuple[int, int], float] = field(default_factory=dict)
    """Answers so far, each pair once."""

    def probability(self, first: int, second: int, confidence: float) -> float:
        """Return the probability that `first` is better. The model is asked only where the ratings are unsure."""
        rated = float(self.by_rating[first, second])
        if self.question is None or max(rated, 1 - rated) >= confidence:
            return rated
        if (second, first) in self.asked:
            return 1 - self.asked[second, first]
        if (first, second) not in self.asked:
            answer = self.question(first, second)
            self.asked[first, second] = rated if answer != answer else answer
        return self.asked[first, second]


@dataclass(frozen=True, kw_only=True)
class SureOrder:
    """Images best first, and how sure each step is."""

    order: tuple[int, ...]
    sureness: tuple[float, ...]
    """Probability that each image is better than the next one."""
    ties: tuple[tuple[int, ...], ...]
    """Groups of neighbours of which none is better than the next with the wanted confidence."""
    questions: int


def order_by_pairs(judge: PairJudge, start: Sequence[int], confidence: float) -> SureOrder:
    """Return the order by insertion into `start`, which is best first by rating.

    An image moves up while it is more probably better than the one above it. So neighbours have always been compared,
    and an order that is right from the start needs one comparison per neighbour, of which the sure ones are free.
    """
    order = list(start)
    for start_at in range(1, len(order)):
        at = start_at
        while at > 0 and judge.probability(order[at], order[at - 1], confidence) > 0.5:
            order[at - 1], order[at] = order[at], order[at - 1]
            at -= 1
    sureness = tuple(judge.probability(better, worse, confidence) for better, worse in pairwise(order))
    groups: list[list[int]] = [[index] for index in order[:1]]
    for index, probability in zip(order[1:], sureness, strict=True):
        if probability >= confidence:
            groups.append([index])
        else:
            groups[-1].append(index)
    return SureOrder(
        order=tuple(order), sureness=sureness, ties=tuple(tuple(group) for group in groups if len(group) > 1),
        questions=len(judge.asked),
    )  # fmt: skip
