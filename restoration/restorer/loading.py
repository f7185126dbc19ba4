"""From what a caller names (the embedded pipeline, a folder, a hub id, an object) to the engine that runs it."""

import json
import operator
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, SupportsIndex

import torch
from torch import Tensor, nn

from restoration.restorer.image_io import VALUE_RANGES, check_choice
from restoration.restorer.module_engine import CallableEngine, ModuleEngine
from restoration.restorer.pipeline_engine import IMAGE_FORMS, PipelineEngine, system_of
from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.model.numerics import callers_precision
from zoomiqa_reward.rewards.argument_order import require_object

ALIGNMENT = 64
"""Bytes: torch's own allocations start at multiples of this."""
NANO = Path(__file__).parents[1] / "checkpoints" / "nano"


class Pipeline(Protocol):
    """A diffusers pipeline."""

    @property
    def components(self) -> dict[str, Any]:
        """Its parts by name."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast its networks."""


class Descriptor(Protocol):
    """A network as spandrel loads it."""

    scale: int
    model: nn.Module


RestorerSource = str | Path | Pipeline | nn.Module | Descriptor | Callable[..., Tensor]
"""What `Restorer.from_pretrained` takes."""


class PipelineError(ZoomIQAError, OSError):
    """A restorer's pipeline that cannot be found or read; the message names it and the way out."""


@callers_precision()
def load_pipeline(source: str | Path, *, dtype: torch.dtype | None = None) -> Any:
    """Return the diffusers pipeline that `source` names, in float32 unless told otherwise, on the CPU.

    "nano" is the embedded one; a folder holds `model_index.json`; anything else is a hub id. A pipeline class of our
    own is recognised by the name in its `model_index.json`; no code that lies beside weights is ever run.
    Raises PipelineError (no such folder, no embedded weights, damaged files, a hub that is out of reach), and
    ImportError without diffusers.
    """
    folder = NANO if str(source) == "nano" else Path(source)
    dtype = dtype or torch.float32
    try:
        from diffusers import DiffusionPipeline
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError("restorers need diffusers: pip install 'zoomiqa-reward[restoration]'") from error
    index = folder / "model_index.json"
    if index.is_file():
        return _aligned(_read(lambda: _class_of(index).from_pretrained(folder, dtype=dtype), folder))
    if folder == NANO:
        raise PipelineError(
            "the embedded restorer 'nano' is not in this installation (restoration/checkpoints/nano); reinstall "
            "zoomiqa-reward, or name another pipeline: a hub id, or a folder with model_index.json"
        )
    if folder.exists() or len(Path(source).parts) != 2 or Path(source).is_absolute():
        raise PipelineError(f"{source}: no 'nano', no folder with model_index.json, and no hub id (owner/name)")
    # First the index alone: out of reach, diffusers would print a traceback of its own.
    _read(lambda: hf_hub_download(str(source), "model_index.json"), source)
    return _aligned(_read(lambda: DiffusionPipeline.from_pretrained(str(source), dtype=dtype), source))


def _read(load: Callable[[], Any], source: str | Path) -> Any:
    try:
        return load()
    except Exception as error:  # whatever diffusers, transformers, safetensors and the hub's client raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        way_out = "copy or save the whole pipeline again" if Path(source).exists() else (
            "check the name and the network, or download it where there is one and give the folder"
        )  # fmt: skip
        raise PipelineError(f"{source}: this pipeline cannot be loaded: {kind}{first}; {way_out}") from error


def _aligned(pipeline: Any) -> Any:
    """Copy weights that the file maps to odd addresses: kernels choose by alignment, and the last bits follow.

    So a pipeline gives the same bits however it was loaded (measured: up to 1e-6 apart otherwise, on a CPU).
    """
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            for tensor in (*component.parameters(), *component.buffers()):
                if tensor.data_ptr() % ALIGNMENT:
                    tensor.data = tensor.data.clone()
    return pipeline


def _class_of(index: Path) -> Any:
    from diffusers import DiffusionPipeline

    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if name == "NanoSRPipeline":
        from restoration.nano.pipeline import NanoSRPipeline

        return NanoSRPipeline
    return DiffusionPipeline


