"""The denoising error of given pictures: what supervised tuning minimises and DPO compares."""

import torch
from torch import Tensor

from restoration.tune.denoiser import Condition, Denoiser
from restoration.tune.parametrisation import noisy, target


def denoising_errors(
    denoiser: Denoiser, condition: Condition, x0: Tensor, noise: Tensor, levels: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Return [rows] float32: mean over a row's elements of (output - target)^2.

    noise: as large as x0. levels: (times, alphas, sigmas), one number a row each, as `Schedule.draw` gives them.
    """
    times, alphas, sigmas = levels
    output = denoiser.predict(noisy(x0, noise, alphas, sigmas), times, condition)
    wanted = target(denoiser.schedule.kind, x0, noise, alphas, sigmas)
    return (output - wanted).square().flatten(1).mean(dim=1)


def random_noise(like: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Return normal noise of that shape with the deviation `temperature`, drawn on the CPU: the same on every device.

    A sampler whose noise is scaled by a temperature sees states x_t = alpha x0 + sigma temperature noise. Who learns from
    its pictures has to noise them as little: with full noise their smoothness itself would be learned (for a Gaussian,
    the posterior mean is that of the untempered pair only if both are scaled alike).
    """
    return temperature * torch.randn(like.shape, generator=generator).to(like.device)
