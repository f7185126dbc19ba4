"""What an algorithm sees of a pipeline: a `Denoiser`.

A pipeline of your own is a class with these members, and `tune(..., denoiser=YourDenoiser(pipeline))`. To ship one, add
a file with `build(pipeline, **options)` and its line in `PIPELINES`.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from restoration.restorer.image_io import mirrored
from restoration.tuning.config import TuneConfig
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
    restorer_options: dict[str, float | str]
    """Options of `Restorer.from_pretrained` with which the pipeline's own call restores as this denoiser does: JSON
    values such as guidance_scale. `restorer_options_of` adds those of the sampler."""

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
        f"{names[0]} cannot be tuned: known are {', '.join(sorted(PIPELINES))}; for another one write a class with "
        "the members of `restoration.tuning.denoisers.base.Denoiser`, and give tune(denoiser=) an object of it"
    )


def restorer_options_of(denoiser: Denoiser, config: TuneConfig) -> dict[str, float | str]:
    """Return the options of `Restorer.from_pretrained` with which the pipeline restores as it is tuned and monitored.

    Those of the denoiser, and of the sampler's steps, eta and temperature those that the pipeline's call takes.
    Raises ValueError for a temperature that the call cannot take: the scored images would not be those that it makes.
    """
    accepted = inspect.signature(type(denoiser.pipeline).__call__).parameters
    if config.temperature != 1 and "temperature" not in accepted:
        raise ValueError(
            f"temperature={config.temperature}: {type(denoiser.pipeline).__name__} always draws with all of its noise, "
            "at temperature 1. The nano_* recipes are for the embedded restorer; take the sdx4_* recipe of that "
            "algorithm for other pipelines, with pipeline= or --restorer, or set temperature=1"
        )
    sampler: dict[str, tuple[str, float]] = {"steps": ("num_inference_steps", config.steps), "eta": ("eta", config.eta),
               "temperature": ("temperature", config.temperature)}  # fmt: skip
    taken: dict[str, float | str] = {name: value for name, (argument, value) in sampler.items() if argument in accepted}
    return taken | denoiser.restorer_options


class _Autocasting:
    """A denoiser whose `predict` runs under an autocast; everything else is the denoiser's own."""

    def __init__(self, denoiser: Denoiser, autocast: Callable[[], AbstractContextManager[object]]) -> None:
        self.denoiser, self.autocast = denoiser, autocast

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def predict(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """See `Denoiser`."""
        with self.autocast():
            return self.denoiser.predict(x_t, time, condition)


def with_autocast(denoiser: Denoiser, autocast: Callable[[], AbstractContextManager[object]]) -> Denoiser:
    """Return the denoiser with `predict` under that context, and nothing else: an autoencoder in bfloat16 would
    change images by several 8-bit levels.
    """
    plain = denoiser.denoiser if isinstance(denoiser, _Autocasting) else denoiser
    return cast(Denoiser, _Autocasting(plain, autocast))


def require_denoiser(denoiser: Denoiser) -> None:
    """Raise ValueError that names what an object lacks to be a `Denoiser`."""
    members = [*Denoiser.__annotations__, *(name for name in vars(Denoiser) if not name.startswith("_"))]
    if missing := [name for name in members if not hasattr(denoiser, name)]:
        raise ValueError(
            f"denoiser={type(denoiser).__name__} lacks {', '.join(missing)}; `restoration.tuning.denoisers.base."
            "Denoiser` says what each of them is"
        )


def freeze(pipeline: Any) -> None:
    """Switch every part of a pipeline to evaluation mode, without gradients: dropout would spoil re-scoring."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)


def pad_to(images: Tensor, height: int, width: int) -> Tensor:
    """Return BCHW images as float32, their far edges repeated up to that size.

    Raises ValueError for images that are larger: padding by less than nothing would cut them.
    """
    _require_room(images, height, width)
    space = (0, width - images.shape[-1], 0, height - images.shape[-2])
    return nn.functional.pad(images.float(), space, mode="replicate")


def mirror_to(images: Tensor, height: int, width: int) -> Tensor:
    """Return BCHW images as float32, mirrored up to that size, as `Restorer` pads what it gives to a pipeline.

    Raises ValueError as `pad_to`.
    """
    _require_room(images, height, width)
    return mirrored(images.float(), height, width)


def _require_room(images: Tensor, height: int, width: int) -> None:
    if images.shape[-2] > height or images.shape[-1] > width:
        raise ValueError(
            f"images of {images.shape[-1]} x {images.shape[-2]} px cannot be padded to {width} x {height}: give images "
            "as large as the pipeline makes of the low-quality image"
        )


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