def is_pipeline(source: object) -> bool:
    """Return whether `source` is a diffusers pipeline, without importing diffusers to ask."""
    return any(kind.__name__ == "DiffusionPipeline" for kind in type(source).__mro__)


def refuse(what: str, **arguments: object) -> None:
    """Raise ValueError where an argument is given that `what` has no use for."""
    for key, value in arguments.items():
        if value is not None:
            raise ValueError(f"{key}={value!r}: {what} has no such argument")


def pipeline_engine(
    pipeline: Any, *, name: str | None, scale: int | None, device: str | torch.device | None,
    dtype: torch.dtype | None, pre_upscale: str,
    image_form: str | None, multiple_px: int | None, call: dict[str, Any],
) -> PipelineEngine:  # fmt: skip
    """Return the engine of a pipeline; the arguments are those of `Restorer.from_pretrained`."""
    name = name or type(pipeline).__name__
    if "num_inference_steps" in call:  # with none, many pipelines decode their first noise without a word
        call = call | {"num_inference_steps": _whole("steps", call["num_inference_steps"])}
    system = system_of(pipeline)
    if image_form is not None:
        check_choice("image_form", image_form, IMAGE_FORMS)
        system = replace(system, image_form=image_form)
    if multiple_px is not None:
        system = replace(system, multiple_px=_whole("multiple_px", multiple_px))
    if system.scale is not None:
        if scale not in (None, system.scale) or pre_upscale not in ("auto", "none"):
            raise ValueError(
                f"scale={scale}, pre_upscale={pre_upscale!r}: {name} enlarges {system.scale} times by itself"
            )
        scale, kernel = system.scale, "none"
    else:
        if scale is None:
            raise ValueError(
                f"scale=None: {name} does not say how many times to enlarge: give it, as in "
                "Restorer.from_pretrained(pipe, scale=4) or --scale 4"
            )
        kernel = "bicubic" if pre_upscale == "auto" else pre_upscale
    if device is not None or dtype is not None:
        pipeline.to(device=device, dtype=dtype)
    return PipelineEngine(pipeline, name, system, _whole("scale", scale), kernel, call)


def plain_engine(
    source: Any, *, name: str | None, scale: int | None, device: str | torch.device | None,
    dtype: torch.dtype | None, pre_upscale: str,
    multiple_px: int | None, deterministic: bool | None, fingerprint: str | None, value_range: str | None = None,
) -> ModuleEngine | CallableEngine:  # fmt: skip
    """Return the engine of a network, a spandrel descriptor or a function; arguments as above."""
    if pre_upscale not in ("auto", "none"):
        raise ValueError(f"pre_upscale={pre_upscale!r}: a network or a function gets the image as it is")
    value_range = "unit" if value_range is None else value_range
    check_choice("value_range", value_range, tuple(VALUE_RANGES))
    scale = None if scale is None else _whole("scale", scale)
    require_object("source", source)
    is_descriptor = isinstance(getattr(source, "model", None), nn.Module) and hasattr(source, "scale")
    if isinstance(source, nn.Module) or is_descriptor:
        refuse("a network", fingerprint=fingerprint)
        if device is not None or dtype is not None:
            source.to(device=device, dtype=dtype)
        network = source.model if is_descriptor and not isinstance(source, nn.Module) else source
        multiple = 1 if multiple_px is None else _whole("multiple_px", multiple_px)
        return ModuleEngine(source, name or type(network).__name__, scale, multiple, deterministic, value_range)
    if not callable(source):
        raise TypeError(
            f"source={type(source).__name__}: must be 'nano', a hub id, a folder, a diffusers pipeline, a "
            "torch.nn.Module, or a function of a CHW image"
        )
    refuse("a function", multiple_px=multiple_px, device=device, dtype=dtype)
    own_name = getattr(source, "__name__", None) or type(source).__name__
    return CallableEngine(source, name or own_name, scale, deterministic, fingerprint, value_range)


def _whole(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or operator.index(value) < 1:
        raise ValueError(f"{name}={value!r}: must be 1, 2, 3, ...")
    return operator.index(value)
