"""What an algorithm sees of a pipeline: a `Denoiser`.

A new pipeline is one file with `build(pipeline, **options)` and its line in `PIPELINES`.
"""

import importlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from restoration.tuning.sampler.transitions import NoisePath, Schedule

PIPELINES = {
    "LDMSuperResolutionPipeline": "ldm",
    "NanoSRPipeline": "nano",
    "StableDiffusion3Img2ImgPipeline": "sd3",
    "StableDiffusionControlNetImg2ImgPipeline": "controlnet",
    "StableDiffusionControlNetPipeline": "controlnet",
    "StableDiffusionUpscalePipeline": "upscale",
}
"""The file of `restoration.tuning.denoisers` for each pipeline class; subclasses are found too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """What the denoiser is given beside the noisy signal; every tensor has the batch first."""

    lq: Tensor
    """BCHW in [0, 1]: the low-quality images as they are."""
    given: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lq)

    def rows(self, picked: Sequence[int]) -> "Condition":
        """Return those rows, in that order."""
        where = torch.tensor(list(picked), device=self.lq.device)
        return Condition(lq=self.lq[where], given={name: tensor[where] for name, tensor in self.given.items()})

    def repeat(self, count: int) -> "Condition":
        """Return the one row `count` times. Raises ValueError where there are more rows than one."""
        if len(self) != 1:
            raise ValueError(f"condition of {len(self)} rows: only a single one can be repeated")
        return self.rows([0] * count)


class Denoiser(Protocol):
    """A diffusion restorer, taken apart."""

    pipeline: Any
    module: nn.Module
    """The denoising network, the only part that is trained."""
    module_name: str
    """Its name in the pipeline, such as `unet`."""
    schedule: Schedule
    scale: int
    """Output over input."""
    patch_px: int
    """Period in output pixels at which grid artefacts would show."""
    lora_targets: tuple[str, ...]
    """Name endings of the layers that a LoRA goes on by default; empty: all linear layers and convolutions."""

    def encode(self, lq: Tensor, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Condition:
        """Return the condition of BCHW images in [0, 1]; a generator per row for what is random in it."""
        ...

    def path(self, num_steps: int) -> NoisePath:
        """Return the sampler's steps."""
        ...

    def noise_shape(self, condition: Condition) -> tuple[int, ...]:
        """Return the shape of one row's noise."""
        ...

    def begin(self, noise: Tensor, condition: Condition, path: NoisePath) -> Tensor:
        """Return x before the first step."""
        ...

    def predict(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Return the network's output as float32; `time` is one number, or one per row."""
        ...

    def decode(self, x0: Tensor, condition: Condition) -> Tensor:
        """Return the images, float32 BCHW in [0, 1]; the graph is kept."""
        ...

    def encode_target(self, images: Tensor, condition: Condition) -> Tensor:
        """Return the x0 that stands for BCHW images of the output's size."""
        ...

    def features(self, images: Tensor, condition: Condition) -> list[Tensor]:
        """Return feature maps BCHW of images, by the pipeline's own encoder, for style distances."""
        ...


def denoiser_of(pipeline: Any, **options: Any) -> Denoiser:
    """Return the denoiser of a diffusers pipeline. `options` go to its file's `build`.

    Raises ValueError for a pipeline class that is not in `PIPELINES`.
    """
    names = [kind.__name__ for kind in type(pipeline).__mro__]
    for name in names:
        if name in PIPELINES:
            module = importlib.import_module(f"restoration.tuning.denoisers.{PIPELINES[name]}")
            denoiser: Denoiser = module.build(pipeline, **options)
            freeze(pipeline)
            return denoiser
    raise ValueError(
        f"{names[0]} cannot be tuned: known are {', '.join(sorted(PIPELINES))}; a new one is a file in "
        "restoration/tuning/denoisers and a line of PIPELINES in restoration/tuning/denoisers/base.py"
    )


def freeze(pipeline: Any) -> None:
    """Switch every part of a pipeline to evaluation mode, without gradients: dropout would spoil re-scoring."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)


def pad_to(images: Tensor, height: int, width: int) -> Tensor:
    """Return BCHW images as float32, their far edges repeated up to that size."""
    space = (0, width - images.shape[-1], 0, height - images.shape[-2])
    return nn.functional.pad(images.float(), space, mode="replicate")


def capture_outputs(blocks: Sequence[nn.Module], call: Any) -> list[Tensor]:
    """Return the outputs of `blocks` (their first tensor) while `call()` runs, as float32."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).float())

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(keep).remove)
        call()
    return outputs
