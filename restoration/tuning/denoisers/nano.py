"""The embedded `NanoSRPipeline`: x0 is the pixel-unshuffled residual to bicubic, at the size of the LR image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from restoration.tuning.denoisers.base import Condition, Denoiser, capture_outputs, pad_to
from restoration.tuning.sampler.transitions import NoisePath, Schedule


def build(pipeline: Any) -> Denoiser:
    """Return its denoiser."""
    return NanoDenoiser(pipeline)


class NanoDenoiser:
    """See `Denoiser`."""

    module_name = "unet"
    lora_targets: tuple[str, ...] = ()

    def __init__(self, pipeline: Any) -> None:
        from restoration.nano.pipeline import RESIDUAL_CHANNELS, SCALE

        self.pipeline, self.module = pipeline, pipeline.unet
        self.restorer_options: dict[str, float | str] = {}
        self.schedule = Schedule(pipeline.scheduler)
        self.scale = self.patch_px = SCALE
        self._channels = RESIDUAL_CHANNELS

    def encode(self, lq: Tensor, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Condition:
        """The padded image; there is no prompt and nothing random in it."""
        return Condition(lq=lq, given={"padded": self.pipeline.pad(lq.float())})

    def path(self, num_steps: int) -> NoisePath:
        """See `Denoiser`."""
        return self.schedule.path(num_steps)

    def noise_shape(self, condition: Condition) -> tuple[int, ...]:
        """See `Denoiser`."""
        return (self._channels, *condition.given["padded"].shape[-2:])

    def begin(self, noise: Tensor, condition: Condition, path: NoisePath) -> Tensor:
        """Pure noise."""
        return noise

    def predict(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser`."""
        joined = self.pipeline.condition(condition.given["padded"], x_t)
        time = time.to(x_t.device)
        return self.pipeline.as_velocity(self.module(joined.to(self.module.dtype), time).sample, x_t, time)

    def decode(self, x0: Tensor, condition: Condition) -> Tensor:
        """The pipeline's own last step: cropped to the LR image's size, and agreeing with it."""
        return self.pipeline.finished(x0.float(), condition.given["padded"], condition.lq)

    def encode_target(self, images: Tensor, condition: Condition) -> Tensor:
        """The residual; what the padding adds is padded with the image's edge, as the LR image's is."""
        from restoration.nano.pipeline import to_residual

        padded = condition.given["padded"]
        whole = pad_to(images, *(self.scale * side for side in padded.shape[-2:]))
        return to_residual(whole, padded, self.pipeline.config.residual_std)

    def features(self, images: Tensor, condition: Condition) -> list[Tensor]:
        """What the U-Net's encoding half makes of the noiseless residual at time 0."""
        x0 = self.encode_target(images, condition)
        return capture_outputs(list(self.module.down_blocks), lambda: self.predict(x0, torch.tensor(0), condition))
