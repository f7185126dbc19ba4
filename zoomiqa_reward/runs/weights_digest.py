"""What makes two restorers the same: hashes of weights as they are in memory, adapters and their switches included."""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from zoomiqa_reward.runs.digest import digest_of


class WeightsDigests:
    """Digests of modules, made again only after their weights have changed."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], str]] = WeakKeyDictionary()

    def of(self, module: nn.Module) -> str:
        """Return 16 hex digits of a module's weights. Reads all of them the first time: seconds for a large model.

        A change in place, such as an optimizer's step, is noticed by the tensors' version counters. Writing through
        `tensor.data` or a numpy view of it is not.
        """
        tensors = [*module.parameters(), *module.buffers()]
        stamp = (*((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors), *_adapters(module))
        if module not in self._known or self._known[module][0] != stamp:
            self._known[module] = (stamp, weights_digest(module))
        return self._known[module][1]


def weights_digest(module: nn.Module) -> str:
    """Return 16 hex digits of every parameter and buffer by name, dtype, shape and bytes, and of adapter switches.

    Buffers that a checkpoint leaves out count as well. Of tensors on the device `meta` (offloaded layer by layer) only
    the shape is there to be read.
    """
    return digest_of(_parts(module))


def _parts(module: nn.Module) -> Iterator[str | memoryview]:
    tensors = {**module.state_dict(), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        if not isinstance(tensor, Tensor):
            yield f"{name}|{tensor!r}\n"
            continue
        yield f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n"
        if not tensor.is_meta:  # offloaded layer by layer: only its shape is there to be read
            flat = tensor.detach().cpu().contiguous().flatten()
            if flat.numel():
                yield flat.view(torch.uint8).numpy().data
    for switch in _adapters(module):
        yield f"{switch}\n"


def _adapters(module: nn.Module) -> tuple[str, ...]:
    """Which adapters of any kind are on, and how strongly; peft keeps this beside the weights."""
    return tuple(
        f"{name}|{layer.active_adapters}|{layer.disable_adapters}|{getattr(layer, 'scaling', None)}"
        for name, layer in module.named_modules()
        if isinstance(getattr(layer, "disable_adapters", None), bool)  # transformers' models have a method of this name
    )
