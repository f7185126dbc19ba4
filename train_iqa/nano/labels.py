"""Labels of degraded images: the pseudo-MOS, and the energy of each frequency band per token.

The pseudo-MOS is an ensemble of training-free full-reference metrics. HaarPSI, MDSI and VSI (library piq) each agree
with people at about 0.88 SRCC on KADID-10k. Each metric is mapped to its rank within a fixed synthetic population
(`LabelScale`), the ranks are averaged, and 0..1 becomes 1..5. FSIM, VIF, PSNR-Y and SSIM-Y are never used here, because
they judge later.

The energies are how much detail of each frequency a token holds: in the image, in its clean reference, and in their
difference. Log energies are targets with little noise. From one quality number per token a small tower needs thousands
of steps to learn that noise and sharpness are energies over four decades; with the energies as targets it needs
hundreds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import piq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from zoomiqa_reward.images.filters import gaussian_blur, luma
from zoomiqa_reward.runs.json_lines import write_json

LABEL_METRICS = ("haarpsi", "mdsi", "vsi")
_ORIENTATION = {"haarpsi": 1.0, "mdsi": -1.0, "vsi": 1.0}  # MDSI falls with quality
WINDOW_PX = 56
TOKEN_PX = 28
MAX_WINDOWS = 8192
"""Windows scored in one call: this bounds memory."""


@torch.no_grad()
def reference_scores(image: Tensor, reference: Tensor) -> Tensor:
    """Return oriented (higher is better) scores [batch, 3] of BCHW images in [0, 1], in `LABEL_METRICS`' order."""
    columns = [
        _ORIENTATION[name] * getattr(piq, name)(image, reference, data_range=1.0, reduction="none")
        for name in LABEL_METRICS
    ]
    return torch.stack([column.reshape(-1) for column in columns], dim=1).clamp(-10, 10)


@torch.no_grad()
def local_haarpsi(images: Tensor, references: Tensor) -> Tensor:
    """Return HaarPSI of every 28 px token of BCHW images in [0, 1], shape (B, H // 28, W // 28), on their device.

    The library scores 56 px windows 28 px apart; a token takes the mean of the windows that cover it.
    """

    def windows(x: Tensor) -> Tensor:
        return x.unfold(2, WINDOW_PX, TOKEN_PX).unfold(3, WINDOW_PX, TOKEN_PX)

    pieces = windows(images)
    batch, _, rows, columns = pieces.shape[:4]
    flat = [
        w.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, WINDOW_PX, WINDOW_PX).split(MAX_WINDOWS)
        for w in (pieces, windows(references))
    ]
    parts = [piq.haarpsi(a, b, data_range=1.0, reduction="none").reshape(-1) for a, b in zip(*flat, strict=True)]
    scores = torch.cat(parts).reshape(batch, rows, columns)
    total = scores.new_zeros(batch, rows + 1, columns + 1)
    count = torch.zeros_like(total)
    for dy in (0, 1):
        for dx in (0, 1):
            total[:, dy : dy + rows, dx : dx + columns] += scores
            count[:, dy : dy + rows, dx : dx + columns] += 1
    return total / count


@dataclass(frozen=True, kw_only=True)
class LabelScale:
    """Rank of each metric's score within a fixed population, by linear interpolation between quantile knots."""

    knots: dict[str, tuple[float, ...]]
    """Metric -> ascending oriented scores at evenly spaced quantiles 0..1."""

    @classmethod
    def fit(cls, scores: NDArray[np.float64], num_knots: int = 65) -> "LabelScale":
        """Return the scale of a population; `scores` is (images, 3) as `reference_scores` gives them."""
        quantiles = np.quantile(scores, np.linspace(0, 1, num_knots), axis=0)
        return cls(knots={name: tuple(map(float, quantiles[:, k])) for k, name in enumerate(LABEL_METRICS)})

    def rank(self, metric: str, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return 0..1 for oriented scores of one metric; outside the population it stays at the ends."""
        knots = np.asarray(self.knots[metric])
        return np.interp(scores, knots, np.linspace(0, 1, len(knots)))

    def pseudo_mos(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return pseudo-MOS 1..5 of (images, 3) oriented scores."""
        ranks = [self.rank(name, scores[:, k]) for k, name in enumerate(LABEL_METRICS)]
        return 1 + 4 * np.mean(ranks, axis=0)

    def save(self, path: Path) -> None:
        """Write the knots as JSON, in one step."""
        write_json(path, {"metrics": list(LABEL_METRICS), "knots": self.knots}, indent=1)

    @classmethod
    def load(cls, path: Path) -> "LabelScale":
        """Read what `save` wrote."""
        data = json.loads(path.read_text())
        return cls(knots={name: tuple(values) for name, values in data["knots"].items()})


def pseudo_mos(images: Sequence[Tensor], references: Sequence[Tensor], scale: LabelScale) -> NDArray[np.float64]:
    """Return pseudo-MOS 1..5 of CHW images in [0, 1] against their references of the same size."""
    rows = [reference_scores(i[None], r[None])[0].numpy() for i, r in zip(images, references, strict=True)]
    return scale.pseudo_mos(np.stack(rows).astype(np.float64))


SIGMAS_PX = (0.6, 1.2, 2.4, 4.8)
NUM_BANDS = len(SIGMAS_PX) + 1
"""Three bands of brightness between neighbouring sigmas, the finest above the first, and fine colour."""
FLOOR = 1e-6
"""Mean square below which there is nothing to see: a quarter of an 8-bit step."""


def _blurred(x: Tensor, sigma_px: float) -> Tensor:
    return gaussian_blur(x, sigma_px, radius_px=int(4 * sigma_px + 0.5), edges="reflect")


def band_energies(images: Tensor) -> Tensor:
    """Return log10 of the mean square of each band in each 28 px token: (B, rows, columns, NUM_BANDS), for BCHW."""
    grey = luma(images)
    chroma = images - grey
    levels = [grey, *(_blurred(grey, sigma) for sigma in SIGMAS_PX)]
    squares = [(fine - coarse).square() for fine, coarse in pairwise(levels)]
    squares.append((chroma - _blurred(chroma, SIGMAS_PX[1])).square().mean(1, keepdim=True))
    return torch.log10(avg_pool2d(torch.cat(squares, 1), TOKEN_PX) + FLOOR).permute(0, 2, 3, 1)


def band_targets(images: Tensor, references: Tensor) -> Tensor:
    """Return (B, rows, columns, 3 * NUM_BANDS): energies of the image, of its reference, and of their difference."""
    return torch.cat([band_energies(x) for x in (images, references, images - references)], dim=-1)
