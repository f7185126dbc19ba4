"""Teaching a small Qwen2.5-VL end to end: `direct` ratings and the two reasoning rounds, on one mixture.

The tower goes on learning, at half the rate, with its dense targets beside: frozen, it kept what 36 % of the time had
taught it. An auxiliary read-out makes the middle layer say of each image token where it lies and whether damage
covers it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from train_iqa.nano.build import TOKEN_PX
from train_iqa.nano.degradations import DamageRecord, Step, sample_box
from train_iqa.nano.dense import DenseHeads, dense_batch
from train_iqa.nano.language import RatingTree, Readouts, row_tokens, rows_loss
from train_iqa.nano.rows import RATING_SIGMA, Grid, NanoRow, RowBuilder, mirrored
from train_iqa.nano.store import GRID, Store, StoredImage, cover_map
from train_iqa.nano.tower import read_tokens
from zoomiqa_reward.images.filters import resize_bicubic
from zoomiqa_reward.model.devices import half_autocast
from zoomiqa_reward.model.parts import WindowTower
from zoomiqa_reward.protocol import zoom

DENSE_WEIGHT, SECOND_WEIGHT = 0.5, 0.5
UNCHANGED_SHARE, LEAST_PX, LARGEST_PX = 0.5, 56, 448
MISTAKEN_SHARE = 0.4
"""Of second rounds, those after a first that zoomed by mistake; never taught, they came out unreadable."""
MISTAKEN_KINDS = ("oversharpen", "gaussian_blur", "jpeg", "gaussian_noise")
CROP_SHIFT = 0.08
"""Of the image's sides."""


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """Rows of one step."""

    direct: int = 96
    """Small crops with a direct rating; a multiple of 8."""
    direct_large: int = 24
    first: int = 40
    first_local: int = 40
    """More first rounds, of locally damaged images alone: boxes take longest to learn."""
    second: int = 16
    learning_rate: float = 8e-4
    """Of the language side, peak, after 80 steps; the tower's is half of it. Cosine to 2 %."""
    weight_decay: float = 0.02


@dataclass(frozen=True)
class NanoLearner:
    """What is taught: the model, what writes its rows, and read-outs that are thrown away."""

    model: Qwen2_5_VLForConditionalGeneration
    builder: RowBuilder
    heads: DenseHeads
    readouts: Readouts | None
    """None where the language side is held: the tower would learn what random read-outs ask for."""

    @property
    def tower(self) -> WindowTower:
        """The vision tower."""
        return self.model.model.visual


def as_float(image: Tensor) -> Tensor:
    """Return uint8 CHW as float in [0, 1]."""
    return image.float() / 255


def grid_of(image: Tensor) -> tuple[int, int]:
    """Return rows and columns of tokens of a CHW image."""
    return image.shape[1] // TOKEN_PX, image.shape[2] // TOKEN_PX


