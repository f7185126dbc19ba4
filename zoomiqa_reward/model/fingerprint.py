"""What makes two quality models the same reward: the key of every cache."""

import json
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from zoomiqa_reward.images.content import RULE
from zoomiqa_reward.model.checkpoint import Checkpoint, embedded, embedded_folder
from zoomiqa_reward.model.generate import end_tokens
from zoomiqa_reward.model.views import VIEWS_RULE
from zoomiqa_reward.rewards.identity import state_digest
from zoomiqa_reward.runs.digest import digest, file_digest, file_stamp
from zoomiqa_reward.runs.weights_digest import WeightsDigests

HASHED_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt")
LIBRARIES = ("torch", "torchvision", "transformers")


_DIGESTS = WeightsDigests()
_TOKENIZERS: WeakKeyDictionary[Any, tuple[list[object], str]] = WeakKeyDictionary()
"""Number of its tokens and its steps, which are quickly read, and the digest of all its rules, which takes a second."""
_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_NOT_COMPUTED = ("architectures", "transformers_version", "dtype", "use_cache")
"""Entries of a config that no rating follows from; `dtype` is a part of its own."""


def fingerprint_parts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the fingerprint is made of.

    Weights count as they are in memory, adapters included: a file that changes after loading, or training, cannot give
    one model the fingerprint of another. They are read whole at the first call and again after they changed. Hooks,
    and a `forward` of a module's own, count with their code; UnknownState is raised for one whose state cannot be read.
    """
    model = checkpoint.model
    return {
        "weights": _DIGESTS.of(model),
        "config": digest(json.dumps(_computed(model.config.to_dict()), sort_keys=True, default=str)),
        "tokenizer": _tokenizer_digest(checkpoint.tokenizer),
        "chat_template": digest(json.dumps(checkpoint.tokenizer.chat_template, sort_keys=True)),
        "end_tokens": end_tokens(checkpoint),
        "offloaded": _files(checkpoint) if any(tensor.is_meta for tensor in model.parameters()) else None,
        "quantization": checkpoint.quantization,
        "protocol": checkpoint.protocol.fingerprint,
        "preprocessing": digest(json.dumps(checkpoint.image_processor.to_dict(), sort_keys=True, default=str)),
        "dtype": str(checkpoint.dtype),
        "device": checkpoint.device.type,
        "precision": _precision(checkpoint.device),
        "content_rule": RULE,
        "views_rule": VIEWS_RULE,
        "attention": model.config.get_text_config()._attn_implementation,
        "versions": {name: version(name) for name in LIBRARIES},
        **_hooks(model),
    }


def _hooks(model: nn.Module) -> dict[str, str]:
    """Return the digest of what users have hooked to the modules, or set as their `forward`; nothing without."""
    hooks = [(name, module._forward_pre_hooks, module._forward_hooks) for name, module in model.named_modules()]
    held = {name: [list(before.values()), list(after.values())] for name, before, after in hooks if before or after}
    written = {name: _own_forward(module) for name, module in model.named_modules()}
    held |= {f"{name}.forward": [forward] for name, forward in written.items() if name and forward is not None}
    return {"hooks": state_digest(held)} if held else {}


def _own_forward(module: nn.Module) -> Any:
    """Return the `forward` that was set on this module alone; None without, and where accelerate moves its weights."""
    forward = None if hasattr(module, "_hf_hook") else vars(module).get("forward")
    return getattr(forward, "__func__", forward)  # a bound one reaches the module, whose weights are read already


def _computed(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config and those inside it, without where it lies and what made it."""
    kept = {key: value for key, value in config.items() if not str(key).startswith("_") and key not in _NOT_COMPUTED}
    return {str(key): _computed(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = tokenizer.backend_tokenizer
    steps = [getattr(backend, name) for name in _STEPS]
    stamp = [len(tokenizer), *(None if step is None else step.__getstate__() for step in steps)]
    if tokenizer not in _TOKENIZERS or _TOKENIZERS[tokenizer][0] != stamp:
        rules = json.loads(backend.to_str())
        kept = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}  # of its last call
        _TOKENIZERS[tokenizer] = stamp, digest(json.dumps(kept, sort_keys=True))
    return _TOKENIZERS[tokenizer][1]


def _precision(device: torch.device) -> dict[str, Any] | None:
    """What changes the last bits on a GPU: its kind, and whether products may round to TF32."""
    if device.type != "cuda":
        return None
    return {
        "gpu": torch.cuda.get_device_name(device),
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
    }


def _files(checkpoint: Checkpoint) -> list[Any]:
    """Stands for weights that lie on the disk while the model runs (offloading): the files, or the hub's commit."""
    source, adapter = checkpoint.source, checkpoint.adapter
    weights = hash_folder(source) if isinstance(source, Path) else f"{source}@{checkpoint.commit}"
    return [weights, hash_folder(Path(adapter)) if adapter is not None and Path(adapter).is_dir() else adapter]


def fingerprint(parts: dict[str, Any]) -> str:
    """Return 16 hex digits of the parts."""
    return digest(json.dumps(parts, sort_keys=True, default=str))


def hash_folder(folder: Path) -> str:
    """Return 16 hex digits of a checkpoint's files by name and content; where the folder lies does not matter."""
    files = sorted(path for path in folder.iterdir() if path.suffix in HASHED_SUFFIXES and path.is_file())
    stamps = tuple((path.name, *file_stamp(path)) for path in files)
    return _hash_files(folder.resolve(), stamps)


def contents_of(model: str) -> str | None:
    """Return a digest of the files of a model in a folder, or of an embedded one; None for one of the hub."""
    folder = embedded_folder(model) if model in embedded() else Path(model)
    return hash_folder(folder) if folder.is_dir() else None


@lru_cache(maxsize=32)  # keyed by stamps too, so a retrained checkpoint at the same path is read again
def _hash_files(folder: Path, stamps: tuple[tuple[Any, ...], ...]) -> str:
    return digest(*(f"{name}:{file_digest(folder / name)}\n" for name, *_ in stamps))
