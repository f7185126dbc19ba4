"""The filters that several modules share: luma, Gaussian blur, bicubic resize, JPEG, and a JPEG with a slope.

The JPEG with a slope has the value of the real file, and the gradient of what the file keeps of the image. If the
gradient ignored the quantiser, it would climb along fine patterns that the file rounds away, and the reward would not
rise. Here it goes only through the coefficients that are not rounded to 0. Chroma is not subsampled in the slope.
Source: the file format (ITU-T T.81: 8 x 8 DCT, BT.601 luma and chroma of JFIF); the straight-through estimator (Bengio
et al. 2013), for the coefficients that are kept.
"""

import io
import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from zoomiqa_reward.images.loading import load_image, to_pil

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of BT.601, which JPEG uses."""


def luma(images: Tensor) -> Tensor:
    """Return the luma of [..., 3, height, width] as [..., 1, height, width]."""
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weights.view(3, 1, 1)).sum(dim=-3, keepdim=True)


def gaussian_blur(planes: Tensor, sigma_px: float, *, radius_px: int | None = None, edges: str = "replicate") -> Tensor:
    """Return BCHW planes after a Gaussian of `sigma_px`, cut at `radius_px` (default: 4 sigmas); 0 changes nothing.

    edges: `replicate` or `reflect`, as torch pads.
    """
    if sigma_px == 0:
        return planes
    radius, channels = math.ceil(4 * sigma_px) if radius_px is None else radius_px, planes.shape[1]
    steps = torch.arange(-radius, radius + 1, dtype=planes.dtype, device=planes.device)
    taps = torch.exp(-(steps**2) / (2 * sigma_px**2))
    taps = taps / taps.sum()
    framed = F.pad(planes, (radius,) * 4, mode=edges)
    rows = F.conv2d(framed, taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def resize_bicubic(images: Tensor, height: int, width: int) -> Tensor:
    """Return float CHW or BCHW images at another size, clamped to [0, 1]: Pillow's bicubic kernel (a = -0.5).

    Antialiased when it reduces. When it enlarges, `antialias` changes nothing but the kernel: without it torch takes
    a = -0.75.
    """
    batch = images if images.ndim == 4 else images[None]
    resized = F.interpolate(batch, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)
    return resized if images.ndim == 4 else resized[0]


def jpeg_file(image: Image.Image, quality: int, subsampling: int = -1) -> Image.Image:
    """Return the image as it comes back from a JPEG file of Pillow; subsampling: of chroma, -1 is Pillow's usual."""
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(packed)


def through_jpeg(image: Tensor, quality: float, subsampling: int = -1) -> Tensor:
    """Return a CHW image in [0, 1] as it comes back from a JPEG file; see `jpeg_file`."""
    return load_image(jpeg_file(to_pil(image), int(quality), subsampling))


SIDE = 8
YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def jpeg_with_slope(image: Tensor, quality: int) -> Tensor:
    """Return [3, height, width] in [0, 1] as it comes back from a JPEG file, on the image's device."""
    stored = jpeg_file(to_pil(image.detach().cpu()), quality)
    after = load_image(stored).to(image)
    if not image.requires_grad:
        return after
    tables = stored.quantization  # type: ignore[attr-defined]  # of JPEG files, in rows
    luma, chroma = (torch.tensor(tables[min(k, len(tables) - 1)], dtype=torch.float32) for k in (0, 1))
    steps = torch.stack([luma, chroma, chroma]).view(3, 1, 1, SIDE, SIDE).to(image)
    kept = drop_small_coefficients(image, steps)
    return kept + (after - kept).detach()


def drop_small_coefficients(image: Tensor, steps: Tensor) -> Tensor:
    """Return the image without the coefficients that round to nothing at those steps [3, 1, 1, 8, 8], in levels.

    Each block's mean stays. Linear in the image but for the choice, which has no slope.
    """
    height, width = image.shape[1:]
    room = (0, -width % SIDE, 0, -height % SIDE)
    ycc = YCC.to(image)
    planes = torch.einsum("pc,chw->phw", ycc, pad(image[None], room, mode="replicate")[0])
    blocks = planes.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE)
    basis = dct_basis().to(image)
    coefficients = basis @ blocks @ basis.T
    stays = (255 * coefficients.detach()).abs() > steps / 2
    stays[..., 0, 0] = True
    blocks = basis.T @ (coefficients * stays) @ basis
    planes = blocks.permute(0, 1, 3, 2, 4).reshape(planes.shape)
    return torch.einsum("cp,phw->chw", torch.linalg.inv(ycc), planes)[:, :height, :width]


def dct_basis() -> Tensor:
    """Return the orthonormal DCT-II [frequency, position] of eight places."""
    frequency, position = torch.arange(SIDE)[:, None], torch.arange(SIDE)
    basis = torch.cos(math.pi * (2 * position + 1) * frequency / (2 * SIDE)) * math.sqrt(2 / SIDE)
    basis[0] /= math.sqrt(2)
    return basis
