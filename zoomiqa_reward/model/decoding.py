"""How answers are sampled, and what several of them say together."""

import math

from zoomiqa_reward.model.generate import Sampling
from zoomiqa_reward.protocol.spec import Protocol

MODES = ("direct", "reason")


def require_mode(mode: str, num_samples: int = 1) -> None:
    """Raise ValueError for an unknown mode, and for several samples in a mode that draws none."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    if mode != "reason" and num_samples != 1:
        raise ValueError(f"num_samples={num_samples} needs mode='reason'; {mode!r} does not sample")


def sampling_of(protocol: Protocol, temperature: float, seed: int | None, max_new_tokens: int | None) -> Sampling:
    """Return the protocol's decoding at this temperature, with its own limit of tokens unless one is given."""
    decoding = protocol.decoding
    return Sampling(
        temperature=temperature, top_p=decoding.top_p, top_k=decoding.top_k, seed=seed,
        max_new_tokens=decoding.max_new_tokens if max_new_tokens is None else max_new_tokens,
    )  # fmt: skip


def samples_temperature(protocol: Protocol, num_samples: int, temperature: float | None) -> float:
    """Return the temperature of `num_samples` answers where None leaves it to the protocol (1 if that is greedy).

    Raises ValueError for less than one, and for several greedy ones.
    """
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
