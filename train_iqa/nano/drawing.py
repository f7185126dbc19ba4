"""Degraded images drawn from clean photographs, on the CPU: what is drawn, without labels.

A draw is one of: damage of one to three kinds, over the whole image or inside one region; a smaller copy, often with
noise or JPEG of its own, enlarged again (what weak super-resolution leaves); a failed image (black, white, one
colour). A third of all are stored as good JPEGs at the end, so that traces of one say nothing of quality; some are
grey. References are windows of photographs at a random scale: a model that has only seen one scale takes content for
blur.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train_iqa.nano.degradations import (
    RESAMPLERS,
    Array,
    DamageRecord,
    Step,
    colour_noise,
    degrade,
    gaussian_blur,
    gaussian_noise,
    jpeg,
    oversharpen,
    poisson_noise,
    resize,
    sample_box,
    sample_steps,
)
from zoomiqa_reward.images.filters import LUMA, jpeg_file

SMALL_PX = 224
LARGE_PX = ((448, 308), (308, 448), (364, 364), (448, 336), (420, 336), (336, 336), (448, 252), (392, 308))
"""Width and height of whole images; all are multiples of 28."""
FAILED_SHARE, ENLARGED_SHARE, UNTOUCHED_SHARE = 0.04, 0.24, 0.05
GREY_SHARE, JPEG_SHARE, HALF_SCALE_SHARE = 0.07, 0.33, 0.2
LOCAL_SHARE_SMALL, LOCAL_SHARE_LARGE = 0.2, 0.5
NOISES = {"gaussian_noise": gaussian_noise, "poisson_noise": poisson_noise, "colour_noise": colour_noise}


@dataclass(frozen=True, kw_only=True)
class DegradedImage:
    """One degraded image."""

    image: NDArray[np.uint8]
    """HWC."""
    reference: NDArray[np.uint8]
    record: DamageRecord
    is_failed: bool = False
    """The whole image is black, white or one colour: its label is the worst, whatever the metrics say."""


def window_of(photograph: Image.Image, width: int, height: int, rng: np.random.Generator) -> Array:
    """Return a random window, HWC in [0, 1]: 80 % reduced by up to 2.5 or as stored, 20 % enlarged by up to 2.6."""
    if rng.random() < 0.5:
        photograph = photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    least = max(width / photograph.width, height / photograph.height)
    low, high = (0.4, 1.0) if rng.random() < 0.8 else (1.0, 2.6)
    scale = max(least, float(np.exp(rng.uniform(np.log(low), np.log(high)))))
    size = max(width, round(photograph.width * scale)), max(height, round(photograph.height * scale))
    left, top = rng.integers(0, size[0] - width + 1), rng.integers(0, size[1] - height + 1)
    kx, ky = photograph.width / size[0], photograph.height / size[1]
    box = (left * kx, top * ky, (left + width) * kx, (top + height) * ky)
    kernel = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)[rng.integers(0, 3)]
    return np.asarray(photograph.resize((width, height), kernel, box=box), dtype=np.float32) / np.float32(255)


def failed(reference: Array, rng: np.random.Generator) -> tuple[Array, DamageRecord]:
    """Return an image of one colour, hardly more, whole or inside a region, and what can truly be said of it."""
    draw = rng.random()
    if draw < 0.4:
        colour, step = np.full(3, rng.uniform(0, 0.06)), Step(kind="exposure", severity=1.0, params={"gamma": 4.0})
    elif draw < 0.65:
        colour, step = np.full(3, rng.uniform(0.94, 1)), Step(kind="exposure", severity=1.0, params={"gamma": 0.25})
    else:
        colour = np.full(3, rng.uniform(0.1, 0.9)) if draw < 0.85 else rng.uniform(0, 1, 3)
        step = Step(kind="contrast", severity=1.0, params={"gain": 0.2})
    image = np.broadcast_to(colour, reference.shape).astype(np.float32)
    if rng.random() < 0.3:  # a shade of what was there
        image = image + np.float32(rng.uniform(0, 0.06)) * (reference - 0.5)
    if rng.random() < 0.4:
        image = image + rng.normal(0, rng.uniform(0.001, 0.012), image.shape).astype(np.float32)
    box = sample_box(rng) if rng.random() < 0.35 else None
    if box is not None:
        height, width = reference.shape[:2]
        left, top, right, bottom = (round(v * side) for v, side in zip(box, (width, height) * 2, strict=True))
        whole = reference.copy()
        whole[top:bottom, left:right] = image[top:bottom, left:right]
        image = whole
    return image.clip(0, 1), DamageRecord(steps=(step,), box=box)


def enlarged(reference: Array, rng: np.random.Generator) -> tuple[Array, DamageRecord]:
    """Return a smaller copy, perhaps with sensor noise or JPEG of its own, enlarged to the same size again."""
    height, width = reference.shape[:2]
    factor = 1.4 * (8.0 / 1.4) ** rng.uniform() if rng.random() < 0.5 else float(rng.choice([2, 3, 4, 8]))
    severity = float(np.clip(np.log(factor / 1.4) / np.log(8 / 1.4), 0, 1))
    down = str(rng.choice([*list(RESAMPLERS)[1:], "bicubic", "bicubic"]))
    up = str(rng.choice([*RESAMPLERS, "bicubic", "bicubic", "lanczos"]))
    image = reference
    if rng.random() < 0.3:
        image, _ = gaussian_blur(image, float(rng.uniform(0, 0.5)), rng)
    image = resize(image, max(4, round(width / factor)), max(4, round(height / factor)), down)
    steps = [Step(kind="resample", severity=severity, params={"factor": factor, "down": down, "up": up})]

    def add(kind: str, strongest: float) -> None:
        nonlocal image
        strength = float(rng.uniform(0, strongest))
        function = NOISES.get(kind) or {"jpeg": jpeg, "oversharpen": oversharpen}[kind]
        image, params = function(image.clip(0, 1), strength, rng)
        steps.append(Step(kind=kind, severity=strength, params=params))

    if rng.random() < 0.45:
        add(str(rng.choice(list(NOISES))), 0.55)
    if rng.random() < 0.2:
        add("jpeg", 0.5)
    image = resize(image.clip(0, 1), width, height, up)
    if rng.random() < 0.15:
        add("oversharpen", 0.4)
    return image.clip(0, 1).astype(np.float32), DamageRecord(steps=tuple(steps))


def _damaged(reference: Array, rng: np.random.Generator, local_share: float) -> tuple[Array, DamageRecord]:
    if rng.random() < UNTOUCHED_SHARE:
        return degrade(reference, (), rng)
    return degrade(reference, sample_steps(rng), rng, sample_box(rng) if rng.random() < local_share else None)


def _stored(image: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return 8 bits; a third of all went through a good JPEG."""
    stored = (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() >= JPEG_SHARE:
        return stored
    quality, subsampling = int(rng.integers(82, 99)), int(rng.choice([0, 2]))
    return np.asarray(jpeg_file(Image.fromarray(stored), quality, subsampling).convert("RGB"))


def draw_image(
    photograph: Image.Image, rng: np.random.Generator, *, large: bool, local_share: float | None = None
) -> DegradedImage:
    """Return one draw: a 224 px crop, or a `large` whole image of one of `LARGE_PX`.

    local_share: of the damaged ones, how many inside a region; by default `LOCAL_SHARE_SMALL` or `LOCAL_SHARE_LARGE`.
    """
    width, height = LARGE_PX[rng.integers(0, len(LARGE_PX))] if large else (SMALL_PX, SMALL_PX)
    if local_share is None:
        local_share = LOCAL_SHARE_LARGE if large else LOCAL_SHARE_SMALL
    # Some crops are half-scale views: damaged on a canvas twice as large, then reduced.
    zoom_out = 2 if not large and rng.random() < HALF_SCALE_SHARE else 1
    reference = window_of(photograph, width * zoom_out, height * zoom_out, rng)
    draw, is_failed = rng.random(), False
    if draw < FAILED_SHARE:
        image, record = failed(reference, rng)
        is_failed = record.box is None
    elif draw < FAILED_SHARE + ENLARGED_SHARE:
        image, record = enlarged(reference, rng)
    else:
        image, record = _damaged(reference, rng, local_share)
    if zoom_out > 1:
        image, reference = (resize(x, width, height, "bicubic") for x in (image, reference))
    if rng.random() < GREY_SHARE:
        luma = np.array(LUMA, dtype=np.float32)
        image, reference = (np.repeat((x @ luma)[..., None], 3, axis=2) for x in (image, reference))
    return DegradedImage(
        image=_stored(image, rng),
        reference=(reference.clip(0, 1) * 255 + 0.5).astype(np.uint8),
        record=record,
        is_failed=is_failed,
    )
