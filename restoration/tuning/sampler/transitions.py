"""The noise levels and the steps of a sampler, and the noise levels that a denoising loss draws from.

A diffusion schedule is always sampled by DDIM, whatever scheduler the pipeline brings, because the density of a DDIM
step is known: it is Gaussian. The times and the previous level are those of diffusers, so the image is the one that the
pipeline draws with a DDIM scheduler from the same noise.

One function takes a sampling step and scores it: without `sample` it draws one, with `sample` it scores that one. So
the same code draws a sample and later computes its log-probability, and before any update the ratio of the two is 1.
Everything is float32. Log-probabilities are **means** over the elements of a row: a sum, and with it a clip range,
would grow with the image.

A step is random if its standard deviation is above 0. DDIM's last step is not random. The flow sampler's last step is
taken without noise, because the noise would stay in the image. Such a step has no density: its log-probability is NaN,
and no loss may use it.
Sources: DDIM, Song et al. 2021, eq. 12 and 16; the SDE of a flow, Liu et al. 2025 (Flow-GRPO);
the mean over elements, Black et al. 2023 (DDPO), as in its code.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from restoration.tuning.sampler.parametrisation import kind_of, to_noise, to_x0

if TYPE_CHECKING:
    from restoration.tuning.denoisers.base import Condition, Denoiser


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisePath:
    """The steps of one sampler, from noise to image."""

    kind: str
    """`epsilon`, `v` or `flow`."""
    times: Tensor
    """[steps] what the denoiser is told."""
    alphas: Tensor
    """[steps] float32: the signal's factor before each step."""
    sigmas: Tensor
    """[steps] float32: the noise's factor before each step."""
    next_alphas: Tensor
    """[steps] float32: after each step."""
    next_sigmas: Tensor
    """[steps] float32."""
    clip: float | None = None
    """Largest absolute value of a predicted x0, where the scheduler says `clip_sample`."""
    temperature: float = 1.0
    """Factor of all noise, the first and each step's."""

    def __len__(self) -> int:
        return len(self.times)

    def tail(self, count: int) -> "NoisePath":
        """Return the last `count` steps: what remains for a sampler that starts from an image."""
        keep = slice(len(self) - count, None)
        names = ("times", "alphas", "sigmas", "next_alphas", "next_sigmas")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})


class Schedule:
    """A pipeline's noise schedule."""

    def __init__(self, scheduler: Any) -> None:
        """Copy what is needed; the pipeline's own scheduler is left alone.

        Raises ValueError for another parametrisation, dynamic thresholding, or dynamic shifting.
        """
        self.kind = kind_of(scheduler)
        config = scheduler.config
        if config.get("thresholding") or config.get("use_dynamic_shifting"):
            which = "thresholding" if config.get("thresholding") else "use_dynamic_shifting"
            raise ValueError(
                f"{type(scheduler).__name__} with {which}=True cannot be tuned: a step's density would depend on the "
                f"image; set pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, {which}=False)"
            )
        from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

        wanted = FlowMatchEulerDiscreteScheduler if self.kind == "flow" else DDIMScheduler
        # A DDPM or DPM schedule says the same levels; only its steps differ. Its own times are kept for training.
        self._scheduler = wanted.from_config(config)
        self._clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
        if self.kind == "flow":
            sigmas = self._scheduler.sigmas.float()
            self.times, self.alphas, self.sigmas = self._scheduler.timesteps.float(), 1 - sigmas, sigmas
        else:
            cumulated = self._scheduler.alphas_cumprod.double()
            self.times = torch.arange(len(cumulated))
            self.alphas, self.sigmas = cumulated.sqrt().float(), (1 - cumulated).sqrt().float()

    def path(self, num_steps: int) -> NoisePath:
        """Return the sampler's steps. Raises ValueError for fewer than 1."""
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps}: must be at least 1")
        scheduler = self._scheduler
        scheduler.set_timesteps(num_steps)
        times = scheduler.timesteps.clone()
        if self.kind == "flow":
            levels = scheduler.sigmas.float().clone()
            return NoisePath(kind=self.kind, times=times.float(), alphas=1 - levels[:-1], sigmas=levels[:-1],
                        next_alphas=1 - levels[1:], next_sigmas=levels[1:])  # fmt: skip
        before = times - scheduler.config.num_train_timesteps // num_steps
        cumulated = scheduler.alphas_cumprod.double()
        after = torch.where(before >= 0, cumulated[before.clamp_min(0)], scheduler.final_alpha_cumprod.double())
        return NoisePath(
            kind=self.kind, times=times, alphas=cumulated[times].sqrt().float(),
            sigmas=(1 - cumulated[times]).sqrt().float(), next_alphas=after.sqrt().float(),
            next_sigmas=(1 - after).clamp_min(0).sqrt().float(), clip=self._clip,
        )  # fmt: skip

    def tail(self, pipeline: type, num_steps: int, strength: float) -> NoisePath:
        """Return the steps that an img2img pipeline class takes at that strength, at least one.

        The class itself says how many: Stable Diffusion rounds n * strength down, and SD3 rounds it up.
        """
        whole = self.path(num_steps)
        pipeline_like = SimpleNamespace(
            scheduler=copy.copy(self._scheduler)
        )  # all that `get_timesteps` reads of its pipeline
        _, count = pipeline.get_timesteps(pipeline_like, num_steps, strength, "cpu")  # type: ignore[attr-defined]
        return whole.tail(max(1, min(num_steps, int(count))))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return (times, alphas, sigmas), each [count], for a denoising loss.

        Uniform over the training times, one from each of `count` equal bands: a batch's loss varies less so. For
        `epsilon` a level without any signal is left out.
        """
        usable = torch.arange(len(self.times))
        if self.kind == "epsilon":
            usable = usable[self.alphas[: len(usable)] > 0]
        where = (torch.arange(count) + torch.rand(count, generator=generator)) / count * len(usable)
        picked = usable[where.long().clamp(max=len(usable) - 1)]
        return self.times[picked], self.alphas[picked], self.sigmas[picked]


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
    """The image as it was predicted before the step."""


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


def random_steps(path: NoisePath, eta: float) -> list[int]:
    """Return the steps that add noise. Raises ValueError as `step_std` does."""
    return [index for index in range(len(path)) if step_std(path, index, eta) > 0]


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
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators]).to(device)


@torch.no_grad()
def sample(
    denoiser: "Denoiser", condition: "Condition", path: NoisePath, generators: Sequence[torch.Generator], *,
    eta: float = 1.0, keep: bool = False, steps: int | None = None,
) -> Trajectory:  # fmt: skip
    """Draw one candidate per generator from the denoiser as it stands.

    keep: hold all states. steps: stop after so many (default: all).
    Noise is drawn for every step whether it is used or not, so that the draws of a seed do not depend on eta.
    """
    shape = denoiser.noise_shape(condition)
    device = condition.lq.device
    x = denoiser.begin(path.temperature * draw(shape, generators, device), condition, path).float()
    states, log_probs, stds = [x], [], []
    for index in range(len(path) if steps is None else steps):
        noise = draw(shape, generators, device)
        output = denoiser.predict(x, path.times[index], condition)
        done = transition(path, index, output, x, eta=eta, noise=noise)
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
    return tuple(float(levels[index]) for levels in (path.alphas, path.sigmas, path.next_alphas, path.next_sigmas))  # type: ignore[return-value]


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
