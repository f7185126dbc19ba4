"""The denoising error of given images: what supervised tuning minimises and DPO compares."""

import torch
from torch import Tensor

from restoration.restorer.image_io import sharpened
from restoration.tuning.context import Tuning
from restoration.tuning.data import Example
from restoration.tuning.denoisers.base import Condition, Denoiser
from restoration.tuning.sampler.parametrisation import noisy, target, to_x0
from restoration.tuning.sampler.rollout import Varied, encode, generators_of
from restoration.tuning.sampler.transitions import sample

TRUTH_SIGMA_PX = 1.6
"""Blur of the unsharp mask of `TuneConfig.truth_sharpness`, in pixels of the ground truth."""
Levels = tuple[Tensor, Tensor, Tensor]
"""(times, alphas, sigmas), one number per row each, as `Schedule.draw` gives them."""


def denoising_errors(
    denoiser: Denoiser, condition: Condition, x0: Tensor, noise: Tensor, levels: Levels, wanted: Tensor | None = None
) -> Tensor:
    """Return [rows] float32: mean over a row's elements of (output - target)^2.

    noise: as large as x0. wanted: the target; None: that of x0 and the noise.
    """
    times, alphas, sigmas = levels
    output = denoiser.predict(noisy(x0, noise, alphas, sigmas), times, condition)
    if wanted is None:
        wanted = target(denoiser.schedule.kind, x0, noise, alphas, sigmas)
    return (output - wanted).square().flatten(1).mean(dim=1)


@torch.no_grad()
def expected_target(denoiser: Denoiser, varied: Varied, noise: Tensor, levels: Levels) -> Tensor:
    """Return the target that the active adapter sets at noisy `x0_as_is`, seeing the images as `varied` saw them.

    A varied candidate is one draw of what its condition allows. What earned its score is the condition; the draw's
    grain did not. So the candidate itself is no target: the denoiser under that condition is, at states that the
    sampler comes to by itself, as in the distillation of guidance. The network cannot tell the two conditions apart by
    the state, only by what it is given beside it.
    Source: Meng et al. 2023 (distillation of guided diffusion), with a varied condition in the place of guidance.
    """
    kind, (times, alphas, sigmas) = denoiser.schedule.kind, levels
    output = denoiser.predict(noisy(varied.x0, noise, alphas, sigmas), times, varied.condition)
    # Targets are linear in x0: this carries the target from one condition's x0 to the other's.
    moved = target(kind, varied.x0_as_is, noise, alphas, sigmas) - target(kind, varied.x0, noise, alphas, sigmas)
    return output + moved


def random_noise(like: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Return normal noise of that shape with the deviation `temperature`, drawn on the CPU: the same on every device.

    A sampler whose noise is scaled by a temperature sees states x_t = alpha x0 + sigma temperature noise. Who learns
    from its images has to noise them as little: with full noise their smoothness itself would be learned. (For a
    Gaussian, the posterior mean is that of the untempered pair only if both are scaled alike.)
    """
    return temperature * torch.randn(like.shape, generator=generator).to(like.device)


def truth_error(tuning: Tuning, example: Example, rows: int, generator: torch.Generator) -> Tensor:
    """Return the mean error of what the network says of the image's ground truth at `rows` states.

    `TuneConfig.truth_states` says which: the noisy truth at as many times, under full noise, where the error is that of
    the output; or states of as many candidates that the sampler draws now, before one random step, where the error is
    that of the predicted x0. `TuneConfig.truth_sharpness` sharpens the truth first. Raises ValueError without a truth.
    Sources: ReFL (Xu et al. 2023) and RFSR keep the pre-training loss beside the reward; DAgger (Ross et al. 2011)
    learns the right answer at the states that the learner itself comes to.
    """
    if example.hr is None:
        raise ValueError(f"{example.name} has no ground truth to denoise: set truth_weight=0")
    denoiser, path = tuning.denoiser, tuning.path
    truth = sharpened(example.hr, tuning.config.truth_sharpness, TRUTH_SIGMA_PX)
    generators = generators_of(torch.randint(2**62, (rows,), generator=generator).tolist())
    condition = encode(tuning, example, generators)
    with torch.no_grad():
        x0 = denoiser.encode_target(truth[None].to(tuning.device).expand(rows, -1, -1, -1), condition)
    if tuning.config.truth_states == "noisy":
        levels = denoiser.schedule.draw(rows, generator)
        return denoising_errors(denoiser, condition, x0, random_noise(x0, generator), levels).mean()
    step = int(torch.randint(len(path), (), generator=generator))
    x_t = sample(denoiser, condition, path, generators, eta=tuning.config.eta, steps=step).x0
    output = denoiser.predict(x_t, path.times[step], condition).float()
    return (to_x0(path.kind, output, x_t, path.alphas[step], path.sigmas[step]) - x0).square().mean()
