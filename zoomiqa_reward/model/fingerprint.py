"""What makes two quality models the same reward: the key of every cache."""

import hashlib
import json
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zoomiqa_reward.model.checkpoint import Checkpoint

HASHED_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt")
LIBRARIES = ("torch", "torchvision", "transformers")


def fingerprint_parts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the fingerprint is made of. A local checkpoint's files are read whole, once in a process."""
    model = checkpoint.model
    weights = hash_folder(checkpoint.source) if isinstance(checkpoint.source, Path) else checkpoint.source
    adapter = checkpoint.adapter
    if adapter is not None and Path(adapter).is_dir():
        adapter = hash_folder(Path(adapter))
    return {
        "weights": weights,
        "commit": checkpoint.commit,
        "adapter": adapter,
        "quantization": checkpoint.quantization,
        "protocol": checkpoint.protocol.fingerprint,
        "preprocessing": _digest(json.dumps(checkpoint.image_processor.to_dict(), sort_keys=True, default=str)),
        "dtype": str(checkpoint.dtype),
        "device": checkpoint.device.type,
        "attention": model.config.get_text_config()._attn_implementation,
        "versions": {name: version(name) for name in LIBRARIES},
    }


def fingerprint(parts: dict[str, Any]) -> str:
    """Return 16 hex digits of the parts."""
    return _digest(json.dumps(parts, sort_keys=True, default=str))


def hash_folder(folder: Path) -> str:
    """Return 16 hex digits of a checkpoint's files by name and content; where the folder lies does not matter."""
    files = sorted(path for path in folder.iterdir() if path.suffix in HASHED_SUFFIXES and path.is_file())
    stamps = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _hash_files(folder.resolve(), stamps)


@lru_cache(maxsize=32)  # keyed by sizes and times too, so a retrained checkpoint at the same path is read again
def _hash_files(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in stamps:
        with open(folder / name, "rb") as file:
            total.update(f"{name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
