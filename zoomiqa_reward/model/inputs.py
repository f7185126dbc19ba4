"""From a prompted turn to the tensors of one row, and from rows to a left-padded batch.

Qwen-VL builds its 3-D positions only if `mm_token_type_ids` and `image_grid_thw` are both given, and otherwise falls
back silently to text positions; so every row carries both, and the counts are checked for each row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.pixels import to_patches
from zoomiqa_reward.model.turns import Prompted


class PromptError(ZoomIQAError, ValueError):
    """A prompt that the chat template or the tokenizer changed: the model would be asked something else."""


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """One prompt, ready for the model."""

    input_ids: Tensor
    """int64 [tokens]; each image token stands for one image feature."""
    pixel_values: Tensor
    """float32 [patches, patch_dim] of all its images."""
    image_grid_thw: Tensor
    """int64 [images, 3]"""
    parts: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)
    """The patches image by image, where they are shared with other rows: then one tensor stands for one image."""

    @cached_property
    def patches(self) -> tuple[Tensor, ...]:
        """Of each image, [patches, patch_dim]."""
        return self.parts or torch.split(self.pixel_values, self.image_grid_thw.prod(dim=-1).tolist())


def render(checkpoint: Checkpoint, messages: Sequence[dict[str, Any]]) -> str:
    """Return the prompt's text as the chat template writes it.

    Raises PromptError if it does not hold the whole of every quoted answer: some newer templates drop the reasoning
    of earlier turns, and round 2 would then be asked about an answer it cannot see.
    """
    # A level word follows at once; templates that know no thinking ignore the option.
    options = {"enable_thinking": False} if checkpoint.protocol.levels else {}
    text: str = checkpoint.tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, **options
    )
    for message in messages:
        quoted = "".join(item.get("text", "") for item in message["content"]) if message["role"] == "assistant" else ""
        if quoted.strip() not in text:
            raise PromptError(
                f"the chat template of {checkpoint.name} drops a part of round 1's answer from round 2's prompt; "
                f"use a template that keeps the assistant's text whole"
            )
    return text


def encode(checkpoint: Checkpoint, prompted: Prompted) -> Tensor:
    """Return int64 [tokens] of the prompt and the answer's start, with one image token per image.

    Raises PromptError if the number differs, as when a question or a quoted answer holds the image token itself.
    """
    text = render(checkpoint, prompted.messages) + prompted.start
    ids = torch.tensor(checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
    num_image_tokens = int((ids == checkpoint.image_token_id).sum())
    if num_image_tokens != len(prompted.images):
        raise PromptError(f"the prompt holds {num_image_tokens} image tokens for {len(prompted.images)} images")
    return ids


def make_row(
    checkpoint: Checkpoint,
    prompted: Prompted,
    *,
    resize: bool = True,
    ids: Tensor | None = None,
    prepared: dict[int, tuple[Tensor, Tensor, Tensor]] | None = None,
) -> TokenRow:
    """Return the row of a turn; its images go through the processor, on the model's device.

    resize=False reads images unresized (tiles). ids: the prompt as `encode` returned it, if already there. prepared:
    images that rows of the same call have shown, by identity; what is not there is added, so that an image which is
    shown again is prepared once.
    """
    ids = encode(checkpoint, prompted) if ids is None else ids
    prepared = {} if prepared is None else prepared
    for image in prompted.images:
        if id(image) not in prepared:
            prepared[id(image)] = (image, *_prepare(checkpoint, image, resize))
    shown = [prepared[id(image)] for image in prompted.images]
    parts, grid = tuple(patches for _, patches, _ in shown), torch.cat([size for _, _, size in shown])
    counts = torch.ones_like(ids)
    counts[ids == checkpoint.image_token_id] = _features(checkpoint, grid).to(ids.device)
    row = TokenRow(
        input_ids=ids.repeat_interleave(counts), pixel_values=parts[0] if len(parts) == 1 else torch.cat(parts),
        image_grid_thw=grid, parts=parts,
    )  # fmt: skip
    check_row(checkpoint, row)
    return row


def _prepare(checkpoint: Checkpoint, image: Tensor, resize: bool) -> tuple[Tensor, Tensor]:
    protocol = checkpoint.protocol
    return to_patches(
        checkpoint.image_processor, [image.to(checkpoint.device)], min_pixels=protocol.min_pixels,
        max_pixels=protocol.max_pixels, resize=resize,
    )  # fmt: skip


def check_row(checkpoint: Checkpoint, row: TokenRow) -> None:
    """Raise PromptError unless the row's image tokens and patches are as many as its grid asks for."""
    tokens = int((row.input_ids == checkpoint.image_token_id).sum())
    features = int(_features(checkpoint, row.image_grid_thw).sum())
    patches = int(row.image_grid_thw.prod(dim=-1).sum())
    if tokens != features or patches != row.pixel_values.shape[0]:
        raise PromptError(
            f"a row holds {tokens} image tokens for {features} image features, "
            f"{row.pixel_values.shape[0]} patches for a grid of {patches}"
        )


def collate(checkpoint: Checkpoint, rows: Sequence[TokenRow], append: Sequence[int] = ()) -> dict[str, Tensor]:
    """Return the model's inputs for rows of any length: left-padded, on the model's device.

    `append`: tokens that follow every prompt (text). Keys: input_ids, attention_mask and mm_token_type_ids
    [batch, tokens]; pixel_values [patches, patch_dim]; image_grid_thw [images, 3].
    """
    for row in rows:
        check_row(checkpoint, row)
    tail = torch.tensor(list(append), dtype=torch.long)
    longest = max(row.input_ids.shape[0] for row in rows) + tail.shape[0]
    ids = torch.full((len(rows), longest), int(checkpoint.tokenizer.pad_token_id), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        full = torch.cat([row.input_ids, tail])
        ids[index, longest - full.shape[0] :] = full
        mask[index, longest - full.shape[0] :] = 1
    device = checkpoint.device
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "mm_token_type_ids": (ids == checkpoint.image_token_id).long().to(device),
        "pixel_values": torch.cat([row.pixel_values for row in rows]).to(device),
        "image_grid_thw": torch.cat([row.image_grid_thw for row in rows]).to(device),
    }


def _features(checkpoint: Checkpoint, grid: Tensor) -> Tensor:
    return grid.prod(dim=-1) // int(checkpoint.image_processor.merge_size) ** 2
