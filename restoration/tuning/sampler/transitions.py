"""One function takes a sampling step and scores it: without `sample` it draws, with it it re-scores that very step.

So the log-probability of an update is computed by the code that drew the sample, and before any update the ratio of the
two is 1. Everything is float32, and log-probabilities are **means** over a row's elements: a sum would grow with the
picture, and a clip range with it.

A step is random where its standard deviation is above 0. DDIM's last one is not, and the flow sampler's last one is
taken without noise too, since it would stay in the picture. Those have no density: their log-probability is NaN, and
no loss may use it.
Sources: DDIM, Song et al. 2021, eq. 12 and 16; the SDE of a flow, Liu et al. 2025 (Flow-GRPO);
the mean over elements, Black et al. 2023 (DDPO), as its code does.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from restoration.tuning.sampler.noise_path import NoisePath
from restoration.tuning.sampler.parametrisation import to_noise, to_x0

if TYPE_CHECKING:
    from restoration.tuning.denoisers.base import Condition, Denoiser

MIN_STD = 1e-6
"""Steps below are deterministic: their density would be a spike of rounding errors."""


class Transition(NamedTuple):
    """One step of a sampler."""

    sample: Tensor
    """x after the step; the one given, where one was given."""
    mean: Tensor
    """Where the step would end without its noise."""
    std: float
    """Of the noise; 0: the step is deterministic."""
    log_prob: Tensor
    """[batch] float32, mean over a row's elements; NaN where deterministic."""
    x0: Tensor
    """The picture as it was predicted before the step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """What a sampler did, step by step."""

    states: tuple[Tensor, ...]
    """steps + 1 tensors, batch first: x before each step and at the end. Without `keep` only the last."""
    log_probs: Tensor
    """[steps, batch] float32; NaN where the step was deterministic."""
    stds: tuple[float, ...]
    """One a step."""

    @property
    def x0(self) -> Tensor:
        """The end."""
        return self.states[-1]


def step_std(path: NoisePath, index: int, eta: float) -> float:
    """Return the standard deviation of a step's noise. `eta`: DDIM's eta (1: as random as DDPM), or the noise level of
    a flow's SDE. Raises ValueError for an eta below 0, or one that a step has no room for.
    """
    if eta < 0:
        raise ValueError(f"eta={eta}: must be 0 or more")
    alpha, sigma, next_alpha, next_sigma = _levels(path, index)
    if path.kind == "flow":
        return 0.0 if next_sigma <= 0 else _flow_speed(path, index, eta) * math.sqrt(sigma - next_sigma)
    if next_alpha <= 0 or sigma <= 0:
        return 0.0
    std = eta * (next_sigma / sigma) * math.sqrt(max(0.0, 1 - (alpha / next_alpha) ** 2))
    if std > next_sigma * (1 + 1e-5):
        raise ValueError(f"eta={eta}: step {index} would add more noise than its level holds; take 1 or less")
    return std if std > MIN_STD else 0.0


def transition(
    path: NoisePath, index: int, output: Tensor, x_t: Tensor, *, eta: float = 1.0, sample: Tensor | None = None,
    noise: Tensor | None = None,
) -> Transition:  # fmt: skip
    """Take step `index` from `x_t` with the denoiser's `output`, or score `sample` as its result.

    noise: standard normal, needed where the step is random and no sample is given (ValueError). The graph of `output`
    is kept.
    """
    output, x_t = output.float(), x_t.float()
    alpha, sigma = path.alphas[index], path.sigmas[index]
    std = step_std(path, index, eta)  # of the schedule; the noise that is added is scaled by the temperature
    spread = path.temperature * std
    x0 = to_x0(path.kind, output, x_t, alpha, sigma)
    if path.clip is not None:
        x0 = x0.clamp(-path.clip, path.clip)
    if path.kind == "flow":
        mean = _flow_mean(path, index, output, x_t, eta if std > 0 else 0.0)
    else:
        direction = math.sqrt(max(0.0, float(path.next_sigmas[index]) ** 2 - std**2))
        mean = float(path.next_alphas[index]) * x0 + direction * to_noise(path.kind, output, x_t, alpha, sigma)
    if spread == 0:
        nothing = torch.full((len(x_t),), math.nan, device=x_t.device)
        return Transition(mean if sample is None else sample, mean, 0.0, nothing, x0)
    if sample is None:
        if noise is None:
            raise ValueError(f"step {index} is random (std {spread:.3g}): give noise= or sample=")
        sample = (mean + spread * noise).detach()
    density = -((sample - mean) ** 2) / (2 * spread**2) - math.log(spread) - 0.5 * math.log(2 * math.pi)
    return Transition(sample, mean, spread, density.flatten(1).mean(dim=1), x0)


def draw(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """Return standard normal noise [rows, ...], each row from its own generator on the CPU: the same on any device."""
    return torch.stack([torch.randn(tuple(shape), generator=one) for one in generators]).to(device)


@torch.no_grad()
def sample(
    denoiser: "Denoiser", condition: "Condition", path: NoisePath, generators: Sequence[torch.Generator], *,
    eta: float = 1.0, random_steps: Collection[int] | None = None, keep: bool = False, steps: int | None = None,
) -> Trajectory:  # fmt: skip
    """Draw one candidate a generator from the denoiser as it stands.

    random_steps: which steps may be random; the others are taken without noise (default: all). keep: hold all states.
    steps: stop after so many (default: all).
    Noise is drawn for every step whether it is used or not, so that a seed means the same picture for any choice.
    """
    shape = denoiser.noise_shape(condition)
    device = condition.lq.device
    x = denoiser.begin(path.temperature * draw(shape, generators, device), condition, path).float()
    states, log_probs, stds = [x], [], []
    for index in range(len(path) if steps is None else steps):
        noise = draw(shape, generators, device)
        level = eta if random_steps is None or index in random_steps else 0.0
        output = denoiser.predict(x, path.times[index], condition)
        done = transition(path, index, output, x, eta=level, noise=noise)
        x = done.sample
        states = [*states, x] if keep else [x]
        log_probs.append(done.log_prob)
        stds.append(done.std)
    scores = torch.stack(log_probs) if log_probs else torch.zeros(0, len(x), device=device)
    return Trajectory(states=tuple(states), log_probs=scores, stds=tuple(stds))


def rescore(
    denoiser: "Denoiser", condition: "Condition", path: NoisePath, trajectory: Trajectory, index: int, *, eta: float
) -> Transition:
    """Score step `index` of a kept trajectory with the denoiser as it stands now; the graph is kept."""
    if len(trajectory.states) <= index + 1:
        raise ValueError(f"step {index}: the trajectory was drawn without keep=True, so its states are gone")
    before, after = trajectory.states[index], trajectory.states[index + 1]
    output = denoiser.predict(before, path.times[index], condition)
    return transition(path, index, output, before, eta=eta, sample=after)


def _levels(path: NoisePath, index: int) -> tuple[float, float, float, float]:
    return tuple(float(part[index]) for part in (path.alphas, path.sigmas, path.next_alphas, path.next_sigmas))  # type: ignore[return-value]


def _flow_speed(path: NoisePath, index: int, eta: float) -> float:
    """The SDE's s = eta sqrt(sigma / (1 - sigma)). At sigma = 1 it has a pole, and the next level stands in for sigma.

    Deviation: Flow-GRPO's code replaces sigma in the denominator alone, so its first step is a little noisier. Either
    is a step of an SDE with the flow's marginals.
    """
    sigma, next_sigma = float(path.sigmas[index]), float(path.next_sigmas[index])
    level = next_sigma if sigma >= 1 else sigma
    return eta * math.sqrt(level / (1 - level))


def _flow_mean(path: NoisePath, index: int, output: Tensor, x_t: Tensor, eta: float) -> Tensor:
    """Drift of the SDE that has the flow's own marginals; the plain Euler step for eta = 0."""
    sigma, dt = float(path.sigmas[index]), float(path.next_sigmas[index] - path.sigmas[index])
    half = 0.0 if eta == 0 else _flow_speed(path, index, eta) ** 2 / (2 * sigma)
    return x_t * (1 + half * dt) + output * (1 + half * (1 - sigma)) * dt
