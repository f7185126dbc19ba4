"""Image features: the library's vision tower, with all attention windows of one length in one call.

Transformers calls attention once a window: 1768 times for one image of 1008 x 756 px in Qwen2.5-VL-7B, and it reads the
lengths back from the device before every block. Here images of one size are one rectangle of patches: windows of equal
length lie beside each other and attend in one call, and everything about a size is worked out once, on the host.
Weights, order of operations within a window and results are the library's, up to the last bits of float32.
Other architectures have no windows; their own tower is used as it is.
Source: Qwen2.5-VL technical report, section 2.1 (windows of 112 px, full attention in some blocks); the order of the
windows is transformers' `get_vision_window_index`.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from zoomiqa_reward.model import repeatable
from zoomiqa_reward.model.layers import gated, is_hooked, linear, recomputable, rms
from zoomiqa_reward.model.parts import PatchEmbed, QwenVL, TowerAttention, TowerBlock, WindowTower, has_windows
from zoomiqa_reward.model.products import affine

KEPT_SIZES = 32
"""Sizes of images whose plans are kept; a plan of 1008 x 756 px in the 7B holds 2.5 MB."""


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """What the language model gets of images of one size."""

    tokens: Tensor
    """[images, tokens, width]"""
    deep: tuple[Tensor, ...] = ()
    """The same shape, added behind the first language layers (Qwen3-VL's DeepStack)."""

    def of(self, index: int) -> "ImageFeatures":
        """Return one image's, still with the axis of images."""
        return ImageFeatures(tokens=self.tokens[index : index + 1], deep=tuple(d[index : index + 1] for d in self.deep))

    @staticmethod
    def stack(parts: list["ImageFeatures"]) -> "ImageFeatures":
        """Return the features of several images of one size."""
        if len(parts) == 1:
            return parts[0]
        deep = zip(*(piece.deep for piece in parts), strict=True)
        return ImageFeatures(
            tokens=torch.cat([piece.tokens for piece in parts]), deep=tuple(torch.cat(d) for d in deep)
        )


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Everything about one size. Patches stand in the order of windows, and windows in that of their lengths."""

    order: Tensor
    """int64 [tokens]: the token (2 x 2 patches) that stands at each place."""
    back: Tensor
    """int64 [tokens]: the inverse."""
    groups: tuple[tuple[int, int], ...]
    """(patches of a window, number of such windows), in order."""
    cos: Tensor
    """[patches, 1, 1, head width]"""
    sin: Tensor
    """The same, negative in its first half: what the swapped halves are multiplied with."""


def read_images(model: QwenVL, patches: Tensor, grid: tuple[int, int]) -> ImageFeatures:
    """Return the features of images of one size.

    model: the whole Qwen-VL model. patches: [images, patches, patch_dim] as the image processor returns them; grid:
    rows and columns of patches. Keeps autograd; recomputes its blocks in `backward` where they say so.
    """
    tower = model.model.visual
    if not has_windows(tower):
        return _by_library(model, patches, grid)
    plan = _plan(tower, grid, patches.device)
    merged = tower.spatial_merge_size**2
    images, count = patches.shape[0], patches.shape[1]
    hidden = _embedded(tower.patch_embed, patches)
    hidden = repeatable.permuted(hidden.view(images, count // merged, -1), plan.order, plan.back).view(
        images, count, -1
    )
    whole = ((count, 1),)
    for number, block in enumerate(tower.blocks):
        groups = whole if number in tower.fullatt_block_indexes else plan.groups
        hidden = recomputable(block, _block(block, plan, groups), hidden)
    tokens = tower.merger(hidden.flatten(0, 1)).view(images, count // merged, -1)
    return ImageFeatures(tokens=repeatable.permuted(tokens, plan.back, plan.order))


def _embedded(embed: PatchEmbed, patches: Tensor) -> Tensor:
    kernel = embed.proj
    if type(kernel) is not nn.Conv3d or is_hooked(kernel) or is_hooked(embed):  # such as one with a LoRA adapter
        return embed(patches.flatten(0, 1))
    # As wide as its step, so the convolution is a matrix product: faster, never TF32.
    return affine(patches.to(kernel.weight.dtype), kernel.weight, kernel.bias)


def _by_library(model: QwenVL, patches: Tensor, grid: tuple[int, int]) -> ImageFeatures:
    images = patches.shape[0]
    grids = torch.tensor([[1, *grid]] * images, device=patches.device)
    output = model.model.get_image_features(patches.flatten(0, 1), grids, return_dict=True)
    deep = getattr(output, "deepstack_features", None) or ()
    return ImageFeatures(
        tokens=torch.stack(tuple(output.pooler_output)), deep=tuple(torch.stack(tuple(d)) for d in deep)
    )


def _block(block: TowerBlock, plan: _Plan, groups: tuple[tuple[int, int], ...]) -> Callable[[Tensor], Tensor]:
    def run(hidden: Tensor) -> Tensor:
        hidden = hidden + _attend(block.attn, rms(block.norm1, hidden), plan, groups)
        return hidden + gated(block.mlp, rms(block.norm2, hidden))

    return run


def _attend(attention: TowerAttention, x: Tensor, plan: _Plan, groups: tuple[tuple[int, int], ...]) -> Tensor:
    images, count, width = x.shape
    qkv = _turned(linear(attention.qkv)(x).view(images, count, 3, attention.num_heads, -1), plan.cos, plan.sin)
    parts = [qkv] if len(groups) == 1 else qkv.split_with_sizes([length * number for length, number in groups], dim=1)
    mixed = []
    for piece, (length, number) in zip(parts, groups, strict=True):
        windows = piece.reshape(images * number, length, 3, attention.num_heads, -1)
        query, key, value = windows.permute(2, 0, 3, 1, 4).unbind(0)
        out = repeatable.attention(partial(scaled_dot_product_attention, scale=attention.scaling), query, key, value,
                                   attention.scaling)  # fmt: skip
        mixed.append(out.transpose(1, 2).reshape(images, -1, width))
    return linear(attention.proj)(mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1))


def _turned(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of values (i, i + half) of queries and keys [.., 3, heads, head width], in float32 as the library.

    Without a graph it writes over `qkv`.
    """
    pair, value = qkv.split_with_sizes([2, 1], dim=-3)
    wide = pair if pair.dtype == torch.float32 else pair.float()
    swapped = wide.roll(wide.shape[-1] // 2, dims=-1)
    if torch.is_grad_enabled():
        return torch.cat([torch.addcmul(swapped * sin, wide, cos).to(qkv.dtype), value], dim=-3)
    turned = swapped.mul_(sin).addcmul_(wide, cos)
    pair.copy_(turned)
    return qkv


_PLANS: "weakref.WeakKeyDictionary[WindowTower, OrderedDict[tuple[tuple[int, int], torch.device], _Plan]]" = (
    weakref.WeakKeyDictionary()
)


def _plan(tower: WindowTower, grid: tuple[int, int], device: torch.device) -> _Plan:
    plans = _PLANS.setdefault(tower, OrderedDict())
    plan = plans.get((grid, device))
    if plan is None:
        plan = plans[grid, device] = _make_plan(tower, grid, device)
        while len(plans) > KEPT_SIZES:
            plans.popitem(last=False)
    return plan


@torch.inference_mode(False)  # a plan outlives the call, and a later one may want a graph
@torch.no_grad()
def _make_plan(tower: WindowTower, grid: tuple[int, int], device: torch.device) -> _Plan:
    merge = tower.spatial_merge_size
    rows, columns = grid[0] // merge, grid[1] // merge
    side = tower.window_size // merge // tower.patch_size
    places = torch.arange(rows * columns).view(rows, columns)
    windows = [window.flatten() for band in torch.split(places, side) for window in torch.split(band, side, dim=1)]
    lengths = sorted({window.numel() for window in windows}, reverse=True)
    by_length = [[window for window in windows if window.numel() == length] for length in lengths]
    order = torch.cat([window for group in by_length for window in group])
    y, x = (axis.view(rows, merge, columns, merge).permute(0, 2, 1, 3).reshape(-1, merge * merge)[order].flatten()
            for axis in torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"))  # fmt: skip
    cos, sin = tower.rotary_pos_emb(tower.patch_embed.proj.weight, torch.stack([y, x], dim=-1).to(device))
    half = sin.shape[-1] // 2
    sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    return _Plan(
        order=order.to(device), back=order.argsort().to(device),
        groups=tuple((length * merge**2, len(group)) for length, group in zip(lengths, by_length, strict=True)),
        cos=cos.float()[:, None, None], sin=sin.float()[:, None, None],
    )  # fmt: skip
