"""`StableDiffusion3Img2ImgPipeline`: a flow transformer (SD3Transformer2DModel) that starts from the enlarged image.

The LR image is enlarged by bicubic interpolation and encoded; sampling begins at the noise level that `strength`
names, as the pipeline does, so the path is a tail of the whole one. No guidance, neither while training nor of the
tuned pipeline.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from restoration.restorer.pipeline_engine import system_of
from restoration.tuning.denoisers.base import Condition, Denoiser, capture_outputs, mirror_to
from restoration.tuning.sampler.parametrisation import from_latent, noisy, to_latent
from restoration.tuning.sampler.transitions import NoisePath, Schedule
from zoomiqa_reward.images.filters import resize_bicubic

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def build(pipeline: Any, *, scale: int = 4, strength: float = 0.6) -> Denoiser:
    """Return its denoiser. scale: how many times to enlarge first; strength: share of the steps that are taken.

    Raises ValueError for a scale below 1 or a strength outside (0, 1].
    """
    if scale < 1 or not 0 < strength <= 1:
        raise ValueError(
            f"scale={scale}, strength={strength}: scale must be at least 1, strength above 0 and at most 1"
        )
    return SD3Denoiser(pipeline, scale, strength)


class SD3Denoiser:
    """See `Denoiser`."""

    module_name = "transformer"
    lora_targets: tuple[str, ...] = ATTENTION

    def __init__(self, pipeline: Any, scale: int, strength: float) -> None:
        self.pipeline, self.module = pipeline, pipeline.transformer
        self.schedule = Schedule(pipeline.scheduler)
        self.scale, self._strength = scale, strength
        self.restorer_options: dict[str, float | str] = {"scale": scale, "strength": strength, "guidance_scale": 1.0}
        self.patch_px = int(pipeline.vae_scale_factor) * int(self.module.config.patch_size)
        self._stride = system_of(pipeline).multiple_px

    @torch.no_grad()
    def encode(self, lq: Tensor, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Condition:
        """The latent of the enlarged image (mirrored up to whole patches), and the text."""
        size = lq.shape[-2] * self.scale, lq.shape[-1] * self.scale
        grown = resize_bicubic(lq.float(), *size)
        texts = list(prompts)
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=texts, prompt_2=texts, prompt_3=texts, device=lq.device, do_classifier_free_guidance=False
        )
        condition = Condition(lq=lq, given={"text": text, "pooled": pooled})
        return Condition(lq=lq, given=condition.given | {"start": self.encode_target(grown, condition)})

    def path(self, num_steps: int) -> NoisePath:
        """The tail that `strength` leaves, as the pipeline's class has it."""
        return self.schedule.tail(type(self.pipeline), num_steps, self._strength)

    def noise_shape(self, condition: Condition) -> tuple[int, ...]:
        """See `Denoiser`."""
        return tuple(condition.given["start"].shape[1:])

    def begin(self, noise: Tensor, condition: Condition, path: NoisePath) -> Tensor:
        """The enlarged image's latent at the path's first noise level."""
        return noisy(condition.given["start"], noise, path.alphas[0], path.sigmas[0])

    def predict(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser`."""
        dtype, given = self.module.dtype, condition.given
        return self.module(
            hidden_states=x_t.to(dtype), timestep=time.to(x_t.device).expand(len(x_t)),
            encoder_hidden_states=given["text"].to(dtype), pooled_projections=given["pooled"].to(dtype),
        ).sample.float()  # fmt: skip

    def decode(self, x0: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser`."""
        height, width = (self.scale * side for side in condition.lq.shape[-2:])
        return from_latent(self.pipeline.vae, x0)[..., :height, :width]

    def encode_target(self, images: Tensor, condition: Condition) -> Tensor:
        """The mode of the VAE's latent."""
        height, width = images.shape[-2:]
        whole = mirror_to(images, height + -height % self._stride, width + -width % self._stride)
        return to_latent(self.pipeline.vae, whole)

    def features(self, images: Tensor, condition: Condition) -> list[Tensor]:
        """What the VAE encoder's blocks put out."""
        blocks = list(self.pipeline.vae.encoder.down_blocks)
        return capture_outputs(blocks, lambda: self.encode_target(images, condition))
