"""The architecture of `nano`: a real Qwen2.5-VL of about 8.3 M parameters with a tokenizer of its own; and of `small`.

Nothing here is special to inference: what this writes loads through the same path as the 7B.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

from zoomiqa_reward.model.parts import PatchEmbed, WindowTower

PATCH_PX = 14
MERGE = 2
TOKEN_PX = PATCH_PX * MERGE
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}
{{ item['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on `texts`; every digit is a token of its own, as in Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    # Letters with the one blank before them, single digits, runs of other signs: numbers never merge with words.
    pattern = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=8192,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_image_processor(min_pixels: int, max_pixels: int) -> Qwen2VLImageProcessor:
    """Return the library's image processor with symmetric normalisation and our pixel budget."""
    return Qwen2VLImageProcessor(
        patch_size=PATCH_PX,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Widths and depths of the two sides. The tower's width stays 192, which the energy meters need."""

    vision_layers: int = 8
    vision_full: tuple[int, ...] = (2, 5, 7)
    """Blocks that see the whole image and not only windows of 112 px."""
    text_width: int = 256
    text_mlp: int = 640
    text_layers: int = 5
    """At least 4: the read-outs of teaching look at layer 4."""
    text_heads: int = 4
    """Of 64 each."""


SIZES = {
    "nano": ModelSize(),
    "small": ModelSize(vision_layers=3, vision_full=(2,), text_width=128, text_mlp=352, text_layers=4, text_heads=2),
}
"""`nano` is the embedded model, 8.3 M; `small`, 3 M, is for experiments that train many of them."""


def build_model(
    tokenizer: PreTrainedTokenizerFast | None, *, seed: int, size: ModelSize = SIZES["nano"]
) -> Qwen2_5_VLForConditionalGeneration:
    """Return the randomly initialised model (float32). Without a tokenizer the vocabulary is a placeholder."""
    torch.manual_seed(seed)
    vocab_size = 64 * -(-len(tokenizer) // 64) if tokenizer else 64
    token = tokenizer.convert_tokens_to_ids if tokenizer else SPECIAL_TOKENS.index
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": size.text_width,
            "intermediate_size": size.text_mlp,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_heads,
            "num_key_value_heads": size.text_heads // 2,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_heads": 4,
            "out_hidden_size": size.text_width,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": list(size.vision_full),
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    _scale_to_width(model, size)
    return model


@torch.no_grad()
def _scale_to_width(model: nn.Module, size: ModelSize) -> None:
    """Draw the linear weights anew for this width.

    The library's 0.02 suits widths of thousands; at 192 the blocks add almost nothing to the residual stream and the
    first hundreds of steps are lost.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            depth = size.vision_layers if "visual" in name else size.text_layers
            closes_block = name.endswith(("o_proj", "attn.proj", "down_proj"))
            module.weight.normal_(0, module.in_features**-0.5 * ((2 * depth) ** -0.5 if closes_block else 1.0))


def _principal(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return (components as rows, standard deviations), strongest first."""
    values, columns = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
    return columns.T.flip(0), values.clamp_min(1e-12).sqrt().flip(0)


@torch.no_grad()
def init_patch_embedding(patch_embed: PatchEmbed, images: Sequence[Tensor]) -> None:
    """Set the patch embedding to a whitening of clean patches (PCA); `images` are CHW in [0, 1].

    A random patch embedding learns almost nothing of sharpness and noise in the first hundreds of steps, because the
    mean grey level of a patch drowns its detail. `LUMA` outputs see brightness, a third of them the weakest
    components, where noise and sharpness live; two times `CHROMA` see colour differences; the rest start at zero.
    """
    weight = patch_embed.proj.weight  # (outputs, 3, 2, 14, 14)
    patches = torch.cat(
        [
            (image * 2 - 1)
            .unfold(1, PATCH_PX, PATCH_PX)
            .unfold(2, PATCH_PX, PATCH_PX)
            .permute(1, 2, 0, 3, 4)
            .reshape(-1, 3, PATCH_PX * PATCH_PX)
            for image in images
        ]
    )
    axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    axes = axes / axes.norm(dim=1, keepdim=True)
    rows: list[Tensor] = []
    for axis, wanted in zip(axes, (LUMA, CHROMA, CHROMA), strict=True):
        plane = torch.einsum("npd,p->nd", patches, axis)
        components, deviations = _principal(plane - plane.mean())
        first = 2 * wanted // 3 if wanted == LUMA else wanted // 2
        rest = torch.linspace(first, len(components) - 1, wanted - first).round().long()
        chosen = torch.cat([torch.arange(first), rest])
        # The two frames of a still image are equal, so each carries half.
        kernels = components[chosen] / deviations[chosen, None].clamp_min(0.01) / 2
        rows.append(torch.einsum("kd,p->kpd", kernels, axis))
    kernels = torch.cat(rows).reshape(-1, 3, 1, PATCH_PX, PATCH_PX)
    weight.zero_()
    weight[: len(kernels)] = kernels.expand(-1, -1, weight.shape[2], -1, -1)


LUMA, CHROMA = 96, 8
BAND = 8
"""Neighbouring components, of like frequency, that one energy channel sums."""
THRESHOLDS = (0.15, 0.5, 1.5, 5.0)
"""Amplitudes, in deviations of a clean patch, at which the meters of a component saturate."""
CONSTANT, SHARPNESS = 30.0, 4.0


@torch.no_grad()
def init_energy_meters(tower: WindowTower) -> None:
    """Let the first block measure, in decades, how much detail of each frequency a patch holds.

    The energy of fine detail spans four decades between a soft image and a noisy one. A ridge regression on its
    logarithm reaches SRCC 0.62 with pseudo-MOS; on the energy itself 0.34, and on what RMS normalisation leaves of it
    0.48, which is why a tower started at random stays near 0.5 for a thousand steps. So: a large constant in one
    channel keeps the normalisation from dividing the contrast out; four gated units a component compute
    sat(|e| / t) with sat(x) = relu(x) - relu(x - 1), neighbouring components at different t; and each (band, t) has a
    channel of its own, which together read like a logarithm.
    """
    block, width = tower.blocks[0], tower.patch_embed.proj.weight.shape[0]
    components = LUMA + 2 * CHROMA
    block.attn.proj.bias.zero_()
    block.attn.proj.bias[-1] = CONSTANT
    later = [norm for other in tower.blocks[1:] for norm in (other.norm1, other.norm2)]
    norms = [block.norm2, *later, tower.merger.ln_q]
    for norm in norms:  # after them: the other channels as they were, the constant as 1
        norm.weight.fill_(CONSTANT / width**0.5)
        norm.weight[-1] = width**-0.5
    mlp, num_units = block.mlp, 4 * components
    for layer in (mlp.gate_proj, mlp.up_proj):
        layer.weight[:num_units] = 0
        layer.bias[:num_units] = 0
    mlp.up_proj.bias[:num_units] = 1
    mlp.down_proj.weight[:, :num_units] = 0
    mlp.gate_proj.weight[:, -1] = 0
    mlp.up_proj.weight[:, -1] = 0
    for component in range(components):
        which = component % len(THRESHOLDS)
        channel = components + component // BAND * len(THRESHOLDS) + which
        for k, (sign, offset) in enumerate(((1, 0), (-1, 0), (1, 1), (-1, 1))):
            unit = 4 * component + k
            mlp.gate_proj.weight[unit, component] = sign * SHARPNESS / THRESHOLDS[which]
            mlp.gate_proj.bias[unit] = -SHARPNESS * offset
            mlp.down_proj.weight[channel, unit] = (1 - 2 * offset) / SHARPNESS
