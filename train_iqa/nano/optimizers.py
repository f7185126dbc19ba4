"""Optimizer and schedule of the small models that are trained from scratch.

The optimizer is Muon on the matrices of the blocks and AdamW on the rest. Muon orthogonalises the momentum of each
matrix. From scratch and at this size it needs about half the steps of AdamW. Matrices of one shape are orthogonalised
in one batch, because dozens of small products cost more on a device than one large product.
Source: Jordan et al. 2024 (coefficients of the iteration), learning rate matched to AdamW's update size (Liu et al.
2025).

The schedule follows how far a run is, by its steps or by the seconds that it was given.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MUON_FACTOR = 4.0
"""Muon's learning rate over AdamW's."""
MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return (N, rows, columns) matrices with all singular values near 1, by Newton-Schulz (on a GPU in bfloat16)."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(torch.float32 if matrices.is_cpu else torch.bfloat16)
    x = x / x.float().norm(dim=(1, 2), keepdim=True).clamp_min(1e-7).to(x.dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class SplitOptimizer:
    """Muon for the 2-D weights of blocks, AdamW for embeddings, convolutions, heads, norms and biases."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float) -> None:
        others: list[nn.Parameter] = []
        self.matrices: dict[str, list[nn.Parameter]] = {}
        for name, parameter in named:
            if parameter.ndim == 2 and ("blocks." in name or ".layers." in name):
                self.matrices.setdefault("x".join(map(str, parameter.shape)), []).append(parameter)
            else:
                others.append(parameter)
        self.parameters = [*others, *(item for group in self.matrices.values() for item in group)]
        self.weight_decay = weight_decay
        self.momenta = {shape: torch.zeros_like(torch.stack(list(group))) for shape, group in self.matrices.items()}
        self.adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, learning_rate: float, max_norm: float = 1.0) -> Tensor:
        """Clip the gradients, take one step, forget them, and return their norm before clipping.

        A step whose gradients are not finite changes nothing.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, max_norm)
        if bool(torch.isfinite(norm)):
            for shape, group in self.matrices.items():
                self._muon(group, self.momenta[shape], learning_rate * MUON_FACTOR)
            for settings in self.adamw.param_groups:
                settings["lr"] = learning_rate
            self.adamw.step()
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def _muon(self, group: list[nn.Parameter], momentum: Tensor, rate: float) -> None:
        gradients = torch.stack(
            [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in group]
        )
        momentum.lerp_(gradients, 1 - MOMENTUM)
        updates = orthogonalised(gradients.lerp(momentum, MOMENTUM))
        weights: list[Tensor] = [*group]
        torch._foreach_mul_(weights, 1 - rate * self.weight_decay)
        scale = 0.2 * max(group[0].shape) ** 0.5
        torch._foreach_add_(weights, list(updates.unbind(0)), alpha=-rate * scale)

    def state_dict(self) -> dict[str, Any]:
        """Return momenta and AdamW's state."""
        return {"momenta": self.momenta, "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for shape, momentum in state["momenta"].items():
            self.momenta[shape].copy_(momentum)
        self.adamw.load_state_dict(state["adamw"])


class WeightAverage:
    """Moving average of parameters over the last part of a run: steadier than the last step's."""

    def __init__(self, parameters: Iterable[nn.Parameter], share: float = 0.03) -> None:
        self.parameters, self.share = list(parameters), share
        self.mean: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Mix in the present parameters; the first call starts the average."""
        now = [parameter.detach() for parameter in self.parameters]
        if self.mean:
            torch._foreach_lerp_(self.mean, now, self.share)
        else:
            self.mean = [weight.clone() for weight in now]

    @torch.no_grad()
    def apply(self) -> None:
        """Set the parameters to the average; without one they stay."""
        for parameter, mean in zip(self.parameters, self.mean, strict=False):
            parameter.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        home = self.parameters[0].device if self.parameters else None
        self.mean = [weight.to(home) for weight in state["mean"]]


def cosine_lr(step: int, steps: int, peak: float, warmup: int = 60, floor: float = 0.02) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine to `floor` x peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * cosine((step - warmup) / max(1, steps - warmup), floor)


def cosine(progress: float, floor: float = 0.02) -> float:
    """Return 1 at progress 0, `floor` at 1 and after.

    >>> cosine(0.0), round(cosine(0.5, 0.0), 3), cosine(2.0)
    (1.0, 0.5, 0.02)
    """
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
