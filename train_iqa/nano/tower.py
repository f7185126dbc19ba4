"""A Qwen2.5-VL vision tower on a padded batch of images: the library's weights and results, in few and large calls.

The library packs every patch of a batch into one sequence and calls attention once a window, which costs a small
tower more than its arithmetic. Here a batch is a rectangle: windows of one size attend in one call, and a mask keeps
padding out. The residual stream stays in float32 under autocast.
"""

import torch
from torch import Tensor, nn

from train_iqa.nano.build import MERGE, PATCH_PX
from zoomiqa_reward.model.parts import Merger, RmsNorm, TowerAttention, WindowTower

WINDOW = 8
"""Patches along a side of an attention window (112 px)."""
BLOCK_PX = WINDOW * PATCH_PX


def pad_images(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return CHW images, sides multiples of 28, as one batch padded at right and bottom, and their grids of tokens.

    The batch is (B, 3, H, W) with sides that are multiples of 112, and keeps autograd; the grids are int64 (B, 2).
    """
    sides = [max(image.shape[axis] for image in images) for axis in (1, 2)]
    height, width = (-(-side // BLOCK_PX) * BLOCK_PX for side in sides)
    edges = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
    batch = torch.stack([nn.functional.pad(image, edge) for image, edge in zip(images, edges, strict=True)])
    token_px = PATCH_PX * MERGE
    grids = [[image.shape[1] // token_px, image.shape[2] // token_px] for image in images]
    return batch, torch.tensor(grids, device=batch.device)


def read_tokens(tower: WindowTower, images: Tensor, grids: Tensor | None = None) -> Tensor:
    """Return float (B, H / 28, W / 28, width): the tokens of padded images, in place; those of padding mean nothing.

    images: (B, 3, H, W) in [0, 1], sides multiples of 112; grids: (B, 2) rows and columns of real tokens, None where
    nothing is padded.
    """
    batch, _, height, width = images.shape
    rows, columns = height // PATCH_PX, width // PATCH_PX
    hidden = _embed(tower, images)
    cos, sin = _rotary(tower, rows, columns, images.device)
    in_windows = _to_windows(cos[None]).repeat(batch, 1, 1), _to_windows(sin[None]).repeat(batch, 1, 1)
    in_all = cos.reshape(rows * columns, -1), sin.reshape(rows * columns, -1)
    window_mask, mask = (None, None) if grids is None else _masks(grids, rows, columns)
    for number, block in enumerate(tower.blocks):
        normed = _rms(hidden, block.norm1)
        if number in tower.fullatt_block_indexes:
            mixed = _attend(block.attn, normed.flatten(1, 2), in_all, mask).view_as(normed)
        else:
            mixed = _attend(block.attn, _to_windows(normed), in_windows, window_mask)
            mixed = _from_windows(mixed, batch, rows, columns)
        hidden = hidden + mixed
        normed, mlp = _rms(hidden, block.norm2), block.mlp
        hidden = hidden + mlp.down_proj(nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return _merge(tower.merger, hidden)


def flat_tokens(tokens: Tensor, grids: Tensor) -> Tensor:
    """Return (tokens of all images, width): the real ones of padded (B, rows, columns, width), raster order."""
    rows = torch.arange(tokens.shape[1], device=tokens.device)[None, :, None] < grids[:, 0, None, None]
    columns = torch.arange(tokens.shape[2], device=tokens.device)[None, None, :] < grids[:, 1, None, None]
    return tokens[rows & columns]


def _embed(tower: WindowTower, images: Tensor) -> Tensor:
    """Patches as vectors; the two frames of a still image are equal, so their kernels are summed."""
    batch, _, height, width = images.shape
    rows, columns = height // PATCH_PX, width // PATCH_PX
    patches = (images * 2 - 1).view(batch, 3, rows, PATCH_PX, columns, PATCH_PX)
    patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows, columns, -1)
    return nn.functional.linear(patches, tower.patch_embed.proj.weight.sum(2).flatten(1)).float()


def _rotary(tower: WindowTower, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every patch's angles, each (rows, columns, head width)."""
    frequencies = tower.rotary_pos_emb.inv_freq.to(device=device, dtype=torch.float32)
    y = torch.arange(rows, device=device)[:, None] * frequencies
    x = torch.arange(columns, device=device)[:, None] * frequencies
    half = torch.cat([y[:, None].expand(rows, columns, -1), x[None].expand(rows, columns, -1)], dim=-1)
    angles = torch.cat([half, half], dim=-1)
    return angles.cos(), angles.sin()


def _rms(x: Tensor, norm: RmsNorm) -> Tensor:
    scaled = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight.float() * scaled


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return x.float() * cos + torch.cat([-second, first], dim=-1) * sin


def _attend(attention: TowerAttention, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """Attention within each row of x (N, length, width); mask (N, 1, 1, length) is False for padding."""
    count, length, width = x.shape
    heads = attention.num_heads
    query, key, value = attention.qkv(x).view(count, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    cos, sin = (tensor.unsqueeze(-3) for tensor in angles)
    query, key = (_rotate(tensor, cos, sin).to(value.dtype) for tensor in (query, key))
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention.proj(mixed.transpose(1, 2).reshape(count, length, width))


def _masks(grids: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Which patches are real: for each window, (windows, 1, 1, 64), and for each image, (B, 1, 1, patches)."""
    y = torch.arange(rows, device=grids.device)[None, :, None] < MERGE * grids[:, 0, None, None]
    x = torch.arange(columns, device=grids.device)[None, None, :] < MERGE * grids[:, 1, None, None]
    real = y & x
    windows = _to_windows(real[..., None])[..., 0]
    windows = windows | ~windows.any(1, keepdim=True)  # a window of padding alone sees itself, or it is NaN
    return windows[:, None, None, :], real.flatten(1)[:, None, None, :]


def _to_windows(x: Tensor) -> Tensor:
    """(B, rows, columns, C) -> (B * windows, 64, C)."""
    batch, rows, columns, width = x.shape
    x = x.view(batch, rows // WINDOW, WINDOW, columns // WINDOW, WINDOW, width)
    return x.transpose(2, 3).reshape(-1, WINDOW * WINDOW, width)


def _from_windows(x: Tensor, batch: int, rows: int, columns: int) -> Tensor:
    x = x.view(batch, rows // WINDOW, columns // WINDOW, WINDOW, WINDOW, -1)
    return x.transpose(2, 3).reshape(batch, rows, columns, -1)


def _merge(merger: Merger, x: Tensor) -> Tensor:
    """Join 2 x 2 patches into a token."""
    x = _rms(x, merger.ln_q)
    batch, rows, columns, width = x.shape
    x = x.view(batch, rows // MERGE, MERGE, columns // MERGE, MERGE, width).transpose(2, 3)
    tokens: Tensor = merger.mlp(x.reshape(batch, rows // MERGE, columns // MERGE, MERGE * MERGE * width))
    return tokens
