"""Sampling that belongs to one answer: each row draws from a generator of its own, and nothing else is touched.

Transformers' `generate` samples all rows of a batch from the process's generator, so an answer would depend on what was
drawn before, on the rows beside it and on other threads. Here the noise of a row follows from (seed, image, sample,
round) alone: it is added to the logits, and the largest sum is taken, greedily. That is a draw from the softmax.
Source: the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from zoomiqa_reward.images.pixel_hash import hash_pixels

SEED_BITS = 62
"""Of a row's seed: room for the rounds' steps below what torch and text servers take."""


def row_seed(*parts: int | str) -> int:
    """Return a seed that depends on all parts and their order, and on nothing else."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def sample_seeds(image: Tensor, num_samples: int, seed: int | None) -> list[int]:
    """Return the seeds of an image's answers: they follow from seed, pixels and sample, wherever the image stands.

    seed=None: from the process's generator, one draw an image.
    """
    if seed is None:
        base = int(torch.randint(2**SEED_BITS, (), device="cpu"))
        return [row_seed(base, sample) for sample in range(num_samples)]
    pixels = hash_pixels(image)
    return [row_seed(seed, pixels, sample) for sample in range(num_samples)]


class RowNoise(LogitsProcessor):
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
        drawn = torch.stack([torch.rand(width, generator=one, dtype=torch.float32) for one in self.generators])
        uniform = drawn.to(scores.device).double() + 2.0**-25  # middles of the 2^24 steps: never 0, never 1
        return scores.double() - uniform.log().neg().log()