def vary_size(image: Tensor, record: DamageRecord, rng: np.random.Generator) -> Tensor:
    """Return the float image as it is, or at another size, down to `LEAST_PX`: photographs come in all of them.

    Of even damage a part is cut, which keeps its detail; local damage is resized whole, so that the box stays true.
    """
    if rng.random() < UNCHANGED_SHARE:
        return image
    sides = image.shape[1:]
    if record.box is not None:
        scale = rng.uniform(0.2, 1.0) * rng.uniform(0.85, 1.15, 2)
        wanted = (side * k for side, k in zip(sides, scale, strict=True))
        return resize_bicubic(
            image, *(min(LARGEST_PX, max(LEAST_PX, round(side / TOKEN_PX) * TOKEN_PX)) for side in wanted)
        )
    height, width = (TOKEN_PX * int(rng.integers(LEAST_PX // TOKEN_PX, side // TOKEN_PX + 1)) for side in sides)
    top, left = (
        int(rng.integers(0, side - target_px + 1)) for side, target_px in zip(sides, (height, width), strict=True)
    )
    return image[:, top : top + height, left : left + width]


def first_rounds(
    builder: RowBuilder, stored_images: list[StoredImage], rng: np.random.Generator
) -> tuple[list[NanoRow], list[Tensor], Tensor]:
    """Return round-1 rows of the images, half of them mirrored, their images, and the truth of their tokens.

    The truth is that of `token_truth`, one image after the other.
    """
    rows, images, truth = [], [], []
    for stored in stored_images:
        image, record = varied(stored, rng)
        rows.append(builder.first(record, grid_of(image), stored.label, rng))
        images.append(image)
        truth.append(token_truth(record, grid_of(image)))
    return rows, images, torch.cat(truth).to(images[0].device)


def varied(stored: StoredImage, rng: np.random.Generator) -> tuple[Tensor, DamageRecord]:
    """Return an image in [0, 1], half of the time mirrored, at one of many sizes, and its record."""
    image, record = as_float(stored.image), stored.record
    if rng.random() < 0.5:
        image, record = image.flip(2), mirrored(record)
    return vary_size(image, record, rng), record


def token_truth(record: DamageRecord, grid: Grid) -> Tensor:
    """Return float32 (tokens, 3): x and y of each token's middle, 0..1, and whether damage covers it."""
    y, x = np.meshgrid(*((np.arange(side) + 0.5) / side for side in grid), indexing="ij")
    truth = np.stack([x, y, cover_map(record, *grid)], axis=-1)
    return torch.from_numpy(truth.reshape(-1, 3)).float()


def second_rounds(
    builder: RowBuilder, stored_images: list[StoredImage], rng: np.random.Generator
) -> tuple[list[NanoRow], list[Tensor]]:
    """Return round-2 rows of the images, and their images: whole, crop, whole, crop, ...

    Where damage is local, the crop is cut from the true box moved a little, since at run time the model names it.
    Where it is not, round 1 is one that saw local damage by mistake, and round 2 says what is true.
    """
    rows, images = [], []
    for stored in stored_images:
        whole, record, claimed = as_float(stored.image), stored.record, stored.record
        if record.box is None:
            kind = Step(kind=str(rng.choice(MISTAKEN_KINDS)), severity=float(rng.uniform(0, 0.5)))
            claimed = DamageRecord(steps=record.steps or (kind,), box=sample_box(rng))
        assert claimed.box is not None
        moved = np.clip(np.asarray(claimed.box) + rng.uniform(-CROP_SHIFT, CROP_SHIFT, 4), 0, 1)
        crop, protocol = zoom(whole, moved.tolist(), builder.protocol.crop)[0], builder.protocol
        crop = resize_bicubic(crop, *smart_resize(*crop.shape[1:], TOKEN_PX, protocol.min_pixels, protocol.max_pixels))
        rows.append(builder.second(record, claimed, grid_of(whole), grid_of(crop), stored.label, rng))
        images += [whole, crop]
    return rows, images


def drawn_from(images: list[StoredImage], count: int, rng: np.random.Generator) -> list[StoredImage]:
    """Return `count` images drawn with replacement; none where there is none."""
    return [images[k] for k in rng.integers(0, len(images), count)] if images else []


def text_step(
    learner: NanoLearner,
    store: Store,
    rng: np.random.Generator,
    *,
    first: int,
    local: int,
    second: int,
    weight: float = 1,
) -> dict[str, float]:
    """Accumulate the gradients of first and second rounds, and return their losses."""
    losses: dict[str, float] = {}
    chosen = drawn_from(store.whole_images, first, rng) + drawn_from(store.whole(local=True), local, rng)
    if chosen:
        rows, images, truth = first_rounds(learner.builder, chosen, rng)
        tokens = row_tokens(learner.tower, images)
        loss, parts = rows_loss(learner.model, learner.builder, rows, tokens, learner.readouts, truth)
        (weight * loss).backward()
        losses |= {f"first_{name}": value for name, value in parts.items()}
    zooming = zooming_images(store, second, rng)
    return losses | (second_step(learner, zooming, rng, weight) if zooming else {})


def zooming_images(store: Store, count: int, rng: np.random.Generator) -> list[StoredImage]:
    """Return `count` images for second rounds: most with local damage, the others zoomed by mistake."""
    mistaken = int(rng.binomial(count, MISTAKEN_SHARE))
    zooming = drawn_from(store.whole(local=True), count - mistaken, rng)
    return zooming + drawn_from(store.whole(local=False), mistaken, rng)


def second_step(
    learner: NanoLearner, zooming: list[StoredImage], rng: np.random.Generator, weight: float = 1
) -> dict[str, float]:
    """Accumulate the gradients of the images' second rounds, and return their losses."""
    rows, images = second_rounds(learner.builder, zooming, rng)
    loss, parts = rows_loss(learner.model, learner.builder, rows, row_tokens(learner.tower, images))
    (weight * SECOND_WEIGHT * loss).backward()
    return {f"second_{name}": value for name, value in parts.items()}


def teach_step(
    learner: NanoLearner, tree: RatingTree, store: Store, config: TeachConfig, rng: np.random.Generator
) -> dict[str, float]:
    """Accumulate the gradients of one step and return its losses."""
    images, targets = dense_batch(store, config.direct, GRID, rng)
    with half_autocast(images.device):
        tokens = read_tokens(learner.tower, images)
    dense, parts = learner.heads.loss(tokens, targets)
    question = learner.builder.question(rng)
    loss, rated = tree.loss(tree.read(tokens, question), targets.labels, sigma=RATING_SIGMA, ranked=False)
    (loss + DENSE_WEIGHT * dense).backward()
    losses = {f"dense_{name}": value for name, value in parts.items()}
    losses |= {f"direct_{name}": value for name, value in rated.items()}
    by_size: dict[tuple[int, ...], list[StoredImage]] = {}
    for image in drawn_from(store.whole_images, config.direct_large, rng):
        by_size.setdefault(tuple(image.image.shape), []).append(image)
    for group in by_size.values():
        images = torch.stack([as_float(parameter.image) for parameter in group])
        labels = torch.tensor([parameter.label for parameter in group], device=images.device)
        loss, _ = tree.loss(tree.logprobs(images, question), labels, sigma=RATING_SIGMA, ranked=False)
        (len(group) / config.direct_large * loss).backward()
    counts = {"first": config.first, "local": config.first_local, "second": config.second}
    return losses | text_step(learner, store, rng, **counts)
