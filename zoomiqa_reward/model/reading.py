"""Rows read by the model, sharing what they have in common: images of one size, and the text before the first image.

`SharedReading` lives as long as one call of `rate` or `assess`: within it the weights stay as they are. It holds the
states of the text before the first image (system and protocol, 216 of 1269 tokens for the 7B), which every view of
every image begins with, and the features of images that are shown again, as in round 2 and to every sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.drafts import Drafts
from zoomiqa_reward.model.inputs import TokenRow, check_row
from zoomiqa_reward.model.language import ImageSpan, ReadStates, ReadTokens, read, text_model
from zoomiqa_reward.model.layers import is_hooked
from zoomiqa_reward.model.parts import has_windows
from zoomiqa_reward.model.tower import ImageFeatures, read_images

MIN_SHARED = 16
"""Tokens of common text that are worth a pass of their own."""

Shape = tuple[int, tuple[int, ...], tuple[tuple[int, ...], ...], tuple[int, ...]]


@dataclass(eq=False)
class SharedReading:
    """What the rows of one call have in common."""

    before: dict[tuple[int, ...], ReadStates] = field(default_factory=dict)
    """By the tokens that were read."""
    features: dict[int, tuple[Tensor, ImageFeatures]] = field(default_factory=dict)
    """By the identity of an image's patches, which are kept with them."""
    drafts: Drafts | None = field(default_factory=Drafts)
    """What the call's earlier answers went on with; None where answers are written step by step, as under `strict`."""

    def forget_images(self) -> None:
        """Drop what was read of images that will not be shown again."""
        self.features.clear()


def reads_itself(checkpoint: Checkpoint) -> bool:
    """Return whether this module reads for the checkpoint; otherwise transformers' own passes do.

    It does where one device holds all weights, attention is PyTorch's own without a sliding window, and nobody has
    hooked a module that this module's passes do not call.
    """
    config = checkpoint.model.config.get_text_config()
    devices = set((getattr(checkpoint.model, "hf_device_map", None) or {}).values())
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        config._attn_implementation == "sdpa"
        and config.model_type in ("qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_text")
        and set(kinds) == {"full_attention"}
        and len(devices) <= 1
        and "disk" not in devices
        and not next(checkpoint.model.parameters()).is_meta
        and not _is_hooked(checkpoint.model)
    )


def _is_hooked(model: Any) -> bool:
    """Return whether a module whose own call is left out here does more than its class says.

    Other modules are called or see to it themselves. The `forward` of the whole model is replaced by accelerate, and a
    module by `torch.compile`, without another result.
    """
    text, tower = text_model(model), model.model.visual
    skipped: list[Any] = [model.model, text, *text.layers, *(layer.self_attn for layer in text.layers)]
    if has_windows(tower):
        skipped += [tower, *tower.blocks, *(block.attn for block in tower.blocks)]
    return bool(model._forward_hooks or model._forward_pre_hooks) or any(
        is_hooked(module) for module in skipped if not hasattr(module, "_orig_mod")
    )


def shape_of(checkpoint: Checkpoint, row: TokenRow) -> Shape:
    """Return what rows must share to be read as one batch: length, each image's place and grid, and common text."""
    starts = _starts(checkpoint, row)
    common = tuple(row.input_ids[: _common(starts)].tolist())
    return row.input_ids.shape[0], tuple(starts), tuple(map(tuple, row.image_grid_thw.tolist())), common


def image_features(checkpoint: Checkpoint, rows: Sequence[TokenRow], shared: SharedReading) -> None:
    """Read the images of rows that were not read yet, those of one size together."""
    waiting: dict[tuple[int, int], list[Tensor]] = {}
    for row in rows:
        for patches, (_, height, width) in zip(row.patches, row.image_grid_thw.tolist(), strict=True):
            group = waiting.setdefault((height, width), [])
            if id(patches) not in shared.features and not any(patches is other for other in group):
                group.append(patches)
    for grid, group in waiting.items():
        if not group:
            continue
        result = read_images(checkpoint.model, torch.stack(group).to(checkpoint.device), grid)
        for index, patches in enumerate(group):
            shared.features[id(patches)] = (patches, result.of(index))


