"""Randomness that belongs to one candidate: its seed, its generator; the process's generators stay as they are.

Diffusers pipelines take a generator, but draw from torch's own where it does not reach (DDIM's `eta` in the
latent-diffusion upscaler); `own_draws` gives them one of the candidate's, in this thread alone. Functions and networks
of others may also draw from Python's and numpy's generators, which belong to the whole process. `Apart` first runs
them without changing these generators. Only if a function draws from them are they seeded (`isolated`), for one
candidate at a time; other threads that draw meanwhile draw from the same generators.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.model.draws import own_draws

MOST_TWISTS = 100
"""About 30,000 draws of another thread while an image is made."""
SEED_END = 2**64
"""Torch's generators take no seed from here on."""
_GENERATORS = threading.RLock()
"""Held while the generators of the process are seeded for a candidate."""


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

    They are put back after an exception too. Two threads do this one after the other. What else draws from them in
    other threads meanwhile shares them: where a generator can be passed, pass one instead.
    """
    with _GENERATORS, _seeded(seed) as scope:
        yield scope


@contextmanager
def _seeded(seed: int) -> Iterator[Scope]:
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
    state = np.random.get_state()
    assert isinstance(state, tuple)
    kind, keys, *rest = state
    cuda = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes(), *cuda


def _put_back(states: tuple[Any, ...]) -> None:
    python, (kind, keys, *rest), *torch_states = states
    random.setstate(python)
    np.random.set_state((kind, np.frombuffer(keys, dtype=np.uint32), *rest))
    tensors = [torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in torch_states]
    torch.set_rng_state(tensors[0])
    if len(tensors) > 1:
        torch.cuda.set_rng_state_all(tensors[1:])


def _by_drawing(before: Any, after: Any, index: int) -> bool:
    """Return whether drawing leads from one state of a generator to the other. index: its place in `_states`.

    Python's and numpy's are Mersenne Twisters, whose 624 words change every 624 draws and then follow from those
    before. Torch's states begin with the seed, which drawing leaves alone; seeding with the same one again is not told.
    """
    if index > 1:
        return bool(before[:8] == after[:8])
    key, goal = (
        np.array(state[1][:624], dtype=np.uint32) if index == 0 else np.frombuffer(state[1], dtype=np.uint32)
        for state in (before, after)
    )
    twister = np.random.MT19937()
    for _ in range(MOST_TWISTS + 1):
        if np.array_equal(key, goal):
            return True
        twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
        twister.random_raw()
        key = twister.state["state"]["key"]
    return False


class DrewAnyway(ZoomIQAError):
    """What must not draw has drawn from a generator of the process."""


class Apart:
    """Runs what may draw from any generator of the process: its images follow from its seed alone."""

    def __init__(self, *, refuse: bool) -> None:
        """refuse: raise DrewAnyway where it draws."""
        self._refuse = refuse
        self._is_drawing = False
        """Whether it has been seen to draw from generators that only the process has."""

    def __call__(self, run: Callable[[], list[Tensor]], seed: int) -> list[Tensor]:
        """Return what `run` makes. It is run again where a generator of the process has moved meanwhile.

        Was it this, or another thread? In a process of one thread it was this. Else it was this if it makes another
        image the second time, or leaves a generator at the same place again, which drawing does not lead to: it seeds.
        """
        if self._is_drawing:
            with isolated(seed):
                return run()
        before = _states()
        try:
            with own_draws(seed) as draws:
                images = run()
        except BaseException:
            if threading.active_count() == 1:
                _put_back(before)
            raise
        after = _states()
        if after == before and not (self._refuse and draws.has_drawn):
            return images
        if after != before and threading.active_count() > 1 and not (self._refuse and draws.has_drawn):
            with own_draws(seed):
                again = run()
            parts = list(zip(_states(), after, before, strict=True))
            is_seeding = any(a == b != c and not _by_drawing(c, b, index) for index, (a, b, c) in enumerate(parts))
            if not is_seeding and len(again) == len(images) and all(map(torch.equal, again, images)):
                return images
        if after != before:
            _put_back(before)
        if self._refuse:
            raise DrewAnyway
        self._is_drawing = True
        with isolated(seed):
            return run()
