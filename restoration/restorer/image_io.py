"""What a restoration system needs around its call, each piece by itself: pixels in, prompts, pixels out, colour, and
what makes candidates differ where noise does not.

The call itself is in `module_engine.py` and `pipeline_engine.py`, randomness in `rng.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from restoration.degradation.classical import enlarge
from restoration.restorer.noise import NoiseStep, mixing_weights
from restoration.restorer.rng import candidate_seed
from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images.loading import RANGE_TOLERANCE, load_image

PROMPT = str | Callable[[Tensor], str]
"""A text, or what makes one of the low-quality image (CHW in [0, 1]), such as a tagger or a model's advice."""

SharpnessRange = float | tuple[float, float]
"""How differently candidates see their input: a number for as much softer as sharper, or (lowest, highest)."""

COLOUR_FIXES = ("none", "adain", "wavelet")
KERNELS = ("none", "nearest", "bilinear", "bicubic", "lanczos")
OVERSHOOT = 0.5
"""Networks leave [0, 1] at edges by less than this, and are clamped; more is another range: [-1, 1] or 0..255."""
VALUE_RANGES = {"unit": (0.0, 1.0), "signed": (-1.0, 1.0), "bytes": (0.0, 255.0)}
"""What a network's values mean: its least and its greatest."""
WAVELET_LEVELS = 5
"""Doublings of the blur that divides colour from detail: the fix reaches about 2^5 px, as in StableSR."""
SHARPNESS_SIGMA_PX = 0.8
"""Blur, in pixels of the low-quality image, that `sharpened` adds or takes away."""


class RestorationError(ZoomIQAError, RuntimeError):
    """One candidate could not be made; the message says by what and why. Other candidates may still be made."""


def pre_upscale(image: Tensor, scale: int, kernel: str) -> Tensor:
    """Return the CHW image `scale` times larger, for systems whose output has the size of their input.

    Planes stay float (no rounding to 8 bits). kernel: one of `KERNELS`; "none" returns the image itself.
    """
    if kernel == "none" or scale == 1:
        return image
    grown = enlarge(image.permute(1, 2, 0).numpy(), scale, kernel)
    return torch.from_numpy(np.ascontiguousarray(grown.transpose(2, 0, 1)))


def sharpness_range(vary: SharpnessRange) -> tuple[float, float]:
    """Return the least and the largest sharpness that `vary_sharpness` stands for. Raises ValueError outside -1..1.

    >>> sharpness_range(0.5), sharpness_range((0.0, 0.5))
    ((-0.5, 0.5), (0.0, 0.5))
    """
    low, high = vary if isinstance(vary, tuple | list) else (-vary, vary)
    if not -1 <= low <= high <= 1:
        raise ValueError(
            f"vary_sharpness={vary}: must be 0 (the input as it is) to 1, or a pair (lowest, highest) within -1 to 1"
        )
    return low, high


def drawn_sharpness(seed: int, vary: SharpnessRange, noise: Sequence[NoiseStep] = ()) -> float:
    """Return how much sharper than given candidate `seed` sees its input: uniform in the range, fixed by the seed.

    vary: a number for [-vary, vary], or a pair (lowest, highest).
    noise: steps away from the seed's value. They are taken on the normal score of the value, like those of Gaussian
    noise, so that the result is uniform again.

    >>> drawn_sharpness(7, 0.0), drawn_sharpness(7, 1.0) == drawn_sharpness(7, 1.0)
    (0.0, True)
    >>> 0.2 <= drawn_sharpness(7, (0.2, 0.4)) <= 0.4
    True
    >>> near = drawn_sharpness(7, 1.0, [NoiseStep(seed=1, amount=0.1)])
    >>> 0 < abs(near - drawn_sharpness(7, 1.0)) < 0.2
    True
    """
    low, high = sharpness_range(vary)
    if low == high:
        return high  # of 0, the lowest is -0.0
    centre, half = (low + high) / 2, (high - low) / 2
    drawn = float(np.random.default_rng(seed).uniform(-1, 1))
    if not noise:
        return centre + half * drawn
    others = [np.random.default_rng(candidate_seed(seed, step.seed)).uniform(-1, 1) for step in noise]
    normal, least = NormalDist(), 2.0**-53  # its score of 0 is infinite
    scores = [normal.inv_cdf(max((value + 1) / 2, least)) for value in (drawn, *others)]
    mixed = sum(weight * score for weight, score in zip(mixing_weights(noise), scores, strict=True))
    return centre + half * (2 * normal.cdf(mixed) - 1)


