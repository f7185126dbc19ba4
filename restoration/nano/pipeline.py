"""The embedded super-resolution pipeline (x4): diffusion of the pixel-unshuffled residual to bicubic.

A latent autoencoder small enough for two cores loses more detail than it leaves to restore. Here nothing is lost:
the denoiser works at the size of the LR image on the 48 channels that 4 x 4 pixels of residual make, and a residual
of zero is bicubic. Any image size works; it is padded to the denoiser's stride and cropped back.
Sources: DDIM (Song et al. 2021), zero terminal SNR with v-prediction (Lin et al. 2024), residual diffusion for
super-resolution (SRDiff, Li et al. 2022).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor, nn

from restoration.restorer.agreement import agreeing
from zoomiqa_reward.images.loading import ImageSources, load_images, to_pil
from zoomiqa_reward.model.shared_state import exclusive

SCALE = 4
RESIDUAL_CHANNELS = 3 * SCALE * SCALE
LARGEST_ETA = 1 - 3e-7
TEMPERATURE = 0.5
STEPS = 4
"""Fewer steps are nearer to the truth and nearer to each other. Chosen on held-out photographs, like the temperature
(docs/notes/restorer.md)."""
PREDICTIONS = ("v", "x0")


class NanoSROutput(NamedTuple):
    """What the pipeline returns."""

    images: Any
    """Tensor (B, 3, 4 h, 4 w) in [0, 1], or a list of PIL images."""


def build_unet(channels: Sequence[int] = (96, 160, 224), layers: int = 2) -> UNet2DModel:
    """Return the untrained denoiser: noisy residual and LR image in, v of the residual out, all at LR size."""
    return UNet2DModel(
        in_channels=RESIDUAL_CHANNELS + 3,
        out_channels=RESIDUAL_CHANNELS,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=16,
        add_attention=False,
    )


def build_scheduler() -> DDIMScheduler:
    """Return the noise schedule, for training and sampling alike."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def enlarge(image: Tensor) -> Tensor:
    """Return BCHW images enlarged by `SCALE` with bicubic interpolation, not clipped."""
    return nn.functional.interpolate(image, scale_factor=SCALE, mode="bicubic", align_corners=False)


def to_residual(hr: Tensor, lq: Tensor, std: float) -> Tensor:
    """Return (B, 48, h, w): what bicubic misses of `hr` (B, 3, 4 h, 4 w), over its standard deviation."""
    return nn.functional.pixel_unshuffle(hr - enlarge(lq), SCALE) / std


def from_residual(residual: Tensor, lq: Tensor, std: float) -> Tensor:
    """Return the image (B, 3, 4 h, 4 w) that a residual makes of `lq`, not clipped."""
    return enlarge(lq) + nn.functional.pixel_shuffle(residual * std, SCALE)


