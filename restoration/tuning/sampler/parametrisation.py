"""How the output of a denoiser becomes the clean signal, the noise or a training target; and the latents of a VAE.

A noisy signal is x_t = alpha x0 + sigma noise. `epsilon`: the output is the noise (Ho et al. 2020). `v`: it is
alpha noise - sigma x0, with alpha^2 + sigma^2 = 1 (Salimans and Ho 2022). `flow`: it is noise - x0, with
alpha + sigma = 1 (Lipman et al. 2023; rectified flow). Everything here is linear in the output, so a mix of two
outputs is the output of the mixed prediction.

The latents are those of a Stable Diffusion VAE, scaled as its diffusion model expects them.
"""

from typing import Any

from torch import Tensor

KINDS = ("epsilon", "v", "flow")
_OF_DIFFUSERS = {"epsilon": "epsilon", "v_prediction": "v"}


def kind_of(scheduler: Any) -> str:
    """Return `epsilon`, `v` or `flow`, as a diffusers scheduler says. Raises ValueError for another parametrisation."""
    if "FlowMatch" in type(scheduler).__name__:
        return "flow"
    prediction_type = scheduler.config.get("prediction_type")
    if prediction_type not in _OF_DIFFUSERS:
        raise ValueError(
            f"{type(scheduler).__name__} with prediction_type={prediction_type!r}: tuning knows epsilon, v_prediction "
            "and flow matching; take a pipeline trained on one of those"
        )
    return _OF_DIFFUSERS[prediction_type]


def noisy(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return x_t. `alpha`, `sigma`: one number, or one per row."""
    return rows(alpha, x0) * x0 + rows(sigma, x0) * noise


def target(kind: str, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return what a perfect denoiser puts out. Raises ValueError for an unknown kind."""
    _check(kind)
    if kind == "epsilon":
        return noise
    if kind == "flow":
        return noise - x0
    return rows(alpha, x0) * noise - rows(sigma, x0) * x0


def to_x0(kind: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean signal that an output means.

    Raises ValueError for an unknown kind, and for `epsilon` where alpha is 0: pure noise says nothing about x0 then.
    """
    _check(kind)
    alpha, sigma = rows(alpha, x_t), rows(sigma, x_t)
    if kind == "v":
        return alpha * x_t - sigma * output
    if kind == "flow":
        return x_t - sigma * output
    if not bool((alpha > 0).all()):
        raise ValueError(
            "epsilon at alpha = 0: the noise of pure noise holds no image; a schedule with zero terminal SNR "
            "(rescale_betas_zero_snr=True) needs prediction_type='v_prediction'"
        )
    return (x_t - sigma * output) / alpha


def to_noise(kind: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the noise that an output means. Raises ValueError for an unknown kind."""
    _check(kind)
    alpha, sigma = rows(alpha, x_t), rows(sigma, x_t)
    if kind == "epsilon":
        return output
    if kind == "flow":
        return x_t + alpha * output
    return alpha * output + sigma * x_t


def rows(level: Tensor, like: Tensor) -> Tensor:
    """Return a level (one number, or one per row) so that it multiplies a tensor whose first axis is the batch.

    >>> import torch
    >>> rows(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    level = level.to(device=like.device, dtype=like.dtype)
    return level if level.ndim == 0 else level.reshape(-1, *[1] * (like.ndim - 1))


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"parametrisation {kind!r}: must be one of {', '.join(KINDS)}")


def from_latent(vae: Any, latent: Tensor) -> Tensor:
    """Return the images, float32 BCHW in [0, 1], of a scaled latent; the graph is kept."""
    plain = latent / vae.config.scaling_factor + _shift(vae)
    return (vae.decode(plain.to(vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


def to_latent(vae: Any, images: Tensor) -> Tensor:
    """Return the scaled mode of the latent of BCHW images in [0, 1], whose sides the VAE's stride divides."""
    results = vae.encode((images * 2 - 1).to(vae.dtype)).latent_dist.mode().float()
    return (results - _shift(vae)) * vae.config.scaling_factor


def _shift(vae: Any) -> float:
    return float(getattr(vae.config, "shift_factor", None) or 0.0)
