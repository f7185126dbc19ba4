"""Loading a quality model: the embedded `nano`, a folder, a hub id, with or without a LoRA adapter, one code path.

Nothing here knows which model it loads: what a checkpoint needs beyond transformers' own files stands in its
`zoomiqa_protocol.json`.
"""

import json
import os
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.model.devices import find_device
from zoomiqa_reward.model.pixels import factor_of
from zoomiqa_reward.protocol.level_words import LEVEL_WORDS, level_words
from zoomiqa_reward.protocol.spec import PROTOCOL_FILE, Protocol

OFFICIAL = "Ethanliang99/Zoom-IQA-7B"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


class CheckpointError(ZoomIQAError, ValueError):
    """A checkpoint that cannot be found, read or asked; the message says what to do about it."""


DeviceMap = str | int | torch.device | Mapping[str, str | int | torch.device]
"""Where the weights go, as transformers' `device_map`."""


class Quantization(typing.Protocol):
    """A quantisation of transformers, such as `BitsAndBytesConfig`."""

    def to_dict(self) -> dict[str, object]:
        """Return its settings."""


QuantizationConfig = Quantization | Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model and all that is needed to ask it. Parameters are frozen; the model is in eval mode."""

    name: str
    model: Any
    tokenizer: Any
    """Holds a chat template; pads on the left."""
    image_processor: Any
    """The torchvision backend: it keeps autograd."""
    protocol: Protocol
    source: Path | str
    """The folder, or the hub id."""
    commit: str | None
    """The hub's commit; None for a folder, whose files are hashed instead."""
    adapter: str | None
    quantization: str | None

    @property
    def _embeddings(self) -> torch.Tensor:
        weight: torch.Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def device(self) -> torch.device:
        """Where the inputs go: the device of the token embeddings."""
        return self._embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self._embeddings.dtype

    @property
    def image_token_id(self) -> int:
        """The placeholder token that one image feature replaces."""
        return int(self.model.config.image_token_id)


def embedded() -> list[str]:
    """Return the names of the checkpoints that the package brings."""
    return sorted(path.parent.name for path in embedded_folder("").glob("*/config.json"))


def embedded_folder(name: str) -> Path:
    """Return the folder of a checkpoint that the package brings."""
    return Path(str(resources.files("zoomiqa_reward"))) / "checkpoints" / name


def load_checkpoint(
    name_or_path: str | os.PathLike[str] = "nano",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    adapter: str | os.PathLike[str] | None = None,
    protocol: str | os.PathLike[str] | Protocol | None = None,
    revision: str | None = None,
    device_map: DeviceMap | None = None,
    quantization_config: QuantizationConfig | None = None,
    attn_implementation: str | None = None,
) -> Checkpoint:
    """Return the checkpoint, frozen and in eval mode.

    device: CUDA if there is one, else the CPU. dtype: float32 on the CPU, bfloat16 on CUDA; weights stored in half
    precision are cast up. adapter: a LoRA folder or hub id, merged into the weights unless these are quantised (the
    forward is then the plain model's). protocol: a path, a Protocol or `level-words`; otherwise the file beside the
    adapter, by which that was trained, then the one beside the weights. Only safetensors are read and no code from a
    checkpoint is run.

    Raises CheckpointError: unknown name, hub out of reach, no protocol, no vision-language model, no safetensors,
    weights or adapter that do not fit, token embeddings that are offloaded; ProtocolError: a protocol file that breaks
    a rule.
    """
    source = _locate(name_or_path)
    device = find_device(device)
    dtype = find_dtype(dtype, device)
    spec = _find_protocol(source, revision, adapter, protocol)  # first: it is cheap and the likeliest to be missing
    model = _load_model(
        source, revision, dtype=dtype, device_map=device_map, quantization_config=quantization_config,
        attn_implementation=attn_implementation,
    )  # fmt: skip
    if adapter is not None:
        model = _with_adapter(model, adapter, merge=quantization_config is None)
    if device_map is None and quantization_config is None:
        model = model.to(device)
    if model.get_input_embeddings().weight.is_meta:
        raise CheckpointError(
            f"{source}: device_map={device_map!r} leaves the token embeddings on no device, where the inputs go: keep "
            "model.language_model.embed_tokens on one, and offload layers"
        )
    model.eval().requires_grad_(False)
    tokenizer, image_processor = _load_readers(source, revision, model)
    return Checkpoint(
        name=_short_name(name_or_path, adapter),
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        protocol=spec,
        source=source,
        commit=getattr(model.config, "_commit_hash", None) if isinstance(source, str) else None,
        adapter=None if adapter is None else str(adapter),
        quantization=None if quantization_config is None else _describe(quantization_config),
    )