class NanoSRPipeline(DiffusionPipeline):
    """x4 super-resolution of any RGB image; stochastic, so that candidates differ."""

    model_cpu_offload_seq = "unet"
    decode_x0: Callable[[Tensor], Tensor] | None = None
    """While it samples: makes images of predicted residuals, for `integrations.diffusers.score_steps`."""

    def __init__(
        self, unet: UNet2DModel, scheduler: DDIMScheduler, residual_std: float = 0.06, predicts: str = "v",
        agreement_px: float | None = None,
    ) -> None:  # fmt: skip
        """residual_std: standard deviation of HR minus bicubic in the training data, pixel values 0..1.

        predicts: what the network puts out, "v" or "x0" (the clean residual; then an error of the network is missing
        detail and not noise left over). The scheduler gets v in both cases.
        agreement_px: blur of `agreeing`, which makes the image agree with its input at the end; None: it does not.

        Raises ValueError for another name, and a blur below 0.
        """
        super().__init__()
        if predicts not in PREDICTIONS:
            raise ValueError(f"predicts={predicts!r}: must be one of {', '.join(PREDICTIONS)}")
        if agreement_px is not None and not agreement_px >= 0:
            raise ValueError(f"agreement_px={agreement_px}: must be 0 or more, or None")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(residual_std=residual_std, predicts=predicts, agreement_px=agreement_px)

    @property
    def stride(self) -> int:
        """LR sides are padded to a multiple of this many pixels."""
        return int(2 ** (len(self.unet.config.block_out_channels) - 1))

    def condition(self, lq: Tensor, like: Tensor) -> Tensor:
        """Return the denoiser's input: noisy residual beside the LR image in [-1, 1]."""
        return torch.cat([like, (lq * 2 - 1).to(like.dtype)], dim=1)

    def velocity(self, lq: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """Return v as float32 for noisy residuals (B, 48, h, w) beside padded images; `time`: one, or one per row."""
        return self.as_velocity(self.unet(self.condition(lq, noisy).to(self.unet.dtype), time).sample, noisy, time)

    def as_velocity(self, output: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """Return the v that the network's output stands for."""
        output = output.float()
        if self.config.predicts == "v":
            return output
        alpha = self.scheduler.alphas_cumprod.to(noisy.device)[time].reshape(-1, 1, 1, 1)
        return (alpha.sqrt() * noisy - output) / (1 - alpha).sqrt()

    def pad(self, lq: Tensor) -> Tensor:
        """Return `lq` with its right and bottom edge mirrored up to the stride (repeated where it is too small)."""
        height, width = lq.shape[-2:]
        bottom, right = -height % self.stride, -width % self.stride
        mode = "reflect" if bottom < height and right < width else "replicate"
        return nn.functional.pad(lq, (0, right, 0, bottom), mode=mode)

    def check_scheduler(self) -> None:
        """Raise ValueError for a scheduler that this pipeline cannot sample with: it takes DDIM's steps on v."""
        kind, prediction_type = type(self.scheduler).__name__, self.scheduler.config.get("prediction_type")
        if not isinstance(self.scheduler, DDIMScheduler) or prediction_type != "v_prediction":
            raise ValueError(
                f"NanoSRPipeline with {kind} (prediction_type={prediction_type!r}): it samples with DDIM on v alone; "
                "set pipe.scheduler = restoration.nano.pipeline.build_scheduler()"
            )

    def finished(self, residual: Tensor, padded: Tensor, lq: Tensor) -> Tensor:
        """Return images (B, 3, 4 h, 4 w) in [0, 1] of clean residuals: cropped, and agreeing with `lq`."""
        height, width = lq.shape[-2:]
        image = from_residual(residual, padded, self.config.residual_std)[..., : SCALE * height, : SCALE * width]
        if self.config.agreement_px is not None:
            image = agreeing(image, lq, self.config.agreement_px)
        return image.clamp(0, 1)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageSources,
        num_inference_steps: int = STEPS,
        eta: float = 1.0,
        temperature: float = TEMPERATURE,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> NanoSROutput | tuple[Any]:
        """Enlarge `image` (PIL, path, array, CHW or BCHW tensor in [0, 1], or a list of equally large ones) by 4.

        eta: 0 deterministic after the first noise .. 1 as random as DDPM. temperature: factor of all noise; below 1
        trades diversity for fidelity. generator: one, or one for each image. output_type: "pil" or "pt".
        Several threads may call it; they wait for one another, since a scheduler keeps its steps.
        Raises ValueError for sizes that differ, numbers outside these ranges, an unknown output type, a list of
        generators of another length, or another scheduler.
        """
        self.check_scheduler()
        if output_type not in ("pil", "pt"):
            raise ValueError(f"output_type={output_type!r}: must be 'pil' or 'pt'")
        longest = self.scheduler.config.num_train_timesteps
        if num_inference_steps not in range(1, longest + 1):  # below 1 there would be no step, and noise is returned
            raise ValueError(f"num_inference_steps={num_inference_steps}: must be 1, 2, ... {longest}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta}: must be 0 to 1")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature={temperature}: must be a number, 0 or more")
        inputs = load_images(image)
        if len({tuple(p.shape) for p in inputs}) != 1:
            sizes = ", ".join(f"{p.shape[2]} x {p.shape[1]}" for p in inputs)
            raise ValueError(f"images of {sizes} px: all must be equally large; call once for each size")
        if isinstance(generator, list) and len(generator) != len(inputs):
            raise ValueError(f"generator: list of {len(generator)} for {len(inputs)} images; give one, or one for each")
        with exclusive(self.scheduler):
            out = self._sample(torch.stack(inputs), num_inference_steps, eta, temperature, generator)
        images: Tensor | list[Image.Image] = out if output_type == "pt" else [to_pil(x) for x in out.cpu()]
        return NanoSROutput(images) if return_dict else (images,)

    def _sample(
        self, images: Tensor, steps: int, eta: float, temperature: float,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor:  # fmt: skip
        """Return BCHW in [0, 1], 4 times as large."""
        lq = images.to(self.device, torch.float32)
        padded = self.pad(lq)
        shape = (len(lq), RESIDUAL_CHANNELS, *padded.shape[-2:])
        self.scheduler.set_timesteps(steps, device=lq.device)
        # At eta = 1 the first step's 1 - alpha - std^2 is 0, which rounding takes below 0 at 3, 7, 14, ... steps: NaN.
        eta = min(eta, LARGEST_ETA)
        residual = temperature * randn_tensor(shape, generator=generator, device=lq.device, dtype=torch.float32)
        self.decode_x0 = partial(self.finished, padded=padded, lq=lq)
        try:
            for step in self.progress_bar(self.scheduler.timesteps):
                velocity = self.velocity(padded, residual, step)
                # The scheduler would draw with its own scale, so the noise comes from here.
                noise = temperature * randn_tensor(shape, generator=generator, device=lq.device) if eta > 0 else None
                residual = self.scheduler.step(velocity, step, residual, eta=eta, variance_noise=noise).prev_sample
        finally:
            self.decode_x0 = None
        return self.finished(residual, padded, lq)
