"""Pairs: the probability that one image is better than another, symmetric by construction.

From ratings: the difference of two means over the spread of the two distributions, divided by a temperature, is the
log-odds. So the preferred image is the one with the higher rating, and the probability says how sure that is. Images of
one size are read by the same views, so what the views have in common cancels in the difference. From a question: a
model whose protocol can compare (`Protocol.pair`) sees both images in one prompt; the log-odds are half the difference
of both orders, which cancels a preference for the first place.

p(a, b) + p(b, a) is 1 bit for bit, and p(a, a) is 0.5: the log-odds change their sign exactly, and the smaller
probability is 1 less the larger one, which has no rounding in [0.5, 1].
Source: Thurstone 1927 for the comparison of two distributions; Bradley and Terry 1952 for the logistic curve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.images.loading import ImageSources, load_images
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Scores

if TYPE_CHECKING:
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

TEMPERATURE = 0.12
"""Of `nano`, fitted by `benchmarks/pairs.py` on half of the scenes with people's scores. Below 1, because the two
spreads are mostly what both images have in common."""
QUESTION_TEMPERATURE = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """How sure a judge is that the first image of each pair is the better one."""

    probability: Tensor
    """[pairs] float64 in 0..1; NaN where not valid."""
    valid: Tensor
    """[pairs] bool; False: one of the two could not be measured."""
    errors: tuple[str | None, ...]
    """One entry per pair: why it was not compared, or None."""

    def __len__(self) -> int:
        return self.probability.shape[0]


def probability_of(log_odds: Tensor) -> Tensor:
    """Return float64 probabilities of log-odds [...], with p(x) + p(-x) = 1 bit for bit and p(0) = 0.5.

    >>> x = torch.tensor([0.3, -0.3, 0.0])
    >>> float(probability_of(x)[0] + probability_of(x)[1]), float(probability_of(x)[2])
    (1.0, 0.5)
    """
    odds = log_odds.double()
    larger = torch.sigmoid(odds.abs())
    return torch.where(odds >= 0, larger, 1 - larger).where(~odds.isnan(), odds)


def log_odds_of(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor, temperature: float) -> Tensor:
    """Return float64 log-odds that the first of each pair is better, from means and standard deviations [pairs]."""
    spread = (std.double().square() + other_std.double().square()).sqrt()
    return (mean.double() - other_mean.double()) / (spread * temperature)


def pair_probabilities(scores: Scores, temperature: float = TEMPERATURE) -> Tensor:
    """Return float64 [images, images] of one batch's scores: the probability that the row is better than the column.

    NaN where either was not measured. Raises ValueError for scores without standard deviation.
    """
    _require_spread(scores, temperature)
    mean, std = scores.value.detach(), scores.std.detach()
    return probability_of(log_odds_of(mean[:, None], std[:, None], mean[None], std[None], temperature))


def fit_temperature(log_odds: Sequence[float], is_first_better: Sequence[bool]) -> float:
    """Return the temperature that makes log-odds (at temperature 1) fit outcomes best: least negative log-likelihood.

    Search by golden section over 1e-3 .. 1e3. Raises ValueError for no pair or lists of different length.
    """
    if len(log_odds) != len(is_first_better) or not log_odds:
        raise ValueError(f"{len(log_odds)} log-odds and {len(is_first_better)} outcomes: give one each, at least one")
    signs = torch.tensor([1.0 if better else -1.0 for better in is_first_better], dtype=torch.float64)
    margins = torch.tensor(log_odds, dtype=torch.float64) * signs

    def loss(exponent: float) -> float:
        return float(torch.nn.functional.softplus(-margins / math.exp(exponent)).mean())

    low, high = math.log(1e-3), math.log(1e3)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(80):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, second) if loss(first) <= loss(second) else (first, high)
    return math.exp((low + high) / 2)


@canonical
def compare(
    iqa: "ZoomIQA", a: ImageSources, b: ImageSources, *, how: str = "ratings", temperature: float | None = None,
    question: str | None = None,
) -> Comparison:  # fmt: skip
    """Compare a[i] with b[i]; see `ZoomIQA.compare`."""
    if how not in ("ratings", "question"):
        raise ValueError(f"how={how!r}: must be 'ratings' or 'question'")
    firsts, seconds = load_images(a), load_images(b)
    if len(firsts) != len(seconds):
        raise ValueError(f"compare: {len(firsts)} images against {len(seconds)}; give one for each")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    if how == "question":
        if question is not None:
            raise ValueError("question=: how='question' asks the protocol's own pair question; leave one of them out")
        with torch.no_grad():
            scale = QUESTION_TEMPERATURE if temperature is None else temperature
            return _by_question(iqa.checkpoint, firsts, seconds, scale)
    ratings = iqa.rate([*firsts, *seconds], mode="direct", strict=True, question=question)
    scale = TEMPERATURE if temperature is None else temperature
    _require_spread(ratings, scale)
    count = len(firsts)
    mean, std = ratings.value, ratings.std
    log_odds = log_odds_of(mean[:count], std[:count], mean[count:], std[count:], scale)
    errors = tuple(_reason(ratings, index, count + index) for index in range(count))
    return _comparison(log_odds, errors)


def _reason(ratings: Scores, first: int, second: int) -> str | None:
    for side, index in (("a", first), ("b", second)):
        if not bool(ratings.valid[index]):
            return f"{side}: {ratings.reason(index, 'the model')}"
    return None


def _comparison(log_odds: Tensor, errors: tuple[str | None, ...]) -> Comparison:
    probability = probability_of(log_odds)
    return Comparison(probability=probability, valid=~probability.isnan(), errors=errors)


def _require_spread(scores: Scores, temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    if bool((scores.valid & ~(scores.std > 0)).any()):
        raise ValueError(
            "pair probabilities need a standard deviation above 0, and some scores have none: use a ZoomIQA in mode "
            "'direct'"
        )


def _by_question(checkpoint: Checkpoint, firsts: list[Tensor], seconds: list[Tensor], temperature: float) -> Comparison:
    from zoomiqa_reward.model.direct import MIN_MASS, answers_after, leaf_logprobs
    from zoomiqa_reward.model.gradients import refuse_dropout
    from zoomiqa_reward.model.inputs import make_row
    from zoomiqa_reward.model.turns import pair_turn

    pair = checkpoint.protocol.pair
    if pair is None:
        raise ValueError(
            f"how='question': protocol {checkpoint.protocol.name!r} has no pair question, so the model was not trained "
            "to see two images; use how='ratings', or a protocol with `pair`"
        )
    refuse_dropout(checkpoint.model)
    trie = answers_after(checkpoint, pair.prefix, {answer: float(k) for k, answer in enumerate(pair.answers)})
    odds: list[float] = []
    errors: list[str | None] = []
    for first, second in zip(firsts, seconds, strict=True):
        empty = [f"{side}: {why}" for side, image in (("a", first), ("b", second)) if (why := contentless(image))]
        if empty:
            odds.append(math.nan)
            errors.append(empty[0])
            continue
        # Each order in a pass of its own: company may change last bits, and equal images must give equal passes.
        orders = [
            leaf_logprobs(checkpoint, trie, [make_row(checkpoint, pair_turn(pair, *shown))])[0].double()
            for shown in ((first, second), (second, first))
        ]
        mass = min(float(torch.logsumexp(order, dim=0)) for order in orders)
        (forth, back) = (float(order[0] - order[1]) for order in orders)
        is_answer = mass >= math.log(MIN_MASS)
        odds.append((forth - back) / 2 / temperature if is_answer else math.nan)
        errors.append(None if is_answer else "the two answers hold less than half of the probability")
    return _comparison(torch.tensor(odds, dtype=torch.float64), tuple(errors))