def require_checkpoint(
    name_or_path: str | os.PathLike[str], *, adapter: str | os.PathLike[str] | None = None,
    protocol: str | os.PathLike[str] | Protocol | None = None, revision: str | None = None,
) -> None:  # fmt: skip
    """Raise what `load_checkpoint` would raise for a name, weights or a protocol that are not there; loads nothing."""
    source = _locate(name_or_path)
    _find_protocol(source, revision, adapter, protocol)
    if isinstance(source, Path):
        _require_sound_weights(source)


def _describe(quantization_config: QuantizationConfig) -> str:
    to_dict = getattr(quantization_config, "to_dict", None)
    return json.dumps(to_dict() if to_dict else quantization_config, sort_keys=True, default=str)


def _short_name(name: str | os.PathLike[str], adapter: str | os.PathLike[str] | None) -> str:
    def short(item: str | os.PathLike[str]) -> str:
        return Path(item).resolve().name if Path(item).is_dir() else str(item)

    return short(name) if adapter is None else f"{short(name)}+{short(adapter)}"


def _locate(name: str | os.PathLike[str]) -> Path | str:
    text = os.fspath(name)
    if text in embedded():
        return embedded_folder(text)
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path}: this folder holds no config.json, so it is no checkpoint")
        names = {file.name for file in path.iterdir()}
        if not any(file.endswith(".safetensors") for file in names):
            stale = sorted(file for file in names if file.endswith((".bin", ".pt", ".pth")))
            contents = f"only {', '.join(stale)}, which can run code when read" if stale else "no weights"
            raise CheckpointError(f"{path}: holds {contents}; save the model as .safetensors")
        return path
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or text.endswith("/"):
        embedded_names = ", ".join(embedded()) or "none in this build"
        raise CheckpointError(
            f"{text!r} is no folder, no hub id (owner/name) and not embedded (embedded: {embedded_names})"
        )
    return text


def find_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the type of the weights; by default bfloat16 on CUDA, else float32. Raises CheckpointError."""
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise CheckpointError(f"dtype {dtype!r}: use float32, bfloat16 or float16")
    return resolved


def _find_protocol(
    source: Path | str, revision: str | None, adapter: str | os.PathLike[str] | None, given: Any
) -> Protocol:
    if isinstance(given, Protocol):
        return given
    if given == LEVEL_WORDS:
        return level_words()
    if given is not None:
        return Protocol.load(given)
    beside_adapter = None if adapter is None else _protocol_beside(_folder_or_id(adapter), None)
    protocol = beside_adapter or _protocol_beside(source, revision)
    if protocol is None:
        way_out = "pass protocol=PATH"
        if str(source) == OFFICIAL or Path(str(source)).name == OFFICIAL.split("/")[1]:
            way_out = (
                "its authors' prompts are not ours to ship. Run `zoomiqa protocol import PATH` on the `protocol.py` "
                "of the official evaluator and pass the file that it writes as protocol="
            )
        raise CheckpointError(f"{source} brings no {PROTOCOL_FILE}, so how to ask it is unknown: {way_out}")
    return protocol


def _folder_or_id(name: str | os.PathLike[str]) -> Path | str:
    path = Path(os.fspath(name)).expanduser()
    return path if path.is_dir() else os.fspath(name)


def _protocol_beside(source: Path | str, revision: str | None) -> Protocol | None:
    if isinstance(source, Path):
        return Protocol.load(source) if (source / PROTOCOL_FILE).is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        return Protocol.load(hf_hub_download(source, PROTOCOL_FILE, revision=revision))
    except LocalEntryNotFoundError as error:  # offline: a cached checkpoint without the file has none
        if source != OFFICIAL and not isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
            raise CheckpointError(_unreachable(source, error)) from error
        return None
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise CheckpointError(f"{source!r} is no hub id: {error}") from error
    except OSError as error:
        raise CheckpointError(_unreachable(source, error)) from error


def _unreachable(source: Path | str, error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(source, Path):
        return f"{source}: cannot be loaded: {first}; copy or save the whole checkpoint again"
    return (
        f"{source}: not on the hub, out of reach, gated or without .safetensors weights: {first}; check the name "
        "and the network, or download it where there is one and give the folder"
    )


def _require_sound_weights(folder: Path) -> None:
    """Raise CheckpointError naming a file of weights that cannot be read: cut short, or no safetensors at all."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: damaged or cut short ({error}); copy or download this file again"
            ) from error


