"""Pictures as the language model sees them: the frozen vision tower's tokens, computed once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from train_iqa.nano.build import TOKEN_PX
from train_iqa.nano.equal_windows import equal_windows
from train_iqa.nano.labels import LabelScale
from train_iqa.nano.pretrain import tower_tokens
from train_iqa.nano.synthetic import Record, Sample
from zoomiqa_reward.protocol import Protocol, zoom

BANK_PIXELS = 16 * 224 * 224
"""Pixels of equally large pictures that the vision tower reads at once."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture as the language model sees it."""

    features: Tensor
    """(tokens, width) float16, raster order."""
    grid: tuple[int, int]
    """Rows and columns of tokens."""
    label: float
    record: Record
    crop: "tuple[Tensor, tuple[int, int]] | None" = None
    """Features and grid of the enlarged region, for pictures that zoom."""


def _mirror(record: Record) -> Record:
    if record.box is None:
        return record
    left, top, right, bottom = record.box
    return Record(steps=record.steps, box=(1 - right, top, 1 - left, bottom))


def _fit(image: Tensor, protocol: Protocol) -> Tensor:
    """Return the image at the size that the processor gives it (bicubic, antialiased)."""
    height, width = smart_resize(*image.shape[1:], TOKEN_PX, protocol.min_pixels, protocol.max_pixels)
    if (height, width) == tuple(image.shape[1:]):
        return image
    size = (height, width)
    return nn.functional.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


@torch.no_grad()
def _features(tower: nn.Module, image_processor: object, images: list[Tensor]) -> list[Tensor]:
    """Return (tokens, width) float16 of each of equally large images."""
    with torch.autocast("cpu", torch.bfloat16), equal_windows(tower):
        return list(tower_tokens(tower, image_processor, torch.stack(images)).half())


def _grid(image: Tensor) -> tuple[int, int]:
    return image.shape[1] // TOKEN_PX, image.shape[2] // TOKEN_PX


def build_bank(
    tower: nn.Module,
    image_processor: object,
    samples: list[Sample],
    scale: LabelScale,
    protocol: Protocol,
    *,
    mirrored: bool,
    crops: bool,
    seed: int,
) -> list[Entry]:
    """Return the samples as entries; `mirrored` adds the flipped picture, `crops` the region, where damage is local.

    The crop is cut from the true box moved by up to 6 % of the frame, since at run time the model names it.
    """
    rng = np.random.default_rng([seed, 77])
    found: list[dict[str, Any]] = []
    waiting: dict[tuple[int, ...], list[tuple[dict[str, Any], str, Tensor]]] = {}

    def read(size: tuple[int, ...]) -> None:
        group = waiting.pop(size)
        for (entry, name, image), features in zip(
            group, _features(tower, image_processor, [image for _, _, image in group]), strict=True
        ):
            entry[name] = features if name == "features" else (features, _grid(image))

    def ask(entry: dict[str, Any], name: str, image: Tensor) -> None:
        group = waiting.setdefault(tuple(image.shape), [])
        group.append((entry, name, image))
        if len(group) * image.shape[1] * image.shape[2] >= BANK_PIXELS:
            read(tuple(image.shape))

    for sample in tqdm(samples, desc="vision tokens", mininterval=5):
        label = float(scale.pseudo_mos(sample.scores[None].astype(np.float64))[0])
        for flip in (False, True) if mirrored and sample.record.box is not None else (False,):
            image = torch.from_numpy(sample.image.astype(np.float32) / 255).permute(2, 0, 1)
            image = image.flip(2).contiguous() if flip else image.contiguous()
            record = _mirror(sample.record) if flip else sample.record
            fitted = _fit(image, protocol)
            found.append({"grid": _grid(fitted), "label": label, "record": record})
            ask(found[-1], "features", fitted)
            if crops and record.box is not None and not flip:
                moved = np.clip(np.asarray(record.box) + rng.uniform(-0.06, 0.06, 4), 0, 1).tolist()
                ask(found[-1], "crop", _fit(zoom(image, moved, protocol.crop)[0], protocol))
    for size in list(waiting):
        read(size)
    return [Entry(**entry) for entry in found]
