"""Between pictures and the latents of a Stable Diffusion VAE, scaled as its diffusion model wants them."""

from typing import Any

from torch import Tensor


def from_latent(vae: Any, latent: Tensor) -> Tensor:
    """Return the pictures, float32 BCHW in [0, 1], of a scaled latent; the graph is kept."""
    plain = latent / vae.config.scaling_factor + _shift(vae)
    return (vae.decode(plain.to(vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


def to_latent(vae: Any, pictures: Tensor) -> Tensor:
    """Return the scaled mode of the latent of BCHW pictures in [0, 1], whose sides the VAE's stride divides."""
    found = vae.encode((pictures * 2 - 1).to(vae.dtype)).latent_dist.mode().float()
    return (found - _shift(vae)) * vae.config.scaling_factor


def _shift(vae: Any) -> float:
    return float(getattr(vae.config, "shift_factor", None) or 0.0)
