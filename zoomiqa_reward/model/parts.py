"""The parts of transformers' Qwen-VL models that are read here, as types.

The classes describe the library's modules and are never made: they say which attributes are read, and what those hold.
`has_norms` and `has_windows` tell the architectures apart.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Protocol, TypeGuard

from torch import Tensor, nn


class Layer(Protocol):
    """A layer that training may recompute."""

    training: bool
    _gradient_checkpointing_func: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


class Norm(Protocol):
    """A norm of the last axis."""

    weight: Tensor
    _forward_hooks: dict[int, Callable[..., object]]
    _forward_pre_hooks: dict[int, Callable[..., object]]

    def __call__(self, x: Tensor, /) -> Tensor: ...


class RmsNorm(Norm, Protocol):
    """The root mean square norm."""

    variance_epsilon: float


class Affine(Protocol):
    """A linear layer with a bias."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor, /) -> Tensor: ...


class Mlp(Protocol):
    """The gated feed-forward part of a language layer."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: Callable[[Tensor], Tensor]
    _forward_hooks: dict[int, Callable[..., object]]
    _forward_pre_hooks: dict[int, Callable[..., object]]

    def __call__(self, x: Tensor, /) -> Tensor: ...


class TextAttention(Protocol):
    """Attention of a language layer."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    head_dim: int
    scaling: float


class NormedAttention(TextAttention, Protocol):
    """Attention of Qwen3-VL, with norms of queries and keys."""

    q_norm: Norm
    k_norm: Norm


class TextLayer(Layer, Protocol):
    """A layer of the language model."""

    self_attn: TextAttention
    mlp: Mlp
    input_layernorm: Norm
    post_attention_layernorm: Norm


class TextModel(Protocol):
    """The part that reads embeddings."""

    embed_tokens: Callable[[Tensor], Tensor]
    layers: Sequence[TextLayer]
    norm: Norm
    rotary_emb: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TowerAttention(Protocol):
    """Attention of a block of the vision tower."""

    qkv: Affine
    proj: Affine
    num_heads: int
    scaling: float


class TowerMlp(Protocol):
    """The gated feed-forward part of a block of the vision tower."""

    gate_proj: Affine
    up_proj: Affine
    down_proj: Affine
    act_fn: Callable[[Tensor], Tensor]
    _forward_hooks: dict[int, Callable[..., object]]
    _forward_pre_hooks: dict[int, Callable[..., object]]

    def __call__(self, x: Tensor, /) -> Tensor: ...


class TowerBlock(Layer, Protocol):
    """A block of the vision tower."""

    attn: TowerAttention
    mlp: TowerMlp
    norm1: RmsNorm
    norm2: RmsNorm


class PatchEmbed(Protocol):
    """The first layer of the vision tower."""

    proj: nn.Conv3d
    _forward_hooks: dict[int, Callable[..., object]]
    _forward_pre_hooks: dict[int, Callable[..., object]]

    def __call__(self, patches: Tensor, /) -> Tensor: ...


class TowerAngles(Protocol):
    """Cosines and sines of patches by row and column."""

    inv_freq: Tensor

    def __call__(self, like: Tensor, places: Tensor, /) -> tuple[Tensor, Tensor]: ...


class Merger(Protocol):
    """The last layer of the vision tower: 2 x 2 patches become a token."""

    ln_q: RmsNorm
    mlp: nn.Sequential

    def __call__(self, x: Tensor, /) -> Tensor: ...


class WindowTower(Protocol):
    """The vision tower of Qwen2.5-VL, whose blocks attend within windows."""

    patch_embed: PatchEmbed
    rotary_pos_emb: TowerAngles
    blocks: Sequence[TowerBlock]
    merger: Merger
    fullatt_block_indexes: Container[int]
    spatial_merge_size: int
    window_size: int
    patch_size: int

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class TowerOutput(Protocol):
    """What the library's own pass through a vision tower gives."""

    pooler_output: Iterable[Tensor]


class VisionLanguage(Protocol):
    """A Qwen-VL model without its output layer."""

    visual: nn.Module
    language_model: TextModel

    def get_image_features(self, patches: Tensor, grids: Tensor, /, *, return_dict: bool) -> TowerOutput: ...


class QwenVL(Protocol):
    """A whole Qwen-VL model."""

    model: VisionLanguage


def has_norms(attention: TextAttention) -> TypeGuard[NormedAttention]:
    """Return whether queries and keys are normed."""
    return hasattr(attention, "q_norm")


def has_windows(tower: nn.Module) -> TypeGuard[WindowTower]:
    """Return whether the tower's blocks attend within windows."""
    return hasattr(tower, "window_size")
