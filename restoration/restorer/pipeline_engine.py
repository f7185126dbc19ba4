"""The engine of diffusers pipelines: how one is called, and the facts about each kind that its signature does not show.

An engine takes one image and a list of seeds and returns an image for each seed. `Restorer` adds tiling, colour,
isolation and the order of candidates, so an engine holds nothing but the call. Networks and functions have
`module_engine.py`.

Pipelines are recognised by class name, subclasses included, without importing diffusers. The facts are those of
diffusers 0.42. Where one is wrong for your pipeline, pass it to `Restorer.from_pretrained`.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from restoration.restorer.image_io import RestorationError, pad_to_multiple, pre_upscale, unit_images
from restoration.restorer.network_state import described, option_values, switches_of
from restoration.restorer.rng import candidate_generator
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.model.shared_state import Undo, exclusive, shared_change
from zoomiqa_reward.rewards.code_reach import is_installed
from zoomiqa_reward.runs.provenance import versions
from zoomiqa_reward.runs.weights_digest import WeightsDigests

IMAGE_FORMS = ("unit", "signed", "pil")
CHECKED_STRIDE = 8
"""Stable Diffusion pipelines refuse other sides, whatever their autoencoder's factor."""
MASK = "mask_image"
"""Where an inpainting pipeline may draw: the one argument of a call that lies on the image's own grid."""
LDM_STRIDE = 32
"""The pipeline itself resizes a PIL image to multiples of this, silently; a tensor goes in as it is."""


@dataclass(frozen=True, kw_only=True)
class System:
    """How one kind of pipeline takes its image."""

    scale: int | None
    """How many times larger the output is than the input; None: as large as the input, so pre-upscale."""
    multiple_px: int
    """Input sides must be multiples of this, or the pipeline resizes the image silently (or fails)."""
    image_form: str
    """`unit`: BCHW tensor in [0, 1]; `signed`: in [-1, 1]; `pil`: one PIL image."""


def system_of(pipeline: Any) -> System:
    """Return what is known of a pipeline.

    LDMSuperResolutionPipeline does not normalise tensors, so it wants [-1, 1]. The SD-x4 upscaler works on the LR
    grid. The latent upscaler doubles. QwenImageEdit reads `image.size`, so it wants PIL. Everything else (ControlNet,
    img2img, FLUX, SD3, edit models) gives an image as large as the one that it gets.
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
    """Pixels of the image behind one cell of the denoiser's coarsest grid, in multiples of what pipelines check."""
    factor = math.lcm(int(getattr(pipeline, "vae_scale_factor", 1)), CHECKED_STRIDE)
    if getattr(pipeline, "transformer", None) is not None:
        return factor * 2  # latents are packed, or patched, two by two
    unet = getattr(pipeline, "unet", None)
    return factor if unet is None else factor * _factor(unet)


def _factor(model: Any) -> int:
    return int(2 ** (len(model.config.block_out_channels) - 1))


_FAILURES = (RuntimeError, ValueError, ArithmeticError, OSError)
"""What one candidate may fail with (out of memory, a size that a network cannot take); a TypeError is a bug."""


class Engine(Protocol):
    """How `Restorer` calls what it wraps."""

    name: str

    @property
    def scale(self) -> int | None:
        """Output over input; None until a first output has told."""

    deterministic: bool
    """True: the seed does not matter, so candidates are identical."""
    batches: bool
    """Whether several seeds in one call cost less than one call each."""
    prompts: frozenset[str]
    """Which of prompt and negative_prompt are understood."""

    @property
    def agreement_px(self) -> float | None:
        """Blur of `agreeing` where images are made to agree with their input; None where they are not."""

    def __call__(self, image: Tensor, seeds: Sequence[int], texts: dict[str, str]) -> list[Tensor]:
        """Return one float32 CHW image in [0, 1] a seed. Raises RestorationError."""
        ...

    def parts(self) -> dict[str, Any]:
        """Return what the fingerprint is made of."""
        ...


