"""Stable Diffusion with a ControlNet (tile): the U-Net is tuned, the ControlNet that holds it to the image is not.

`StableDiffusionControlNetImg2ImgPipeline` starts from the enlarged image at the noise level that `strength` names,
`StableDiffusionControlNetPipeline` from pure noise. The enlarged image is the control image of both.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from restoration.restorer.pipeline_engine import system_of
from restoration.tuning.denoisers.base import Condition, Denoiser, capture_outputs, mirror_to
from restoration.tuning.sampler.parametrisation import from_latent, noisy, to_latent
from restoration.tuning.sampler.transitions import NoisePath, Schedule
from zoomiqa_reward.images.filters import resize_bicubic

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def build(
    pipeline: Any, *, scale: int = 4, strength: float = 0.6, control_scale: float | None = None,
    guidance_scale: float = 1.0, negative_prompt: str = "",
) -> Denoiser:  # fmt: skip
    """Return its denoiser.

    scale: how many times to enlarge first. strength: share of the steps that are taken, for the img2img class alone.
    control_scale: None: the default of the pipeline's call, which is 0.8 for the img2img class and 1 for the other.
    guidance_scale, negative_prompt: as in the call; guidance above 1 doubles the time, so 1 is the default here.
    Raises ValueError for a number out of range, and for several ControlNets.
    """
    if scale < 1 or not 0 < strength <= 1:
        raise ValueError(
            f"scale={scale}, strength={strength}: scale must be at least 1, strength above 0 and at most 1"
        )
    if not hasattr(pipeline.controlnet, "controlnet_cond_embedding"):
        raise ValueError(f"{type(pipeline.controlnet).__name__}: give a pipeline with a single ControlNet")
    if control_scale is None:
        call = inspect.signature(type(pipeline).__call__)
        control_scale = float(call.parameters["controlnet_conditioning_scale"].default)
    starts_from_image = any("Img2Img" in kind.__name__ for kind in type(pipeline).__mro__)
    return ControlDenoiser(pipeline, scale, strength, control_scale, guidance_scale, negative_prompt, starts_from_image)


class ControlDenoiser:
    """See `Denoiser`."""

    module_name = "unet"
    lora_targets: tuple[str, ...] = ATTENTION

    def __init__(
        self, pipeline: Any, scale: int, strength: float, control_scale: float, guidance: float, negative: str,
        starts_from_image: bool,
    ) -> None:  # fmt: skip
        self.pipeline, self.module = pipeline, pipeline.unet
        self.schedule = Schedule(pipeline.scheduler)
        self.scale, self.patch_px = scale, int(pipeline.vae_scale_factor)
        self._stride = system_of(pipeline).multiple_px
        self._strength, self._control, self._from_image = strength, control_scale, starts_from_image
        self._guidance, self._negative = guidance, negative
        self.restorer_options: dict[str, float | str] = {
            "scale": scale, "controlnet_conditioning_scale": control_scale, "guidance_scale": guidance,
        }  # fmt: skip
        self.restorer_options |= {"strength": strength} if starts_from_image else {}
        self.restorer_options |= {"negative_prompt": negative} if negative else {}

    @torch.no_grad()
    def encode(self, lq: Tensor, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Condition:
        """The enlarged image (mirrored up to the U-Net's stride), its latent, and the text."""
        size = lq.shape[-2] * self.scale, lq.shape[-1] * self.scale
        grown = resize_bicubic(lq.float(), *size)
        guided = self._guidance > 1
        text, negative = self.pipeline.encode_prompt(
            list(prompts), lq.device, 1, guided, negative_prompt=[self._negative] * len(lq) if guided else None
        )
        given = {"control": self._whole(grown), "start": self.encode_target(grown, Condition(lq=lq)), "text": text}
        return Condition(lq=lq, given=given | ({"negative": negative} if guided else {}))

    def path(self, num_steps: int) -> NoisePath:
        """The tail that `strength` leaves, as the pipeline's class has it; all of it from pure noise."""
        if not self._from_image:
            return self.schedule.path(num_steps)
        return self.schedule.tail(type(self.pipeline), num_steps, self._strength)

    def noise_shape(self, condition: Condition) -> tuple[int, ...]:
        """See `Denoiser`."""
        return tuple(condition.given["start"].shape[1:])

    def begin(self, noise: Tensor, condition: Condition, path: NoisePath) -> Tensor:
        """The enlarged image's latent at the path's first noise level, or pure noise."""
        return noisy(condition.given["start"], noise, path.alphas[0], path.sigmas[0]) if self._from_image else noise

    def predict(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser`; with guidance both texts run in one batch."""
        given = condition.given
        if "negative" not in given:
            return self._run(x_t, time, given["control"], given["text"])
        both = time if time.ndim == 0 else torch.cat([time, time])
        twice = [torch.cat([tensor, tensor]) for tensor in (x_t, given["control"])]
        prediction = self._run(twice[0], both, twice[1], torch.cat([given["negative"], given["text"]]))
        without, with_text = prediction.chunk(2)
        return without + self._guidance * (with_text - without)

    def _run(self, x_t: Tensor, time: Tensor, control: Tensor, text: Tensor) -> Tensor:
        network, dtype = self.pipeline.controlnet, self.module.dtype
        time, text = time.to(x_t.device), text.to(dtype)
        down, middle = network(
            x_t.to(network.dtype), time, encoder_hidden_states=text.to(network.dtype),
            controlnet_cond=control.to(network.dtype), conditioning_scale=self._control, return_dict=False,
        )  # fmt: skip
        return self.module(
            x_t.to(dtype), time, encoder_hidden_states=text,
            down_block_additional_residuals=[residual.to(dtype) for residual in down],
            mid_block_additional_residual=middle.to(dtype),
        ).sample.float()  # fmt: skip

    def decode(self, x0: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser`."""
        height, width = (self.scale * side for side in condition.lq.shape[-2:])
        return from_latent(self.pipeline.vae, x0)[..., :height, :width]

    def encode_target(self, images: Tensor, condition: Condition) -> Tensor:
        """The mode of the VAE's latent."""
        return to_latent(self.pipeline.vae, self._whole(images))

    def features(self, images: Tensor, condition: Condition) -> list[Tensor]:
        """What the VAE encoder's blocks put out."""
        blocks = list(self.pipeline.vae.encoder.down_blocks)
        return capture_outputs(blocks, lambda: self.encode_target(images, condition))

    def _whole(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        return mirror_to(images, height + -height % self._stride, width + -width % self._stride)
