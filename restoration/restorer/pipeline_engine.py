"""How a restoration system is called: the interface of an engine, and the engine of diffusers pipelines.

An engine takes one picture and a list of seeds and gives a picture for each seed; `Restorer` adds tiling, colour,
isolation and the order of candidates, so that engines stay about the call alone. The others: `networks.py`.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from restoration.restorer.image_io import RestorationError, pad_to_multiple, pre_upscale, unit_images
from restoration.restorer.pipeline_facts import System
from restoration.restorer.rng import candidate_generator
from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.model.shared_state import Undo, exclusive, shared_change
from zoomiqa_reward.runs.weights_digest import WeightsDigests

_FAILURES = (RuntimeError, ValueError, ArithmeticError, OSError)
"""What one candidate may fail with (out of memory, a size that a network cannot take); a TypeError is a bug."""


class Engine(Protocol):
    """How `Restorer` calls what it wraps."""

    name: str
    scale: int | None
    """Output over input; None until a first output has told."""
    deterministic: bool
    """True: the seed does not matter, so candidates are identical."""
    batches: bool
    """Whether several seeds in one call cost less than one call each."""
    prompts: frozenset[str]
    """Which of prompt and negative_prompt are understood."""
    agreement_px: float | None
    """Blur of `agreeing` where pictures are made to agree with their input; None where they are not."""

    def __call__(self, image: Tensor, seeds: Sequence[int], texts: dict[str, str]) -> list[Tensor]:
        """Return one float32 CHW picture in [0, 1] a seed. Raises RestorationError."""
        ...

    def parts(self) -> dict[str, Any]:
        """Return what the fingerprint is made of."""
        ...


class PipelineEngine:
    """A diffusers pipeline, called with what its signature asks for."""

    deterministic = False

    def __init__(self, pipeline: Any, name: str, system: System, scale: int, kernel: str, call: dict[str, Any]) -> None:
        """kernel: how the picture is enlarged first; "none" where the pipeline enlarges by itself.

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
            raise ValueError(f"{name} takes neither image= nor control_image=: it cannot restore a picture")
        ours = {"image", "control_image", "generator", "output_type", "return_dict", "prompt", "negative_prompt"}
        for argument in call:
            if argument in ours:
                raise ValueError(f"{argument}= is set for each candidate; see Restorer.restore")
            if argument not in self._accepted:
                known = ", ".join(sorted(set(self._accepted) - ours - {"self", "kwargs"}))
                raise ValueError(f"{name} has no argument {argument!r}; it has {known}")
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
        with alone, failures_named(self.name), hide_progress_bar(self.pipeline), torch.no_grad():
            output = self.pipeline(**self.arguments(padded, seeds, texts))
        found = unit_images(output, self.name)
        if len(found) != len(seeds):
            raise RestorationError(f"{self.name} returned {len(found)} pictures for {len(seeds)} candidates")
        own = self.scale if self.kernel == "none" else 1
        wanted = (padded.shape[1] * own, padded.shape[2] * own)
        for picture in found:
            if picture.shape[1:] != wanted:
                raise RestorationError(
                    f"{self.name} made {picture.shape[2]} x {picture.shape[1]} px of {padded.shape[2]} x "
                    f"{padded.shape[1]} px where {wanted[1]} x {wanted[0]} were expected; give the scale= and "
                    "pre_upscale= that it has"
                )
        height, width = image.shape[1] * self.scale, image.shape[2] * self.scale
        return [picture[:, :height, :width].contiguous() for picture in found]

    def arguments(self, padded: Tensor, seeds: Sequence[int], texts: dict[str, str]) -> dict[str, Any]:
        """Return the call's arguments by the pipeline's signature, for one picture and several seeds."""
        batch = len(seeds)
        height, width = padded.shape[1:]
        picture: Any = padded[None].repeat(batch, 1, 1, 1)
        if self.system.image_form == "signed":
            picture = picture * 2 - 1
        elif self.system.image_form == "pil":
            picture = to_pil(padded)
        generators = [candidate_generator(seed) for seed in seeds]
        own = self.scale if self.kernel == "none" else 1
        offered = {
            "image": picture, "control_image": picture, "num_images_per_prompt": 1,
            "generator": generators[0] if batch == 1 else generators, "output_type": "pt",
            "height": height * own, "width": width * own,
            # FLUX-Kontext would otherwise choose a size of its own.
            "max_area": height * width * own * own, "_auto_resize": False,
        } | {key: [text] * batch if batch > 1 else text for key, text in texts.items()}  # fmt: skip
        return {key: value for key, value in offered.items() if key in self._accepted} | self.call

    def parts(self) -> dict[str, Any]:
        """See `Engine`. Every component by class, configuration and weights; the scheduler is one."""
        found: dict[str, Any] = {"class": type(self.pipeline).__name__, "system": repr(self.system)}
        for key, component in sorted(self.pipeline.components.items()):
            config = getattr(component, "config", None)
            shown = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
            # Where it was loaded from and by what: of no effect on pictures, and different in memory and from disk.
            config = {k: v for k, v in shown.items() if not k.startswith("_") and k != "transformers_version"}
            found[key] = {
                "class": type(component).__name__,
                "config": config,
                "weights": self._digests.of(component) if isinstance(component, nn.Module) else None,
            }
        settings = {k: v for k, v in dict(self.pipeline.config).items() if k not in found and not k.startswith("_")}
        own = {"settings": settings, "scale": self.scale, "kernel": self.kernel, "call": self.call,
               "diffusers": _version("diffusers")}  # fmt: skip
        return found | own


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


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
