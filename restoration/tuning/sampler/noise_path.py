"""The noise levels that a sampler walks through, and those that a denoising loss draws from: one form for all.

A diffusion schedule is sampled by DDIM whatever scheduler the pipeline brings: only there the step is a Gaussian whose
density is known. Its times and its previous level are those of diffusers, so a picture drawn here is the one that the
pipeline draws with a DDIM scheduler from the same noise.
"""

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from restoration.tuning.sampler.parametrisation import kind_of


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisePath:
    """The steps of one sampler, from noise to picture."""

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
        """Return the last `count` steps: what remains for a sampler that starts from a picture."""
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
                f"picture; set pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, {which}=False)"
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
        told = SimpleNamespace(scheduler=copy.copy(self._scheduler))  # all that `get_timesteps` reads of its pipeline
        _, count = pipeline.get_timesteps(told, num_steps, strength, "cpu")  # type: ignore[attr-defined]
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
