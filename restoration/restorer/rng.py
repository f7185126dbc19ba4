"""Randomness that belongs to one candidate: its seed, its generator, and global generators that are put back.

Half of the published restorers draw from the global generators of python, numpy and torch, and diffusers' own
schedulers do where no generator reaches them (DDIM's `eta` in the latent-diffusion upscaler). So a candidate's
picture depends on what ran before it, unless every global generator is set for it and restored afterwards.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


def candidate_seed(seed: int, index: int) -> int:
    """Return the seed of part `index` of `seed`: 53 bits, so that JSON readers keep it exact.

    Used for candidate k of a run and for tile t of a candidate. Depends on nothing but the two numbers, and seeds
    that lie side by side give unrelated ones (numpy's SeedSequence: O'Neill's seed_seq, by spawn key).
    Raises ValueError for a negative number.

    >>> candidate_seed(0, 1) == candidate_seed(0, 1), candidate_seed(0, 1) == candidate_seed(1, 0)
    (True, False)
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed={seed}, index={index}: both must be 0 or more")
    high, low = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(2, np.uint32)
    return (int(high) << 21) | (int(low) >> 11)


def candidate_generator(seed: int) -> torch.Generator:
    """Return a torch generator on the CPU, so that the noise is the same on every device.

    diffusers draws on the generator's device and moves the result.
    """
    return torch.Generator("cpu").manual_seed(seed)


@dataclass
class Scope:
    """What happened to the global generators inside `isolated`."""

    start: tuple[Any, ...] = field(default=(), repr=False)

    def has_drawn(self) -> bool:
        """Return whether anything was drawn from a global generator so far; ask inside the scope."""
        return _states() != self.start


@contextmanager
def isolated(seed: int) -> Iterator[Scope]:
    """Set every global generator (python, numpy, torch on CPU, CUDA and MPS) from `seed`, and put them back at the end.

    They are put back after an exception too. What runs in other threads meanwhile shares them.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(seed)
            np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
            _seed_torch(seed, devices, mps=mps_state is not None)
            yield Scope(_states())
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)


def _seed_torch(seed: int, devices: list[int], *, mps: bool) -> None:
    # Not torch.manual_seed: without an initialised CUDA it leaves a seeding behind that runs after the scope.
    torch.default_generator.manual_seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)
    if mps:
        torch.mps.manual_seed(seed)


def _states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    cuda = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes(), *cuda
