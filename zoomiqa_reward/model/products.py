"""Matrix products of float32 on an x86 CPU, by oneDNN.

PyTorch multiplies float32 matrices by MKL, which uses half of the vector width of AMD's CPUs. oneDNN, which PyTorch
uses for convolutions and for bfloat16, uses all of it: 2.3 times as fast on an EPYC with AVX-512. A row also gets the
same bits beside any other rows.

oneDNN makes a kernel of half a megabyte for each number of rows and keeps it: 150 images of mixed sizes took 1 GB. So
rows of zeros fill up to one of few numbers. Anything else (other devices and types, few rows, small layers, quantised
weights, autocast) takes `torch.nn.functional.linear`.
Source: oneDNN's developer guide, "Matrix Multiplication" and "Primitive Cache"; the operator is the one that
PyTorch's compiler calls for linear layers on a CPU.
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST_ROWS = 64
"""With fewer rows, bringing the weight into oneDNN's order takes longer than is gained."""
SMALLEST = 2**14
"""Elements of a weight; below, a call costs more than its arithmetic."""


def _is_there() -> bool:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


IS_THERE = _is_there()
"""Whether this PyTorch has oneDNN and the operator, on an x86 CPU."""


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`, [..., out] of [..., in], as `torch.nn.functional.linear` up to the last bits.

    weight: [out, in], or the kernel [out, ...] of a convolution that is as wide as its step. Keeps autograd.
    """
    if not suits(x, weight, bias):
        return nn.functional.linear(x, weight.flatten(1), bias)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        result: Tensor = _Affine.apply(x, weight, bias)
        return result
    return _multiplied(x, weight, bias)


def suits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether oneDNN multiplies these. It reads a bias that has gaps as if it had none: numbers of others."""
    return (
        IS_THERE and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
        and x.numel() >= LEAST_ROWS * x.shape[-1] and weight.numel() >= SMALLEST
        and type(weight) in (Tensor, nn.Parameter) and _is_dense(weight) and not torch.is_autocast_enabled("cpu")
        and (bias is None or (bias.is_contiguous() and bias.shape == weight.shape[:1]))
    )  # fmt: skip


def _is_dense(weight: Tensor) -> bool:
    """Return whether the weight or its transpose lies in one piece.

    oneDNN multiplies by columns that are cut out of a wider weight as well, but takes 2000 times as long.
    """
    return weight.is_contiguous() or (weight.dim() == 2 and weight.t().is_contiguous())


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    count = rows.shape[0]
    missing = filled_rows(count) - count
    if missing:
        rows = nn.functional.pad(rows, (0, 0, 0, missing))
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight.flatten(1), bias, "none", [], "")
    return result[:count].view(*x.shape[:-1], -1)


def filled_rows(rows: int) -> int:
    """Return how many rows are multiplied for so many: one of four numbers between two powers of two."""
    step = max(8, 1 << max(0, (rows - 1).bit_length() - 3))
    return -(-rows // step) * step


class _Affine(torch.autograd.Function):
    """`affine` with a gradient, which oneDNN's operator does not have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiplied(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        with torch.autocast("cpu", enabled=False):
            return (
                affine(gradient, weight.flatten(1).t()) if of_x else None,
                (rows.t() @ x.flatten(0, -2)).view_as(weight) if of_weight else None,
                rows.sum(dim=0) if of_bias else None,
            )
