"""Synthetic degradations of photographs, seeded, of the whole image or of one region, with a record of what was done.

Each degradation is one small function `(image, severity, rng) -> (image, params)`; `severity` in [0, 1] runs from
just visible to destroyed. A new one is added by writing the function and one line in `DEGRADATIONS`.
Sources: the distortion families of KADID-10k and TID2013 (kinds), Real-ESRGAN (sinc ringing, coloured noise).
Deviation: severities here are spaced for even steps of full-reference quality, not after any data set's levels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.special import j1

from zoomiqa_reward.images.filters import jpeg_file

Array = NDArray[np.float32]
Degradation = Callable[[Array, float, np.random.Generator], tuple[Array, dict[str, float | str]]]

RESAMPLERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _log(low: float, high: float, severity: float) -> float:
    return float(low * (high / low) ** severity)


def _to_uint8(image: Array) -> NDArray[np.uint8]:
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _from_pil(image: Image.Image) -> Array:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def resize(image: Array, width: int, height: int, kernel: str) -> Array:
    """Return an HWC float image resized by one of `RESAMPLERS` (antialiased when it shrinks, except `nearest`)."""
    planes = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])]
    return np.stack([np.asarray(p.resize((width, height), RESAMPLERS[kernel])) for p in planes], axis=-1).clip(0, 1)


def _convolve(image: Array, kernel: Array) -> Array:
    return np.stack(
        [ndimage.convolve(image[..., c], kernel, mode="reflect") for c in range(image.shape[2])], axis=-1
    ).astype(np.float32)


def gaussian_blur(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    sigma = _log(0.5, 5.0, severity)
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="reflect"), {"sigma_px": sigma}


def motion_blur(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    length, angle = _log(2.5, 22.0, severity), float(rng.uniform(0, np.pi))
    half = int(np.ceil(length / 2))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    kernel = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    return _convolve(image, (kernel / kernel.sum()).astype(np.float32)), {"length_px": length, "angle_rad": angle}


def defocus_blur(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    radius = _log(0.8, 7.0, severity)
    half = int(np.ceil(radius))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return _convolve(image, (kernel / kernel.sum()).astype(np.float32)), {"radius_px": radius}


def gaussian_noise(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    sigma = _log(0.012, 0.22, severity)
    return image + rng.normal(0, sigma, image.shape).astype(np.float32), {"sigma": sigma}


def poisson_noise(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    photons = _log(2500.0, 10.0, severity)
    return (rng.poisson(image.clip(0, 1) * photons) / photons).astype(np.float32), {"photons": photons}


def colour_noise(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    """Noise correlated over a few pixels, stronger in colour than in brightness (high-ISO look)."""
    sigma, grain = _log(0.015, 0.2, severity), float(rng.uniform(0.6, 1.6))
    noise = ndimage.gaussian_filter(rng.normal(0, 1, image.shape).astype(np.float32), (grain, grain, 0))
    noise = noise / noise.std() * sigma
    luma = noise.mean(axis=2, keepdims=True)
    return image + (noise - luma) + 0.4 * luma, {"sigma": sigma, "grain_px": grain}


def jpeg(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    quality = round(_log(75, 5, severity))
    return _from_pil(jpeg_file(Image.fromarray(_to_uint8(image)), quality)), {"quality": quality}


def resample(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    """Down-sampling, then up-sampling to the same size: what interpolators and weak super-resolution leave."""
    factor = _log(1.3, 8.0, severity)
    names = list(RESAMPLERS)
    down, up = str(rng.choice([*names, "bicubic", "bicubic"])), str(rng.choice([*names, "nearest", "bicubic"]))
    height, width = image.shape[:2]
    small = resize(image, max(4, round(width / factor)), max(4, round(height / factor)), down)
    return resize(small, width, height, up), {"factor": factor, "down": down, "up": up}


def oversharpen(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    amount, radius = _log(0.6, 7.0, severity), float(rng.uniform(0.7, 2.5))
    return image + amount * (image - ndimage.gaussian_filter(image, (radius, radius, 0))), {
        "amount": amount,
        "radius_px": radius,
    }


def ringing(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    """Ideal low-pass (circular sinc kernel): soft detail and ripples beside edges. Source: Real-ESRGAN (sinc)."""
    cutoff, half = _log(2.4, 0.45, severity), 10
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    distance = np.hypot(x, y)
    with np.errstate(invalid="ignore", divide="ignore"):
        kernel = cutoff * j1(cutoff * distance) / (2 * np.pi * distance)
    kernel[half, half] = cutoff**2 / (4 * np.pi)
    return _convolve(image, (kernel / kernel.sum()).astype(np.float32)), {"cutoff_rad_per_px": cutoff}


def contrast(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    gain = _log(0.85, 0.2, severity) if rng.random() < 0.5 else _log(1.2, 3.5, severity)
    mean = image.mean()
    return (image - mean) * gain + mean, {"gain": gain}


def exposure(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    gamma = _log(1.2, 4.0, severity) ** float(rng.choice([-1.0, 1.0]))
    return image.clip(0, 1) ** gamma, {"gamma": gamma}


def colour(image: Array, severity: float, rng: np.random.Generator) -> tuple[Array, dict[str, float | str]]:
    """Colour cast or wrong saturation."""
    if rng.random() < 0.5:
        cast = rng.normal(0, 1, 3)
        cast = (cast - cast.mean()) / np.abs(cast - cast.mean()).max() * _log(0.05, 0.35, severity)
        return image + cast.astype(np.float32), {"cast": float(np.abs(cast).max())}
    gain = _log(0.75, 0.05, severity) if rng.random() < 0.5 else _log(1.4, 4.0, severity)
    luma = image.mean(axis=2, keepdims=True)
    return luma + (image - luma) * gain, {"saturation": gain}


DEGRADATIONS: dict[str, Degradation] = {
    "gaussian_blur": gaussian_blur,
    "motion_blur": motion_blur,
    "defocus_blur": defocus_blur,
    "gaussian_noise": gaussian_noise,
    "poisson_noise": poisson_noise,
    "colour_noise": colour_noise,
    "jpeg": jpeg,
    "resample": resample,
    "oversharpen": oversharpen,
    "ringing": ringing,
    "contrast": contrast,
    "exposure": exposure,
    "colour": colour,
}
# Blur, resampling and JPEG are what restoration meets most; tone and colour matter little to it.
SHARES = {"resample": 3.0, "gaussian_blur": 1.5, "jpeg": 1.5, "contrast": 0.5, "exposure": 0.5, "colour": 0.5}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One applied degradation."""

    kind: str
    severity: float
    """0 just visible .. 1 destroyed."""
    params: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DamageRecord:
    """What was done to an image: the truth that rationales, boxes and tests are built from."""

    steps: tuple[Step, ...]
    """In the order of application; empty for an untouched image."""
    box: tuple[float, float, float, float] | None = None
    """Region (left, top, right, bottom in 0..1) of a local degradation, None for the whole image."""