class PipelineEngine:
    """A diffusers pipeline, called with what its signature asks for."""

    deterministic = False

    def __init__(self, pipeline: Any, name: str, system: System, scale: int, kernel: str, call: dict[str, Any]) -> None:
        """kernel: how the image is enlarged first; "none" where the pipeline enlarges by itself.

        Raises ValueError for call arguments that the pipeline does not have, or that are set by the restorer, and
        where the pipeline says itself that it cannot work with its scheduler (`check_scheduler`).
        """
        self.pipeline, self.name, self.system, self.scale, self.kernel, self.call = (
            pipeline, name, system, scale, kernel, call,
        )  # fmt: skip
        self.batches = system.image_form != "pil"
        self._accepted = inspect.signature(type(pipeline).__call__).parameters
        self.prompts = frozenset({"prompt", "negative_prompt"} & set(self._accepted))
        if not {"image", "control_image"} & set(self._accepted):
            raise ValueError(f"{name} takes neither image= nor control_image=: it cannot restore an image")
        ours = {"image", "control_image", "generator", "output_type", "return_dict", "prompt", "negative_prompt"}
        for argument in call:
            if argument in ours:
                raise ValueError(f"{argument}= is set for each candidate; see Restorer.restore")
            if argument not in self._accepted:
                options = ", ".join(sorted(set(self._accepted) - ours - {"self", "kwargs"}))
                raise ValueError(f"{name} has no argument {argument!r}; it has {options}")
        self.agreement_px = getattr(pipeline.config, "agreement_px", None)
        self._digests = WeightsDigests()
        if hasattr(pipeline, "check_scheduler"):
            pipeline.check_scheduler()

    def __call__(self, image: Tensor, seeds: Sequence[int], texts: dict[str, str]) -> list[Tensor]:
        """See `Engine`. Sides are padded to what the pipeline needs, and the result cropped back."""
        if not self.batches and len(seeds) > 1:
            return [self(image, [seed], texts)[0] for seed in seeds]
        grown = pre_upscale(image, self.scale, self.kernel)
        padded = pad_to_multiple(grown, self.system.multiple_px)
        scheduler = getattr(self.pipeline, "scheduler", None)  # keeps its steps, and pipelines may share it
        alone = exclusive(self.pipeline) if scheduler is None else exclusive(self.pipeline, scheduler)
        quiet = hide_progress_bar(self.pipeline)
        with alone, failures_named(self.name), quiet, _configuration_kept(scheduler), torch.no_grad():
            output = self.pipeline(**self.arguments(padded, seeds, texts), **self._mask(image, grown))
        outputs = unit_images(output, self.name)
        if len(outputs) != len(seeds):
            raise RestorationError(f"{self.name} returned {len(outputs)} images for {len(seeds)} candidates")
        factor = self.scale if self.kernel == "none" else 1
        wanted = (padded.shape[1] * factor, padded.shape[2] * factor)
        for restored in outputs:
            if restored.shape[1:] != wanted:
                raise RestorationError(
                    f"{self.name} made {restored.shape[2]} x {restored.shape[1]} px of {padded.shape[2]} x "
                    f"{padded.shape[1]} px where {wanted[1]} x {wanted[0]} were expected; give the scale= and "
                    "pre_upscale= that it has"
                )
        height, width = image.shape[1] * self.scale, image.shape[2] * self.scale
        return [restored[:, :height, :width].contiguous() for restored in outputs]

    def arguments(self, padded: Tensor, seeds: Sequence[int], texts: dict[str, str]) -> dict[str, Any]:
        """Return the call's arguments by the pipeline's signature, for one image and several seeds."""
        batch = len(seeds)
        height, width = padded.shape[1:]
        image: Any = padded[None].repeat(batch, 1, 1, 1)
        if self.system.image_form == "signed":
            image = image * 2 - 1
        elif self.system.image_form == "pil":
            image = to_pil(padded)
        generators = [candidate_generator(seed) for seed in seeds]
        factor = self.scale if self.kernel == "none" else 1
        offered = {
            "image": image, "control_image": image, "num_images_per_prompt": 1,
            "generator": generators[0] if batch == 1 else generators, "output_type": "pt",
            "height": height * factor, "width": width * factor,
            # FLUX-Kontext would otherwise choose a size of its own.
            "max_area": height * width * factor * factor, "_auto_resize": False,
        } | {key: [text] * batch if batch > 1 else text for key, text in texts.items()}  # fmt: skip
        given = {key: value for key, value in self.call.items() if key != MASK}
        return {key: value for key, value in offered.items() if key in self._accepted} | given

    def _mask(self, image: Tensor, grown: Tensor) -> dict[str, Tensor]:
        """Return the mask of an inpainting pipeline, enlarged and padded as the image is; a pipeline would stretch it.

        Raises RestorationError for one of another size than the image or its enlargement.
        """
        if MASK not in self.call:
            return {}
        mask = load_image(self.call[MASK])[:1]
        if mask.shape[1:] == image.shape[1:]:
            mask = pre_upscale(mask, grown.shape[1] // image.shape[1], "nearest")
        if mask.shape[1:] != grown.shape[1:]:
            raise RestorationError(
                f"{MASK} has {mask.shape[2]} x {mask.shape[1]} px, the image {image.shape[2]} x {image.shape[1]}: give "
                "one of that size, or as large as the restoration; restore images of other sizes with their own"
            )
        return {MASK: pad_to_multiple(mask, self.system.multiple_px)[None]}

    def parts(self) -> dict[str, Any]:
        """See `Engine`. Each component by class, configuration, weights and what was switched on."""
        components: dict[str, Any] = {"class": type(self.pipeline).__name__, "system": repr(self.system)}
        for key, component in sorted(self.pipeline.components.items()):
            config = getattr(component, "config", None)
            shown = config.to_dict() if config is not None and hasattr(config, "to_dict") else dict(config or {})
            # Where it was loaded from and by what: of no effect on images, and different in memory and from disk.
            config = {k: v for k, v in shown.items() if not k.startswith("_") and k != "transformers_version"}
            components[key] = {
                "class": type(component).__name__,
                "config": config,
                "weights": self._digests.of(component) if isinstance(component, nn.Module) else None,
            }
            if switches := switches_of(component):
                components[key]["switches"] = switches
        settings = {
            k: v for k, v in dict(self.pipeline.config).items() if k not in components and not k.startswith("_")
        }
        options = {"settings": settings, "scale": self.scale, "kernel": self.kernel,
               "call": option_values(self.call), "diffusers": versions("diffusers")["diffusers"]}  # fmt: skip
        kind = type(self.pipeline)
        own_code = {} if is_installed(kind.__module__) else {"code": described(kind)}
        return components | options | own_code


@contextmanager
def failures_named(name: str) -> Iterator[None]:
    """Turn what one candidate may fail with into a RestorationError that names the restorer."""
    try:
        yield
    except RestorationError:
        raise
    except _FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RestorationError(f"{name}: {reason}") from error


@contextmanager
def _configuration_kept(scheduler: Any) -> Iterator[None]:
    """Put a scheduler's configuration back: DPMSolverSinglestep changes its own to fit the steps of a call.

    Its images would follow from earlier calls, and its restorer would be another one after the first.
    """
    before = dict(getattr(scheduler, "config", {}))
    try:
        yield
    finally:
        if before and dict(scheduler.config) != before:
            scheduler.register_to_config(**before)


@contextmanager
def hide_progress_bar(pipeline: Any) -> Iterator[None]:
    """Switch a pipeline's progress bar off for one call: a run has a bar of its own."""

    def make() -> Undo:
        before = vars(pipeline).get("_progress_bar_config")
        pipeline._progress_bar_config = {**(before or {}), "disable": True}

        def undo() -> None:
            if before is None:
                del pipeline._progress_bar_config
            else:
                pipeline._progress_bar_config = before

        return undo

    with shared_change(pipeline, "quiet", make):
        yield