def sharpened(image: Tensor, sharpness: float, sigma_px: float = SHARPNESS_SIGMA_PX) -> Tensor:
    """Return x + sharpness (x - blurred x) of a CHW image, in [0, 1]; -1 gives the blurred one. sigma_px: of the blur.

    How blurred a low-quality image was is not known to a blind restorer. A candidate that sees it softer, or sharper,
    assumes less, or more, blur, and its restoration differs in structure, which another noise alone often does not.
    """
    if sharpness == 0:
        return image
    blurred = ndimage.gaussian_filter(image.numpy(), (0, sigma_px, sigma_px), mode="mirror")
    return (image + sharpness * (image - torch.from_numpy(blurred))).clamp(0, 1)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Return the CHW image with its right and bottom edge mirrored until both sides are multiples.

    >>> pad_to_multiple(torch.arange(3.0).reshape(1, 1, 3), 8)[0, 0].tolist()
    [0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0]
    """
    height, width = (-(-side // multiple) * multiple for side in image.shape[-2:])
    return mirrored(image, height, width)


def mirrored(images: Tensor, height: int, width: int) -> Tensor:
    """Return the CHW or BCHW images with their right and bottom edge mirrored up to that size.

    Any size works, also where more is added than there is: the mirror image is mirrored again.
    """
    for axis, wanted in ((-2, height), (-1, width)):
        side = images.shape[axis]
        if wanted != side:
            period = max(2 * side - 2, 1)
            position = torch.arange(wanted, device=images.device) % period
            images = images.index_select(axis, torch.minimum(position, period - position).clamp(max=side - 1))
    return images


def prompt_text(prompt: PROMPT, image: Tensor) -> str:
    """Return the prompt for this image. Raises TypeError where a provider returns no text."""
    text = prompt(image) if callable(prompt) else prompt
    if not isinstance(text, str):
        raise TypeError(f"prompt={text!r}: must be a text, or a callable that makes one of the image")
    return text


def unit_images(output: Any, name: str, value_range: str = "unit") -> list[Tensor]:
    """Return what a system gave back as float32 CHW images in [0, 1] on the CPU, one per candidate.

    Takes diffusers' output object, its tuple, a BCHW or CHW tensor, PIL images, uint8 arrays, or a list of such.
    value_range: of floats, of `VALUE_RANGES`. Values within `OVERSHOOT` of [0, 1] are clamped. Raises RestorationError
    naming `name` for anything else, NaN included, and for an image that a safety checker has blackened.
    """
    flagged = getattr(output, "nsfw_content_detected", None)
    if flagged is not None and any(flagged):
        raise RestorationError(f"{name}: its safety checker blackened the image; load it with safety_checker=None")
    return [_unit(from_range(image, value_range), name) for image in images_of(output)]


def single_image(output: object, name: str, value_range: str) -> Tensor:
    """Return the one image of `unit_images`. Raises RestorationError also where there are none, or several."""
    images = unit_images(output, name, value_range)
    if len(images) != 1:
        raise RestorationError(
            f"{name} returned {len(images)} images for one candidate: let it return the restoration alone, or a tuple "
            "that begins with it"
        )
    return images[0]


def images_of(output: object) -> list[object]:
    """Return the images that a system gave back, as they are: of a tuple the first entry, of a batch its rows."""
    images = getattr(output, "images", output)
    while isinstance(images, tuple) and images:
        images = images[0]
    if isinstance(images, Tensor | np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if not isinstance(images, list):
        return [images]
    batches = (isinstance(image, Tensor | np.ndarray) and image.ndim == 4 for image in images)
    return [part for image, is_batch in zip(images, batches, strict=True) for part in (image if is_batch else [image])]


def _unit(image: Any, name: str) -> Tensor:
    if isinstance(image, np.ndarray) and _holds_floats(image) and image.ndim == 3:
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))  # diffusers' "np": float HWC
    if isinstance(image, Tensor) and image.is_floating_point():
        image = image.detach().float().cpu()
        if image.numel() and float(image.min()) >= -OVERSHOOT and float(image.max()) <= 1 + OVERSHOOT:
            image = image.clamp(0, 1)
    try:
        return load_image(image)
    except ValueError as error:
        raise RestorationError(f"{name} did not return an image: {error}") from error


def from_range(image: Any, value_range: str) -> Any:
    """Return an image of floats of that range, of `VALUE_RANGES`, as one of [0, 1]; anything else as it is."""
    low, high = VALUE_RANGES[value_range]
    if value_range == "unit" or not _holds_floats(image):
        return image
    return ((image.float() if isinstance(image, Tensor) else image.astype(np.float32)) - low) / (high - low)


def leaves_unit(output: object, value_range: str) -> bool:
    """Return whether an image of floats, of that range, has values that `load_image` does not take for [0, 1]."""
    return any(low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE for low, high in _extremes(output, value_range))


def _extremes(output: Any, value_range: str) -> Iterator[tuple[float, float]]:
    """Yield the least and the greatest value of each image of floats in a system's output, as one of [0, 1]."""
    for image in images_of(output):
        if _holds_floats(image):
            values = torch.as_tensor(from_range(image, value_range)).detach().float()
            if values.numel():
                yield float(values.min()), float(values.max())


