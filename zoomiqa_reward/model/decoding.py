"""How answers are sampled, and what several of them say together."""

import math

from zoomiqa_reward.model.generate import Sampling
from zoomiqa_reward.protocol.spec import Protocol
from zoomiqa_reward.whole_numbers import whole_numbers

MODES = ("direct", "reason")


def require_mode(mode: str, num_samples: int = 1) -> None:
    """Raise ValueError for an unknown mode, and for several samples in a mode without them; TypeError: not whole."""
    (num_samples,) = whole_numbers(num_samples=num_samples)
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    if mode != "reason" and num_samples != 1:
        raise ValueError(f"num_samples={num_samples} needs mode='reason'; {mode!r} does not sample")


def sampling_of(protocol: Protocol, temperature: float, seed: int | None, max_new_tokens: int | None) -> Sampling:
    """Return the protocol's decoding at this temperature, with its own limit of tokens unless one is given.

    Raises TypeError for a seed or a limit that is not whole, ValueError for one out of range.
    """
    decoding = protocol.decoding
    tokens = decoding.max_new_tokens if max_new_tokens is None else max_new_tokens
    (tokens,) = whole_numbers(max_new_tokens=tokens)
    if seed is not None:
        (seed,) = whole_numbers(seed=seed)
    return Sampling(
        temperature=temperature, top_p=decoding.top_p, top_k=decoding.top_k, seed=seed, max_new_tokens=tokens
    )


def samples_temperature(protocol: Protocol, num_samples: int, temperature: float | None) -> float:
    """Return the temperature of `num_samples` answers where None leaves it to the protocol (1 if that is greedy).

    Raises ValueError for less than one, and for several greedy ones; TypeError for a number that is not whole.
    """
    (num_samples,) = whole_numbers(num_samples=num_samples)
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: must be at least 1")
    if temperature is None:
        temperature = 0.0 if num_samples == 1 else protocol.decoding.temperature or 1.0
    if num_samples > 1 and temperature == 0:
        raise ValueError(f"num_samples={num_samples} at temperature 0 would be copies of one answer; raise temperature")
    return temperature


def mean_and_std(ratings: list[float], num_samples: int) -> tuple[float, float]:
    """Return mean and unbiased standard deviation; NaN where no more than half of the samples gave a rating."""
    if 2 * len(ratings) <= num_samples:
        return math.nan, math.nan
    mean = sum(ratings) / len(ratings)
    if len(ratings) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((rating - mean) ** 2 for rating in ratings) / (len(ratings) - 1))
