"""What tells two images apart: a hash of their pixels, whatever file, type or place in memory they came from."""

import hashlib

import torch
from torch import Tensor


def hash_pixels(image: Tensor) -> str:
    """Return the sha256 of a CHW image's float32 pixels and shape; where it lies in memory does not matter."""
    pixels = image.detach().to("cpu", torch.float32).contiguous()
    head = f"float32 {tuple(pixels.shape)} ".encode()
    return hashlib.sha256(head + pixels.numpy().tobytes()).hexdigest()