def _load_model(source: Path | str, revision: str | None, **kwargs: Any) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    origin = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **origin)
    except (OSError, ValueError) as error:  # ValueError: a model type that transformers does not know
        raise CheckpointError(_unreachable(source, error)) from error
    if isinstance(source, Path):
        _require_sound_weights(source)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise CheckpointError(f"{source}: {config.model_type!r} is no vision-language model; a Qwen-VL one is needed")
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            source, config=config, use_safetensors=True, output_loading_info=True, **origin, **kwargs
        )
    except (OSError, RuntimeError, ImportError) as error:
        raise CheckpointError(_unreachable(source, error)) from error
    # transformers fills gaps with random numbers and only logs it: such a model would rate, at random.
    if gaps := sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys") or ()):
        raise CheckpointError(
            f"{source}: {len(gaps)} weights are missing or of a wrong shape, such as {gaps[0]}; copy or download it "
            "again"
        )
    if not hasattr(model.model, "get_rope_index") or not hasattr(config, "image_token_id"):
        raise CheckpointError(f"{source}: {config.model_type!r} has no 3-D positions; use a Qwen-VL, 2 to 3.5")
    return model


def _with_adapter(model: Any, adapter: str | os.PathLike[str], *, merge: bool) -> Any:
    from peft import PeftModel

    source = _folder_or_id(adapter)
    if isinstance(source, Path):
        if not (source / "adapter_model.safetensors").is_file():
            raise CheckpointError(f"{source}: holds no adapter_model.safetensors; save the adapter as .safetensors")
        _require_sound_weights(source)
    elif source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(f"adapter {source!r}: no such folder, and no hub id (owner/name); check the path")
    try:
        with warnings.catch_warnings():
            # peft only warns about missing keys; half an adapter is another model
            warnings.filterwarnings("error", message="Found missing adapter keys")
            # peft's own use of an older name of transformers; nothing that a caller can change
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            wrapped = PeftModel.from_pretrained(model, source, is_trainable=False, use_safetensors=True)
    except Exception as error:  # whatever peft, transformers and the hub's client raise
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"adapter {adapter}: does not fit this model or cannot be loaded: {reason}; give the model that it was "
            "trained on, or another adapter"
        ) from error
    # get_base_model keeps the LoRA layers inside the plain class, whose forward and generate are used either way
    return wrapped.merge_and_unload() if merge else wrapped.get_base_model()


def _load_readers(source: Path | str, revision: str | None, model: Any) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoTokenizer

    origin = {"revision": revision, "trust_remote_code": False}
    if isinstance(source, Path) and not any((source / name).is_file() for name in TOKENIZER_FILES):
        # transformers would make up a tokenizer without words
        raise CheckpointError(_no_reader(source, "tokenizer", TOKENIZER_FILES, FileNotFoundError("tokenizer.json")))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **origin)
    except Exception as error:  # the tokenizers library raises Exception itself on a damaged file
        raise CheckpointError(_no_reader(source, "tokenizer", TOKENIZER_FILES, error)) from error
    try:
        image_processor = AutoImageProcessor.from_pretrained(source, backend="torchvision", **origin)
    except Exception as error:  # KeyError, TypeError and more, by what is missing
        raise CheckpointError(_no_reader(source, "image processor", PROCESSOR_FILES, error)) from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _legacy_template(source, revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    vision = model.config.vision_config
    merged = int(vision.patch_size) * int(vision.spatial_merge_size)
    if getattr(image_processor, "backend", None) != "torchvision" or factor_of(image_processor) != merged:
        raise CheckpointError(
            f"{source}: its image processor does not fit a vision tower of {merged} px tokens; take the processor's "
            "files of the same model"
        )
    if tokenizer.convert_tokens_to_ids("<|image_pad|>") != model.config.image_token_id:
        raise CheckpointError(
            f"{source}: tokenizer and config disagree on the image token <|image_pad|>; take both files of one model"
        )
    return tokenizer, image_processor


def _no_reader(source: Path | str, what: str, files: tuple[str, ...], error: Exception) -> str:
    if isinstance(source, str):
        return _unreachable(source, error)
    held = [name for name in files if (source / name).is_file()]
    reason = " ".join(str(error).split())[:200] if held else f"no {' or '.join(files)}"
    return f"{source}: its {what} cannot be loaded ({reason}); copy that file from the model's own folder"


def _legacy_template(source: Path | str, revision: str | None) -> str:
    """Return the chat template of checkpoints that keep it in `chat_template.json`, beside the tokenizer's files."""
    from transformers.utils import cached_file

    file = cached_file(
        str(source), "chat_template.json", revision=revision,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    if file is None:
        raise CheckpointError(f"{source}: brings no chat template to write prompts with; copy it from its base model")
    template: str = json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"]
    return template
