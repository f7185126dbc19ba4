"""How many pixels one forward pass reads: what the device holds beside the weights, and never what is free just now.

A share of the device's whole memory is the same in every run, so what is read together, and with it the last bits of a
rating, does not depend on who else uses the device.
"""

import torch

from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.views import CHUNK_PIXELS

SHARE = 0.4
"""Of the memory that the weights leave. The rest is for images, logits, an answer's cache and fragmentation."""
COPIES, WIDE_COPIES = 12, 3
"""Tensors as wide as the model, and as wide as its feed-forward part, that one layer holds at once."""


def pass_pixels(checkpoint: Checkpoint) -> int:
    """Return the pixels that one forward pass may read, at least one image's.

    On the CPU this is `views.CHUNK_PIXELS`: larger passes are no faster there, and fit its caches worse.
    """
    device = checkpoint.device
    if device.type != "cuda":
        return CHUNK_PIXELS
    weights = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.model.parameters())
    room = SHARE * max(0, torch.cuda.get_device_properties(device).total_memory - weights)
    return max(CHUNK_PIXELS, int(room / bytes_per_pixel(checkpoint)))


def bytes_per_pixel(checkpoint: Checkpoint) -> float:
    """Return the activations that a pixel costs in a pass without a graph, counted from the model's widths."""
    config, processor = checkpoint.model.config, checkpoint.image_processor
    size = torch.finfo(checkpoint.dtype).bits // 8
    patch = int(processor.patch_size) ** 2
    token = patch * int(processor.merge_size) ** 2
    costs = [(config.vision_config, patch), (config.get_text_config(), token)]
    return sum(
        size * (COPIES * int(part_config.hidden_size) + WIDE_COPIES * int(part_config.intermediate_size)) / pixels
        for part_config, pixels in costs
    )
