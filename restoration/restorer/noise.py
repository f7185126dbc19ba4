"""Noise near another noise: every Gaussian draw of one candidate, moved towards the draws of other seeds.

A step of amount a turns the noise n into sqrt(1 - a^2) n + a e, with e from the step's own seed. Both parts are
standard normal and independent, so the result is standard normal as well, like the noise of a
seed. The correlation with n is sqrt(1 - a^2).

The calls of torch that draw Gaussian noise are intercepted, in this thread alone. So the noise of every sampling step
and every tile moves, in any pipeline, and the generators of the process keep their state. Noise that is drawn below
Python, or by numpy, does not move.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from restoration.restorer.rng import candidate_seed


@dataclass(frozen=True, kw_only=True)
class NoiseStep:
    """One move away from the noise so far."""

    seed: int
    """Of the noise that is mixed in; 0 or more."""
    amount: float
    """Share a of the new noise, above 0 up to 1; 1 keeps none of the noise so far."""

    def __post_init__(self) -> None:
        if self.seed < 0 or not 0 < self.amount <= 1:
            raise ValueError(
                f"seed={self.seed}, amount={self.amount}: seed must be at least 0, amount above 0 and at most 1"
            )


def mixing_weights(steps: Sequence[NoiseStep]) -> list[float]:
    """Return the weight of the first noise, then that of each step's noise. Their squares sum to 1.

    >>> mixing_weights([])
    [1.0]
    >>> [round(weight, 3) for weight in mixing_weights([NoiseStep(seed=1, amount=0.6), NoiseStep(seed=2, amount=0.6)])]
    [0.64, 0.48, 0.6]
    """
    weights = [1.0]
    for step in steps:
        kept = math.sqrt(1 - step.amount**2)
        weights = [weight * kept for weight in weights] + [step.amount]
    return weights


class MixedDraws(TorchFunctionMode):
    """What `mixed_draws` yields."""

    def __init__(self, steps: Sequence[NoiseStep]) -> None:
        super().__init__()
        self.steps, self.weights = list(steps), mixing_weights(steps)
        self.has_drawn = False
        """Whether any Gaussian noise was drawn, and so moved."""
        # By identity and seed; the generator itself is held, so that its identity is not given to another one.
        self._streams: dict[tuple[int, int], tuple[torch.Generator, list[torch.Generator]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _GAUSSIAN:
            return func(*args, **kwargs)
        self.has_drawn = True
        out = kwargs.pop("out", None)
        first = func(*args, **kwargs)
        others = []
        for generator in self._companions(kwargs.get("generator"), first.device):
            given = (torch.empty_like(args[0]), *args[1:]) if func is Tensor.normal_ else args
            others.append(func(*given, **kwargs | {"generator": generator}))
        mixed = self._mixed([first, *others], _mean(func, args, kwargs))
        if func is Tensor.normal_:
            return args[0].copy_(mixed)
        return mixed if out is None else out.resize_(mixed.shape).copy_(mixed)

    def _companions(self, generator: torch.Generator | None, device: torch.device) -> list[torch.Generator]:
        """Return one generator per step; each draw of this generator also draws from them."""
        if generator is None:  # the process's own, which `rng.isolated` has seeded
            is_cuda = device.type == "cuda"
            generator = torch.cuda.default_generators[device.index or 0] if is_cuda else torch.default_generator
        seed = generator.initial_seed()
        _, companions = self._streams.setdefault(
            (id(generator), seed),
            (generator, [torch.Generator(generator.device).manual_seed(candidate_seed(seed, step.seed))
                         for step in self.steps]),
        )  # fmt: skip
        return companions

    def _mixed(self, draws: list[Tensor], mean: Any) -> Tensor:
        dtype = torch.promote_types(draws[0].dtype, torch.float32)
        pairs = zip(self.weights, draws, strict=True)
        total = sum((weight * (draw.to(dtype) - mean) for weight, draw in pairs), torch.zeros((), dtype=dtype))
        return (total + mean).to(draws[0].dtype)


_GAUSSIAN = frozenset({torch.randn, torch.randn_like, torch.normal, Tensor.normal_})


def _mean(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the mean of a draw, a number or a tensor."""
    if func is torch.normal:
        return args[0] if args else kwargs["mean"]
    if func is Tensor.normal_:
        return args[1] if len(args) > 1 else kwargs.get("mean", 0.0)
    return 0.0


@contextmanager
def mixed_draws(steps: Sequence[NoiseStep]) -> Iterator[MixedDraws]:
    """Move every Gaussian draw inside by `steps`. The draws of a generator follow from its seed and the steps."""
    with MixedDraws(steps) as draws:
        yield draws
