"""Data consistency: a restoration, reduced again, has to agree with the low-quality image that it was made from.

One step of iterative back-projection (Irani and Peleg, "Improving resolution by image registration", 1991), softened
for inputs that hold noise and JPEG traces: what the reduced restoration misses is blurred before it is enlarged and
added. So brightness, colour and coarse structure come from the input, fine structure stays the restorer's, and the
input's noise, which is finer than the blur, stays out. More steps, or a step at every sampling step, agree further and
bring noise back (docs/notes/restorer.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoomiqa_reward.images.filters import gaussian_blur

AGREEMENT_PX = 0.9
"""Blur of the correction, in low-quality pixels. Chosen on held-out photographs (docs/notes/restorer.md)."""


def agreeing(image_sr: Tensor, image_lq: Tensor, blur_px: float = AGREEMENT_PX) -> Tensor:
    """Return BCHW restorations whose reduced copies agree with their low-quality images, not clamped.

    `image_sr`: float (B, C, s h, s w); `image_lq`: (B, C, h, w), the same device. Differentiable in both. `blur_px`: 0
    agrees with the noise as well. Raises ValueError where one is not a whole number of times as large as the other.

    >>> import torch
    >>> grey, dark = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 32, 32), 0.25)
    >>> bool(torch.allclose(agreeing(dark, grey), torch.full((1, 3, 32, 32), 0.5), atol=1e-5))
    True
    """
    size, large = image_lq.shape[-2:], image_sr.shape[-2:]
    scale = large[0] // max(size[0], 1)
    if scale < 1 or large != (scale * size[0], scale * size[1]):
        raise ValueError(
            f"restoration of {large[1]} x {large[0]} px, input of {size[1]} x {size[0]} px: the restoration must be a "
            "whole number of times as large in both directions"
        )
    with torch.autocast(image_sr.device.type, enabled=False):  # half precision has no antialiased resize
        result, lq = image_sr.float(), image_lq.float()
        missing = lq - F.interpolate(result, size=size, mode="bicubic", antialias=True)
        # antialias changes nothing but the kernel when enlarging: without it torch takes a = -0.75.
        enlarged = F.interpolate(gaussian_blur(missing, blur_px), size=large, mode="bicubic", antialias=True)
        return (result + enlarged).to(image_sr.dtype)
