"""What a trajectory earns: form, closeness to the opinion score, and the right order among the step's images.

The policy itself writes the answers, so an unreadable one is its own fault and earns 0 on every reward. (Everywhere
else in this project a failed measurement is NaN.) It is never replaced by a number, and leaves the statistics of its
image alone.
Sources: threshold from Q-Insight, rank from VisualQuality-R1; Zoom-IQA's own forms are not public.
"""

import math
import re
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.turns import Turn
from zoomiqa_reward.protocol import AnswerError, Protocol, read_route, usable_box

RANK_EPS = 1e-6
_INSIDE = r"(?:(?!</?(?:think|answer)>).)*"
_FORM = re.compile(rf"\s*<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Weights of the rewards, each of which lies in 0..1; the total is their weighted sum."""

    format: float = 1.0
    """1 if every turn has the protocol's form."""
    gaussian: float = 1.0
    """exp(-(rating - mos)^2 / (2 sigma^2))."""
    threshold: float = 0.0
    """1 if |rating - mos| < `max_error`; the other form of the score reward."""
    rank: float = 1.0
    """Fidelity of the order among the images of the step."""
    sigma: float = 0.35
    """Of `gaussian`, in ratings."""
    max_error: float = 0.35
    """Of `threshold`, in ratings."""

    def __post_init__(self) -> None:
        weights = [self.format, self.gaussian, self.threshold, self.rank]
        if min(weights) < 0 or sum(weights) == 0:
            raise ValueError(f"reward weights {weights}: must be at least 0, and not all 0")
        if self.sigma <= 0 or self.max_error <= 0:
            raise ValueError(f"sigma={self.sigma}, max_error={self.max_error}: must be above 0")


def format_reward(protocol: Protocol, assessment: Assessment) -> float:
    """Return 1.0 if every turn is well formed, else 0.0.

    Well formed: `<think>` and `<answer>` and nothing else, all sections of its round, a rating in 1..5, and a box that
    agrees with the tool: `crop` with a box inside the image (round 1 only), `final` with four zeros.
    """
    labels = (protocol.sections1, protocol.sections2)
    return float(all(_is_well_formed(turn, labels[k], may_zoom=k == 0) for k, turn in enumerate(assessment.turns)))


def _is_well_formed(turn: Turn, labels: tuple[str, ...], *, may_zoom: bool) -> bool:
    if _FORM.fullmatch(turn.text) is None or set(labels) - set(turn.sections) or not 1 <= turn.rating <= 5:
        return False
    try:
        sides = read_route(turn.text).bbox
    except AnswerError:
        return False
    if turn.tool == "final":
        return isinstance(sides, list) and len(sides) == 4 and all(side == 0 for side in sides)
    box = usable_box(sides)
    if turn.tool != "crop" or not may_zoom or box is None:
        return False
    left, top, right, bottom = box  # as it stands in the answer
    return 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def threshold_reward(ratings: Tensor, mos: Tensor, max_error: float = 0.35) -> Tensor:
    """Return 1 where |rating - mos| < max_error, else 0; 0 for NaN. ratings [images, samples], mos [images]."""
    return ((ratings - mos[:, None]).abs() < max_error).to(ratings.dtype)


def gaussian_reward(ratings: Tensor, mos: Tensor, sigma: float = 0.35) -> Tensor:
    """Return exp(-(rating - mos)^2 / (2 sigma^2)); 0 for NaN. ratings [images, samples], mos [images]."""
    return torch.exp(-((ratings - mos[:, None]) ** 2) / (2 * sigma**2)).nan_to_num(nan=0.0)


def rank_reward(ratings: Tensor, mos: Tensor) -> Tensor:
    """Return [images, samples] in 0..1: how well each sample orders its image among the others of the cohort.

    p = Phi((rating - mu_j) / sqrt(v_i + v_j + eps)) against the mean mu_j and unbiased variance v_j of image j's
    readable ratings, g = 1, 0.5 or 0 by the order of the MOS; the reward is the mean over j of
    sqrt(p g + eps) + sqrt((1 - p) (1 - g) + eps), which eps may not raise above 1. All images must be of one data set:
    MOS of two are not comparable.
    An image with fewer than 2 readable ratings leaves the others' cohort; its own readable sample has v_i = 0. A
    sample without anything to be compared with, or unreadable, earns 0.
    Source: VisualQuality-R1 (fidelity of a Thurstone comparison), with eps inside both roots.
    """
    ratings, mos = ratings.double(), mos.double()
    readable = ~ratings.isnan()
    count = readable.sum(dim=1)
    values = ratings.nan_to_num(nan=0.0)
    mean = values.sum(dim=1) / count.clamp(min=1)
    squares = torch.where(readable, (values - mean[:, None]) ** 2, 0.0).sum(dim=1)
    variance = torch.where(count >= 2, squares / (count - 1).clamp(min=1), 0.0)
    compared = (count >= 2)[None, :] & ~torch.eye(len(mos), dtype=torch.bool, device=mos.device)  # [image i, image j]
    spread = (variance[:, None] + variance[None, :] + RANK_EPS).sqrt()
    z = (values[:, :, None] - mean[None, None, :]) / spread[:, None, :]  # [image i, sample, image j]
    p = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    difference = mos[:, None] - mos[None, :]
    truth = ((difference.sign() + 1) / 2)[:, None, :]
    fidelity = ((p * truth + RANK_EPS).sqrt() + ((1 - p) * (1 - truth) + RANK_EPS).sqrt()).clamp(max=1)
    fidelity = torch.where(compared[:, None, :], fidelity, 0.0).sum(dim=2)
    mean_fidelity = fidelity / compared.sum(dim=1).clamp(min=1)[:, None]
    return torch.where(readable, mean_fidelity, 0.0).float()


def all_rewards(ratings: Tensor, forms: Tensor, mos: Tensor, config: RewardConfig) -> dict[str, Tensor]:
    """Return each reward by name, unweighted, and the weighted sum as `total`; all float32 [images, samples].

    `ratings` holds NaN where unreadable, `forms` what `format_reward` gave.
    """
    readable = ~ratings.isnan()
    parts = {
        "format": torch.where(readable, forms, 0.0),
        "gaussian": gaussian_reward(ratings, mos, config.sigma),
        "threshold": threshold_reward(ratings, mos, config.max_error),
        "rank": rank_reward(ratings, mos),
    }
    weights = {field.name: getattr(config, field.name) for field in fields(config) if field.name in parts}
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum(dim=0)
    return {**parts, "total": total}
