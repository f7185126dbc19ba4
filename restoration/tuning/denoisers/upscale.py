"""`StableDiffusionUpscalePipeline` (SD-x4): a text-conditioned U-Net on VAE latents beside the noised LR image.

The pipeline noises the LR image at `noise_level`; that noise belongs to a candidate and is drawn from its generator.
Training and sampling here go without classifier-free guidance unless `guidance_scale` is above 1, which doubles the
time; the pipeline's own default of 9 is for a text prompt that describes the image. A tuned pipeline is called with
what it was tuned with (`restorer_options`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from restoration.restorer.pipeline_engine import system_of
from restoration.tuning.denoisers.base import Condition, Denoiser, capture_outputs, mirror_to
from restoration.tuning.sampler.parametrisation import from_latent, to_latent
from restoration.tuning.sampler.transitions import NoisePath, Schedule, draw

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def build(pipeline: Any, *, noise_level: int = 20, guidance_scale: float = 1.0, negative_prompt: str = "") -> Denoiser:
    """Return its denoiser; the options are those of the pipeline's call."""
    return UpscaleDenoiser(pipeline, noise_level, guidance_scale, negative_prompt)


class UpscaleDenoiser:
    """See `Denoiser`."""

    module_name = "unet"
    lora_targets: tuple[str, ...] = ATTENTION

    def __init__(self, pipeline: Any, noise_level: int, guidance_scale: float, negative_prompt: str) -> None:
        self.pipeline, self.module = pipeline, pipeline.unet
        self.schedule = Schedule(pipeline.scheduler)
        self.scale = self.patch_px = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self._stride = system_of(pipeline).multiple_px
        self._noise_level, self._guidance, self._negative = noise_level, guidance_scale, negative_prompt
        self.restorer_options: dict[str, float | str] = {"noise_level": noise_level, "guidance_scale": guidance_scale}
        self.restorer_options |= {"negative_prompt": negative_prompt} if negative_prompt else {}

    @torch.no_grad()
    def encode(self, lq: Tensor, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Condition:
        """The noised image in [-1, 1], the text, and with guidance the negative text."""
        height, width = lq.shape[-2:]
        signed = mirror_to(lq, height + -height % self._stride, width + -width % self._stride) * 2 - 1
        level = torch.full((len(lq),), self._noise_level, dtype=torch.long, device=lq.device)
        noise = draw(signed.shape[1:], generators, lq.device)
        guided = self._guidance > 1
        text, negative = self.pipeline.encode_prompt(
            list(prompts), lq.device, 1, guided, negative_prompt=[self._negative] * len(lq) if guided else None
        )
        noised = self.pipeline.low_res_scheduler.add_noise(signed, noise, level)
        given = {"noised": noised, "level": level, "text": text}
        return Condition(lq=lq, given=given | ({"negative": negative} if guided else {}))

    def path(self, num_steps: int) -> NoisePath:
        """See `Denoiser`."""
        return self.schedule.path(num_steps)

    def noise_shape(self, condition: Condition) -> tuple[int, ...]:
        """See `Denoiser`."""
        return (self.pipeline.vae.config.latent_channels, *condition.given["noised"].shape[-2:])

    def begin(self, noise: Tensor, condition: Condition, path: NoisePath) -> Tensor:
        """Pure noise."""
        return noise

    def predict(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser`; with guidance both texts run in one batch."""
        given = condition.given
        if "negative" not in given:
            return self._run(x_t, time, given["noised"], given["text"], given["level"])
        twice = [torch.cat([tensor, tensor]) for tensor in (x_t, given["noised"], given["level"])]
        both = time if time.ndim == 0 else torch.cat([time, time])
        text = torch.cat([given["negative"], given["text"]])
        without, with_text = self._run(twice[0], both, twice[1], text, twice[2]).chunk(2)
        return without + self._guidance * (with_text - without)

    def _run(self, x_t: Tensor, time: Tensor, noised: Tensor, text: Tensor, level: Tensor) -> Tensor:
        dtype = self.module.dtype
        joined = torch.cat([x_t, noised], dim=1).to(dtype)
        return self.module(
            joined, time.to(x_t.device), encoder_hidden_states=text.to(dtype), class_labels=level
        ).sample.float()

    def decode(self, x0: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser`."""
        height, width = (self.scale * side for side in condition.lq.shape[-2:])
        return from_latent(self.pipeline.vae, x0)[..., :height, :width]

    def encode_target(self, images: Tensor, condition: Condition) -> Tensor:
        """The mode of the VAE's latent."""
        whole = mirror_to(images, *(self.scale * side for side in condition.given["noised"].shape[-2:]))
        return to_latent(self.pipeline.vae, whole)

    def features(self, images: Tensor, condition: Condition) -> list[Tensor]:
        """What the VAE encoder's blocks put out."""
        blocks = list(self.pipeline.vae.encoder.down_blocks)
        return capture_outputs(blocks, lambda: self.encode_target(images, condition))
