"""Pools: candidates of one low-quality image beside one another, so that the model learns their order by the truth.

Best-of-N chooses among restorations that differ little. A rehearsed crop says how good an image is on the whole scale,
where such differences are lost. Here all candidates of an image are read at once, and their order alone is learned.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train_iqa.nano.dense import reorient
from train_iqa.nano.drawing import DegradedImage
from train_iqa.nano.labels import LabelScale, reference_scores
from train_iqa.nano.language import pair_loss
from train_iqa.nano.store import LEAST_CANDIDATES, read_groups
from train_iqa.nano.synthetic import as_batch

SPREAD = 3.0
"""Times that a difference of pseudo-MOS within a pool is asked for: differences are small, and their order counts."""


def read_pools(folder: Path) -> list[list[DegradedImage]]:
    """Return the groups of at least `LEAST_CANDIDATES` restorations in a folder, and their references.

    Raises ValueError as `read_groups` does.
    """
    return [group for group in read_groups(folder) if len(group) >= LEAST_CANDIDATES]


class Pools:
    """Pools with the pseudo-MOS of their candidates."""

    def __init__(self, pools: Sequence[Sequence[DegradedImage]], scale: LabelScale, device: torch.device) -> None:
        self.images: list[Tensor] = []
        """Of each pool: uint8 (candidates, 3, H, W)."""
        self.labels: list[Tensor] = []
        for pool in pools:
            images = as_batch([candidate.image for candidate in pool], device)
            references = as_batch([candidate.reference for candidate in pool], device)
            scores = reference_scores(images, references).double().cpu().numpy()
            self.images.append((images * 255).round().to(torch.uint8))
            self.labels.append(torch.from_numpy(scale.pseudo_mos(scores)).float().to(device))

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return up to `count` candidates of one pool (B, 3, H, W) in [0, 1], turned alike, and their labels (B,)."""
        number = int(rng.integers(len(self)))
        images, labels = self.images[number], self.labels[number]
        chosen = torch.from_numpy(rng.permutation(len(images))[:count]).to(images.device)
        turned = reorient(images[chosen].float() / 255, int(rng.integers(8)), (2, 3))
        return turned.contiguous(), labels[chosen]


def pool_loss(means: Tensor, labels: Tensor) -> Tensor:
    """Return the pairs' loss of the ratings (B,) of one pool, whose labels (B,) are spread `SPREAD` times.

    >>> float(pool_loss(torch.tensor([2.0, 2.3]), torch.tensor([3.1, 3.2]))) < 1e-6
    True
    """
    return pair_loss(means, SPREAD * labels)
