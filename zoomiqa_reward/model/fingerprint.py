"""What makes two quality models the same reward: the key of every cache."""

import json
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from zoomiqa_reward.images.content import RULE
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.views import VIEWS_RULE
from zoomiqa_reward.runs.digest import digest, file_digest
from zoomiqa_reward.runs.weights_digest import WeightsDigests

HASHED_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt")
LIBRARIES = ("torch", "torchvision", "transformers")


_DIGESTS = WeightsDigests()


def fingerprint_parts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the fingerprint is made of.

    Weights count as they are in memory, adapters included: a file that changes after loading, or training, cannot give
    one model the fingerprint of another. They are read whole at the first call and again after they changed.
    """
    model = checkpoint.model
    return {
        "weights": _DIGESTS.of(model),
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
    }


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
    stamps = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _hash_files(folder.resolve(), stamps)


@lru_cache(maxsize=32)  # keyed by sizes and times too, so a retrained checkpoint at the same path is read again
def _hash_files(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    return digest(*(f"{name}:{file_digest(folder / name)}\n" for name, _, _ in stamps))