def sample_steps(rng: np.random.Generator, max_steps: int = 3) -> tuple[Step, ...]:
    """Return one to `max_steps` different degradations; several share the damage, so a chain is not always ruined."""
    kinds = list(DEGRADATIONS)
    shares = np.array([SHARES.get(kind, 1.0) for kind in kinds])
    count = int(
        rng.choice(
            np.arange(1, max_steps + 1), p=np.array([0.65, 0.25, 0.1])[:max_steps] / sum([0.65, 0.25, 0.1][:max_steps])
        )
    )
    chosen = rng.choice(len(kinds), size=count, replace=False, p=shares / shares.sum())
    return tuple(Step(kind=kinds[k], severity=float(rng.uniform(0, 1) ** (1 + 0.5 * (count - 1)))) for k in chosen)


def sample_box(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Return a region: area uniform in 5..40 % of the image, aspect 1/2..2, centre uniform where the box fits."""
    area, aspect = rng.uniform(0.05, 0.4), np.exp(rng.uniform(-np.log(2), np.log(2)))
    width = min(0.95, float(np.sqrt(area * aspect)))
    height = min(0.95, float(area / width))
    left, top = float(rng.uniform(0, 1 - width)), float(rng.uniform(0, 1 - height))
    return left, top, left + width, top + height


def degrade(
    image: Array,
    steps: tuple[Step, ...],
    rng: np.random.Generator,
    box: tuple[float, float, float, float] | None = None,
) -> tuple[Array, DamageRecord]:
    """Return the degraded image (float32 HWC in [0, 1], rounded to 8 bits as a stored photograph is) and its record.

    With `box`, only that region changes, blended over a seam of 1.5 % of the shorter side.
    """
    out, done = image, []
    for step in steps:
        out, params = DEGRADATIONS[step.kind](out, step.severity, rng)
        out = out.clip(0, 1).astype(np.float32)
        done.append(Step(kind=step.kind, severity=step.severity, params=params))
    if box is not None:
        height, width = image.shape[:2]
        left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
        inside = np.minimum(np.minimum(x - left, right - x), np.minimum(y - top, bottom - y))
        seam = max(1.0, 0.015 * min(height, width))
        mask = np.clip(inside / seam + 0.5, 0, 1)[..., None]
        out = image + mask * (out - image)
    return _to_uint8(out).astype(np.float32) / np.float32(255), DamageRecord(steps=tuple(done), box=box)
