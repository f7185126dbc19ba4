"""Random draws that belong to their caller; the generators of the process keep their state.

`own_draws` is for code that draws from the process's generators. If such a generator were seeded and put back
afterwards, other threads that draw meanwhile would get wrong numbers. Instead, torch's functions that draw get a
generator of this scope, in this thread alone. A generator that the code passes itself is used as it is.
Not reached: Python's and numpy's generators, draws below Python (dropout in training mode, compiled code), and
`torch.manual_seed`, which reseeds the process.

Sampled answers have a generator per row. Transformers' `generate` samples all rows of a batch from the process's
generator, so an answer would depend on earlier draws, on other rows and on other threads. Here the noise of a row
follows from (seed, image, sample, round) alone. It is added to the logits, and the largest sum is taken greedily, which
is a draw from the softmax.
Source: the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014).
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import LogitsProcessor

from zoomiqa_reward.images.loading import hash_pixels


class OwnDraws(TorchFunctionMode):
    """What `own_draws` yields."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.has_drawn = False
        """Whether anything would have been drawn from a generator of the process."""
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None or any(isinstance(arg, torch.Generator) for arg in args):
            return func(*args, **kwargs)
        if func in _LIKE:
            return self._like(func, *args, **kwargs)
        if func in _DRAWING:
            if func in _MAKERS:
                device = torch.device(kwargs.get("device") or torch.get_default_device())
            else:
                tensors = (arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor))
                device = next((tensor.device for tensor in tensors), torch.device("cpu"))
            return func(*args, **kwargs | {"generator": self._generator(device)})
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        self.has_drawn = True
        if device.index is None and device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]

    def _like(self, func: Any, like: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`randn_like` and the like take a generator in some versions of torch only."""
        kept = {key: kwargs.pop(key) for key in list(kwargs) if key in ("low", "high")}
        empty = torch.empty_like(like, **kwargs)
        generator = self._generator(empty.device)
        if func is torch.randn_like:
            return empty.normal_(generator=generator)
        if func is torch.rand_like:
            return empty.uniform_(generator=generator)
        low, high = (0, *args) if len(args) == 1 else args or (kept.get("low", 0), kept["high"])
        return empty.random_(low, high, generator=generator)


_MAKERS = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm})
_LIKE = frozenset({torch.rand_like, torch.randn_like, torch.randint_like})
_DRAWING = _MAKERS | {
    torch.normal, torch.multinomial, torch.bernoulli, torch.poisson, Tensor.multinomial, Tensor.bernoulli,
    Tensor.normal_, Tensor.uniform_, Tensor.random_, Tensor.exponential_, Tensor.cauchy_, Tensor.geometric_,
    Tensor.log_normal_, Tensor.bernoulli_, torch.nn.init.normal_, torch.nn.init.uniform_, torch.nn.init.trunc_normal_,
    torch.nn.init.xavier_normal_, torch.nn.init.xavier_uniform_, torch.nn.init.kaiming_normal_,
    torch.nn.init.kaiming_uniform_, torch.nn.init.orthogonal_,
}  # fmt: skip


@contextmanager
def own_draws(seed: int) -> Iterator[OwnDraws]:
    """Draw inside from generators seeded by `seed`, one a device; on the CPU the numbers are those of
    `torch.manual_seed(seed)`.
    """
    with OwnDraws(seed) as draws:
        yield draws


SEED_BITS = 62
"""Of a row's seed: room for the rounds' steps below what torch and text servers take."""


def row_seed(*parts: int | str) -> int:
    """Return a seed that depends on all parts and their order, and on nothing else."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def sample_seeds(image: Tensor, num_samples: int, seed: int | None) -> list[int]:
    """Return the seeds of an image's answers: they follow from seed, pixels and sample, wherever the image stands.

    seed=None: from the process's generator, one draw per image.
    """
    if seed is None:
        base = int(torch.randint(2**SEED_BITS, (), device="cpu"))
        return [row_seed(base, sample) for sample in range(num_samples)]
    pixels = hash_pixels(image)
    return [row_seed(seed, pixels, sample) for sample in range(num_samples)]


class RowNoise(LogitsProcessor):  # type: ignore[misc] # transformers is not followed by the checker
    """Adds Gumbel noise to logits; the last of the processors, before the greedy choice.

    Drawn on the CPU, so that it is the same on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self.generators = [self.generators[row] for row in rows]

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:
        """Return float64 [rows, vocabulary]."""
        width = scores.shape[-1]
        drawn = torch.stack(
            [torch.rand(width, generator=generator, dtype=torch.float32) for generator in self.generators]
        )
        uniform = drawn.to(scores.device).double() + 2.0**-25  # middles of the 2^24 steps: never 0, never 1
        return scores.double() - uniform.log().neg().log()