def _holds_floats(image: Any) -> bool:
    if isinstance(image, Tensor):
        return image.is_floating_point()
    return isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating)


def probe_image(image: Tensor) -> Tensor:
    """Return an image as large as `image` from black at its left to white at its right, which shows a range whole."""
    ramp = torch.linspace(0, 1, image.shape[2]).mul(1.5).sub(0.25).clamp(0, 1)
    return ramp.expand(image.shape).contiguous()


def check_range(output: Any, name: str, value_range: str) -> None:
    """Raise RestorationError where a network's answer to `probe_image` is of another range than it declares.

    One image cannot tell: a network of [-1, 1] stays within [0, 1] where the image is bright.
    """
    extremes = _extremes(output, value_range)
    outside = [(low, high) for low, high in extremes if low < -OVERSHOOT or high > 1 + OVERSHOOT]
    if not outside:
        return
    low, high = outside[0]
    raise RestorationError(
        f"{name} made {low:.3g}..{high:.3g} of an image of black and white, which is not in [0, 1] after value_range="
        f"{value_range!r}; say what it writes: value_range='signed' for -1..1, 'bytes' for 0..255"
    )


def colour_fix(image_sr: Tensor, image_lq: Tensor, how: str) -> Tensor:
    """Return the CHW restoration with the colours of the low-quality image; "none" returns it as it is.

    adain: each channel gets the mean and the spread of the LR image's. wavelet: everything coarser than about 32 px
    is the LR image's, the detail stays. Both in [0, 1], clamped.
    Sources: AdaIN (Huang and Belongie 2017) and the wavelet fix of StableSR (Wang et al. 2023), section 3.
    """
    if how == "none":
        return image_sr
    size = tuple(image_sr.shape[1:])
    wanted = functional.interpolate(image_lq[None], size=size, mode="bicubic", align_corners=False)[0]
    if how == "adain":
        std_sr, mean_sr = torch.std_mean(image_sr, dim=(1, 2), keepdim=True, correction=0)
        std_lq, mean_lq = torch.std_mean(wanted, dim=(1, 2), keepdim=True, correction=0)
        fixed = (image_sr - mean_sr) / std_sr.clamp(min=1e-5) * std_lq + mean_lq
    else:
        fixed = image_sr - _coarse(image_sr) + _coarse(wanted)
    return fixed.clamp(0, 1)


def _coarse(image: Tensor) -> Tensor:
    """Return the image after `WAVELET_LEVELS` binomial blurs, each twice as wide (a-trous wavelet transform)."""
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row[None])[None, None].repeat(image.shape[0], 1, 1, 1)
    for level in range(WAVELET_LEVELS):
        step = 2**level
        padded = functional.pad(image[None], (step,) * 4, mode="replicate")
        image = functional.conv2d(padded, kernel, groups=image.shape[0], dilation=step)[0]
    return image


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(choices)}")
