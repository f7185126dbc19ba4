"""Operators whose gradients have the same bits every time, also on a GPU.

PyTorch computes some gradients there by adding from many threads in any order: those of an antialiased bicubic resize,
of its fused attention, and of a selection by index. Their values are kept here, bit for bit; the gradients are written
as matrix products and selections, which have one order. The rest of a model is deterministic already.
Source: the list in PyTorch's documentation of `torch.use_deterministic_algorithms`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate

_THREAD = threading.local()


@contextmanager
def repeatable_gradients(on: bool = True) -> Iterator[None]:
    """Build graphs inside, in this thread, whose attention has a repeatable gradient; slower, and with more memory."""
    before, _THREAD.on = builds_repeatable(), on
    try:
        yield
    finally:
        _THREAD.on = before


def builds_repeatable() -> bool:
    """Return whether this thread builds repeatable graphs."""
    return bool(getattr(_THREAD, "on", False))


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Return the CHW image at (height, width): antialiased bicubic, the image processor's own kernel; not clamped."""
    if image.shape[1:] == (height, width):
        return image
    return _Resize.apply(image, height, width) if _has_graph(image) else _interpolated(image, height, width)


def permuted(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Return x [rows, tokens, ...] with its tokens in another order; `back` is the inverse of `order`."""
    return _Permute.apply(x, order, back) if _has_graph(x) else x.index_select(1, order)


def attention(
    fused: Callable[[Tensor, Tensor, Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor, scale: float,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return `fused(query, key, value)`: attention of [rows, heads, tokens, head width], by any kernel.

    Several heads of `query` may share a head of `key` and `value`. mask: bool [queries, keys], True where a query sees
    a key; None: everywhere. In a graph that is built inside `repeatable_gradients` the gradient is written out.
    """
    if builds_repeatable() and any(_has_graph(x) for x in (query, key, value)):
        out: Tensor = _Attention.apply(fused, query, key, value, scale, mask)
        return out
    return fused(query, key, value)


def _has_graph(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _interpolated(image: Tensor, height: int, width: int) -> Tensor:
    return interpolate(image[None], size=(height, width), mode="bicubic", align_corners=False, antialias=True)[0]


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # they outlive the call
@torch.no_grad()
def _resize_matrix(old: int, new: int, device: torch.device) -> Tensor:
    """Return float32 [new, old]: a column of pixels before, one after."""
    return _interpolated(torch.eye(old, dtype=torch.float32, device=device)[None], new, old)[0]


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, height: int, width: int) -> Tensor:
        ctx.sides = image.shape[1:]
        return _interpolated(image, height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        with _full_precision(gradient.device):
            down, across = (
                _resize_matrix(old, new, gradient.device)
                for old, new in zip(ctx.sides, gradient.shape[1:], strict=True)
            )
            return (down.T @ gradient.float() @ across).to(gradient.dtype), None, None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return x.index_select(1, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(1, ctx.back), None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fused: Callable[[Tensor, Tensor, Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor,
        scale: float, mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale = scale
        return fused(query, key, value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with _full_precision(gradient.device):
            query, key, value, mask = ctx.saved_tensors
            slopes = _attention_slopes(gradient, query, key, value, mask, ctx.scale)
        return None, *(slope.to(gradient.dtype) for slope in slopes), None, None


def _full_precision(device: torch.device) -> torch.autocast:
    """Return a context without the autocast that a caller of `backward` may have switched on."""
    return torch.autocast(device.type, enabled=False)


def _attention_slopes(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, asked, _ = query.shape
    shared, seen = key.shape[1], key.shape[2]
    # Heads that share a key are seen as more queries of it.
    queries, slope = (x.float().reshape(rows, shared, -1, x.shape[-1]) for x in (query, gradient))
    keys, values = key.float(), value.float()
    scores = (queries @ keys.mT * scale).view(rows, heads, asked, seen)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    share = scores.softmax(dim=-1).view(rows, shared, -1, seen)
    to_value = share.mT @ slope
    slope = slope @ values.mT
    slope = share * (slope - (share * slope).sum(dim=-1, keepdim=True)) * scale
    return (slope @ keys).view(query.shape), slope.mT @ queries, to_value
