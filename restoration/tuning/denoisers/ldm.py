"""`LDMSuperResolutionPipeline` (x4, UNet2DModel and VQ-VAE): the latent has the size of the LR image.

Decoding goes through the VQ model's quantisation, whose gradient diffusers passes straight through.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from restoration.restorer.pipeline_engine import system_of
from restoration.tuning.denoisers.base import Condition, Denoiser, capture_outputs, mirror_to
from restoration.tuning.sampler.transitions import NoisePath, Schedule


def build(pipeline: Any) -> Denoiser:
    """Return its denoiser."""
    return LDMDenoiser(pipeline)


class LDMDenoiser:
    """See `Denoiser`."""

    module_name = "unet"
    lora_targets: tuple[str, ...] = ()

    def __init__(self, pipeline: Any) -> None:
        self.restorer_options: dict[str, float | str] = {}
        self.pipeline, self.module = pipeline, pipeline.unet
        self.schedule = Schedule(pipeline.scheduler)
        self.scale = self.patch_px = 2 ** (len(pipeline.vqvae.config.block_out_channels) - 1)
        self._stride = system_of(pipeline).multiple_px

    def encode(self, lq: Tensor, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Condition:
        """The image in [-1, 1], mirrored as `Restorer` does. No prompt, nothing random."""
        height, width = lq.shape[-2:]
        whole = mirror_to(lq, height + -height % self._stride, width + -width % self._stride)
        return Condition(lq=lq, given={"signed": whole * 2 - 1})

    def path(self, num_steps: int) -> NoisePath:
        """See `Denoiser`."""
        return self.schedule.path(num_steps)

    def noise_shape(self, condition: Condition) -> tuple[int, ...]:
        """Half of the U-Net's input channels are the latent's, as the pipeline has it."""
        return (self.module.config.in_channels // 2, *condition.given["signed"].shape[-2:])

    def begin(self, noise: Tensor, condition: Condition, path: NoisePath) -> Tensor:
        """Pure noise."""
        return noise

    def predict(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser`."""
        joined = torch.cat([x_t, condition.given["signed"]], dim=1).to(self.module.dtype)
        return self.module(joined, time.to(x_t.device)).sample.float()

    def decode(self, x0: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser`."""
        height, width = (self.scale * side for side in condition.lq.shape[-2:])
        whole = self.pipeline.vqvae.decode(x0.to(self.pipeline.vqvae.dtype)).sample.float()
        return (whole / 2 + 0.5).clamp(0, 1)[..., :height, :width]

    def encode_target(self, images: Tensor, condition: Condition) -> Tensor:
        """The VQ encoder's latent, before quantisation."""
        whole = mirror_to(images, *(self.scale * side for side in condition.given["signed"].shape[-2:]))
        return self.pipeline.vqvae.encode((whole * 2 - 1).to(self.pipeline.vqvae.dtype)).latents.float()

    def features(self, images: Tensor, condition: Condition) -> list[Tensor]:
        """What the VQ encoder's blocks put out."""
        blocks = list(self.pipeline.vqvae.encoder.down_blocks)
        return capture_outputs(blocks, lambda: self.encode_target(images, condition))
