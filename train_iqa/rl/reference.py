"""The policy before RL: with LoRA the same model with its adapter off, with full tuning one frozen copy.

The SFT adapter is merged into the weights before RL (`load_checkpoint` does that), so that the adapter off **is** the
SFT policy, and no second copy of the base is ever held.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn


class AdapterOff:
    """The reference of a LoRA run."""

    def __init__(self, accelerator: Accelerator, model: nn.Module) -> None:
        self.accelerator, self.model = accelerator, model

    @contextmanager
    def active(self) -> Iterator[Any]:
        """Yield the model to call; inside, its adapter is off."""
        with torch.no_grad(), self.accelerator.unwrap_model(self.model).disable_adapter():
            yield self.model


class FrozenCopy:
    """The reference of a full run: a copy taken before anything is trained or wrapped."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, offload: bool) -> None:
        self.home = next(model.parameters()).device
        self.offload = offload
        self.copy = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
        if offload:
            self.copy.to("cpu")

    @contextmanager
    def active(self) -> Iterator[Any]:
        """Yield the copy, on the device that it was made on; offloaded, it leaves again afterwards."""
        with torch.no_grad():
            self.copy.to(self.home)
            try:
                yield self.copy
            finally:
                if self.offload:
                    self.copy.to("cpu")