def read_rows(
    checkpoint: Checkpoint,
    rows: Sequence[TokenRow],
    shared: SharedReading,
    *,
    append: Sequence[int] = (),
    tree: Tensor | None = None,
    depths: Tensor | None = None,
    last: int = 1,
    keep: bool = False,
) -> ReadTokens:
    """Read rows of one shape (`shape_of`), and tokens that follow every row, in one pass.

    append: ids; the last of them are the nodes of the `tree`, bool [nodes, nodes], whose `depths` are their positions
    behind what stands before them. last, keep: as for `language.read`.
    """
    for row in rows:
        check_row(checkpoint, row)
    nodes = 0 if tree is None else tree.shape[0]
    device = checkpoint.device
    image_features(checkpoint, rows, shared)
    tail = torch.tensor(list(append), dtype=torch.long)
    alike = all(torch.equal(row.input_ids, rows[0].input_ids) for row in rows[1:])
    ids = torch.stack([torch.cat([row.input_ids, tail]) for row in (rows[:1] if alike else rows)])
    positions = _positions(checkpoint, rows[0], ids[:1, : ids.shape[1] - nodes])
    if depths is not None:
        positions = torch.cat([positions, positions[:, :, -1:] + depths.cpu()], dim=-1)
    starts = _starts(checkpoint, rows[0])
    common = _common(starts)
    before = _read_before(checkpoint, ids[0, :common], shared) if common else None
    spans = [
        ImageSpan(
            start=start - common, features=ImageFeatures.stack([shared.features[id(row.patches[k])][1] for row in rows])
        )
        for k, start in enumerate(starts)
    ]
    result = read(
        checkpoint.model, ids[:, common:].to(device), positions[:, :, common:].to(device), spans=spans, before=before,
        tree=tree, keep=keep, last=last,
    )  # fmt: skip
    return replace(result, following=int(positions[0, 0, -1]) + 1)


def _starts(checkpoint: Checkpoint, row: TokenRow) -> list[int]:
    """Return the place of each image's first token."""
    merge = int(checkpoint.image_processor.merge_size) ** 2
    places = (row.input_ids == checkpoint.image_token_id).nonzero()[:, 0].tolist()
    starts, at = [], 0
    for _, height, width in row.image_grid_thw.tolist():
        starts.append(places[at])
        at += height * width // merge
    return starts


def _positions(checkpoint: Checkpoint, row: TokenRow, ids: Tensor) -> Tensor:
    """Return int64 [3, 1, tokens] on the CPU: the library's 3-D positions, one row's, which all of its shape share."""
    result: Tensor
    result, _ = checkpoint.model.model.get_rope_index(
        ids, mm_token_type_ids=(ids == checkpoint.image_token_id).long(), image_grid_thw=row.image_grid_thw.cpu(),
        attention_mask=torch.ones_like(ids),
    )  # fmt: skip
    return result


def _common(starts: Sequence[int]) -> int:
    """Return how many of the first tokens are text that a call's rows have in common: all before the only image.

    A prompt with two images quotes an answer before them, which other rows do not have. This depends only
    on the row, so a rating does not depend on what else is read.
    """
    return starts[0] if len(starts) == 1 and starts[0] >= MIN_SHARED else 0


def _read_before(checkpoint: Checkpoint, ids: Tensor, shared: SharedReading) -> ReadStates:
    key = tuple(ids.tolist())
    if key not in shared.before:
        positions = torch.arange(len(key)).expand(3, 1, -1).to(checkpoint.device)
        states = read(checkpoint.model, ids[None].to(checkpoint.device), positions, keep=True, last=1).states
        assert states is not None
        shared.before[key] = states
    return shared.before[key]
