"""Optimizers of the small models trained from scratch: Muon on the blocks' matrices, AdamW on the rest.

Muon orthogonalises each matrix' momentum. From scratch and at this size it needs about half the steps of AdamW.
Source: Jordan et al. 2024 (torch.optim.Muon), learning rate matched to AdamW's update size (Liu et al. 2025).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MUON_FACTOR = 4.0
"""Muon's learning rate over AdamW's."""


class SplitOptimizer:
    """Muon for the 2-D weights of blocks, AdamW for embeddings, convolutions, heads, norms and biases."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in named:
            in_block = parameter.ndim == 2 and ("blocks." in name or ".layers." in name)
            (matrices if in_block else others).append(parameter)
        self.parameters = [*matrices, *others]
        self.parts: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            "adamw": torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=weight_decay),
        }

    def step(self, learning_rate: float, max_norm: float = 1.0) -> Tensor:
        """Clip the gradients, take one step, forget the gradients, and return their norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.parameters, max_norm)
        for name, optimizer in self.parts.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (MUON_FACTOR if name == "muon" else 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return both parts' states."""
        return {name: optimizer.state_dict() for name, optimizer in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, optimizer in self.parts.items():
            optimizer.load_state_dict(state[name])
