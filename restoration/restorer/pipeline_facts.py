"""What is known of each kind of diffusers pipeline that its signature does not say.

Recognised by class name, subclasses included, so that diffusers is not imported to ask. Facts are those of
diffusers 0.42; where one is wrong for your pipeline, `Restorer.from_pretrained` takes it as an argument.
"""

import math
from dataclasses import dataclass
from typing import Any

IMAGE_FORMS = ("unit", "signed", "pil")
CHECKED_STRIDE = 8
"""Stable Diffusion pipelines refuse other sides, whatever their autoencoder's factor."""
LDM_STRIDE = 32
"""The pipeline itself resizes a PIL picture to multiples of this, silently; a tensor goes in as it is."""


@dataclass(frozen=True, kw_only=True)
class System:
    """How one kind of pipeline takes its picture."""

    scale: int | None
    """How many times larger the output is than the input; None: as large as the input, so pre-upscale."""
    multiple_px: int
    """Input sides must be multiples of this, or the pipeline resizes the picture silently (or fails)."""
    image_form: str
    """`unit`: BCHW tensor in [0, 1]; `signed`: in [-1, 1]; `pil`: one PIL picture."""


def system_of(pipeline: Any) -> System:
    """Return what is known of a pipeline.

    LDMSuperResolutionPipeline does not normalise tensors, so it wants [-1, 1]. The SD-x4 upscaler works on the LR
    grid. The latent upscaler doubles. QwenImageEdit reads `image.size`, so it wants PIL. Everything else (ControlNet,
    img2img, FLUX, SD3, edit models) gives a picture as large as the one that it gets.
    """
    names = {kind.__name__ for kind in type(pipeline).__mro__}
    if "LDMSuperResolutionPipeline" in names:
        return System(scale=_factor(pipeline.vqvae), multiple_px=LDM_STRIDE, image_form="signed")
    if "StableDiffusionUpscalePipeline" in names:
        factor = int(pipeline.vae_scale_factor)
        return System(scale=factor, multiple_px=math.lcm(factor, _factor(pipeline.unet)), image_form="unit")
    if "StableDiffusionLatentUpscalePipeline" in names:
        return System(scale=2, multiple_px=_stride(pipeline), image_form="unit")
    if "NanoSRPipeline" in names:
        return System(scale=4, multiple_px=1, image_form="unit")  # pads by itself
    if any(name.startswith("QwenImageEdit") for name in names):
        return System(scale=None, multiple_px=_stride(pipeline), image_form="pil")
    return System(scale=None, multiple_px=_stride(pipeline), image_form="unit")


def _stride(pipeline: Any) -> int:
    """Pixels of the picture behind one cell of the denoiser's coarsest grid, in multiples of what pipelines check."""
    factor = math.lcm(int(getattr(pipeline, "vae_scale_factor", 1)), CHECKED_STRIDE)
    if getattr(pipeline, "transformer", None) is not None:
        return factor * 2  # latents are packed, or patched, two by two
    unet = getattr(pipeline, "unet", None)
    return factor if unet is None else factor * _factor(unet)


def _factor(model: Any) -> int:
    return int(2 ** (len(model.config.block_out_channels) - 1))
