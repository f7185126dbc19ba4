"""KL-Coverage: which tokens are held to the reference policy, and the covariance that chooses them.

The KL acts only on tokens that are both likely and good: log-probability and advantage above their means. There the
covariance of the two is what drives entropy down (Cui et al. 2025, KL-Cov), and there Zoom-IQA's figure puts its mask.
Log-probabilities are skewed to the left, so the largest covariances of **all** tokens are almost only improbable
tokens of bad trajectories; that variant is kept as `quadrant="all"`.

With the default share and beta, which are KL-Cov's, the mask takes tokens that are nearly certain, and their KL stays 0
(`benchmarks/rl.py`, docs/train.md). There a share of 1 and a beta of 10 kept diversity. Watch `held_kl` in the log.

All masks are made over every token of the generation batch, all rows, turns and processes at once, from detached
values: in a micro-batch the share of 0.002 would pick one token.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

QUADRANTS = ("high", "all")
CLIP_COV_SHARE = 2e-4
CLIP_COV_RANGE = (1.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class KlConfig:
    """How the policy is held to another one."""

    kind: str = "coverage"
    """`coverage`: on the tokens of the mask; `all`: on every token (usual beta 0.04); `none`."""
    beta: float = 1.0
    """Weight of the KL on its tokens."""
    share: float = 2e-3
    """Of the generation batch's tokens, at most; at least one token is meant."""
    quadrant: str = "high"
    """`high`: likely and good tokens only; `all`: plain KL-Cov."""
    reference: str = "initial"
    """`initial`: the policy before RL, by the k3 estimate; `old`: the one that sampled, by |difference| of the
    log-probabilities as in the KL-Cov code, which has no gradient on a step that is strictly on-policy."""
    clip_cov: bool = False
    """Also drop the gradient of a few random tokens of large covariance (Clip-Cov); usually with kind `none`."""

    def __post_init__(self) -> None:
        if self.kind not in ("coverage", "all", "none"):
            raise ValueError(f"kind {self.kind!r} of KL: must be coverage, all or none")
        if self.quadrant not in QUADRANTS or self.reference not in ("initial", "old"):
            raise ValueError(
                f"quadrant {self.quadrant!r} must be high or all, reference {self.reference!r} initial or old"
            )
        if self.beta < 0 or not 0 < self.share <= 1:
            raise ValueError(f"beta={self.beta} must be at least 0, share={self.share} in (0, 1]")

    @property
    def needs_initial(self) -> bool:
        """Whether log-probabilities of the initial policy are asked for."""
        return self.kind != "none" and self.reference == "initial" and self.beta > 0


def covariance(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Return [tokens] (logp - mean logp)(A - mean A), detached.

    >>> covariance(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    logprobs, advantages = logprobs.detach(), advantages.detach()
    return (logprobs - logprobs.mean()) * (advantages - advantages.mean())


def coverage_mask(logprobs: Tensor, advantages: Tensor, *, share: float, quadrant: str = "high") -> Tensor:
    """Return bool [tokens]: the min(candidates, max(1, floor(share x tokens))) candidates of largest covariance.

    Candidates are the tokens above both means (`high`; there may be none) or all tokens (`all`). Of equal covariances
    the earlier token goes first. Raises ValueError without tokens.

    >>> coverage_mask(torch.tensor([-0.1, -0.2, -4.0, -5.0]), torch.tensor([1.0, 1.0, -1.0, 1.0]), share=0.5).tolist()
    [True, True, False, False]
    """
    if logprobs.ndim != 1 or logprobs.shape != advantages.shape or not len(logprobs):
        raise ValueError(f"log-probabilities {tuple(logprobs.shape)} and advantages {tuple(advantages.shape)}: "
                         f"two equal lists of tokens are needed")  # fmt: skip
    covariances = covariance(logprobs, advantages)
    candidates = torch.ones_like(covariances, dtype=torch.bool)
    if quadrant == "high":
        candidates = _above(logprobs) & _above(advantages)
    count = min(int(candidates.sum()), max(1, math.floor(share * len(covariances))))
    ranked = torch.sort(torch.where(candidates, covariances, -torch.inf), descending=True, stable=True).indices
    mask = torch.zeros_like(candidates)
    mask[ranked[:count]] = True
    return mask


def clip_cov_mask(logprobs: Tensor, advantages: Tensor, generator: torch.Generator) -> Tensor:
    """Return bool [tokens]: at most max(1, floor(2e-4 x tokens)) random tokens with 1 < covariance < 5.

    The generator lives on the CPU; the same one on all processes gives the same tokens.
    """
    covariances = covariance(logprobs, advantages)
    low, high = CLIP_COV_RANGE
    candidates = ((covariances > low) & (covariances < high)).nonzero()[:, 0]
    count = max(1, math.floor(CLIP_COV_SHARE * len(covariances)))
    picked = torch.randperm(len(candidates), generator=generator)[:count].to(candidates.device)
    mask = torch.zeros_like(covariances, dtype=torch.bool)
    mask[candidates[picked]] = True
    return mask


def quadrant_counts(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> dict[str, int]:
    """Return how many tokens of the mask lie in each quadrant: likely or unlikely, good or bad; at the mean is low."""
    likely, good = _above(logprobs), _above(advantages)
    return {
        "likely_good": int((mask & likely & good).sum()),
        "likely_bad": int((mask & likely & ~good).sum()),
        "unlikely_good": int((mask & ~likely & good).sum()),
        "unlikely_bad": int((mask & ~likely & ~good).sum()),
    }


def _above(values: Tensor) -> Tensor:
    """Return where the values lie above their mean; nowhere if they are all equal, whose mean may be off by an ulp."""
    if bool((values == values[0]).all()):
        return torch.zeros_like(values, dtype=torch.bool)
    return values > values.mean()
