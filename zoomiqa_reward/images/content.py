"""Images without content: black, white, one colour, washed out, blurred away, a few pixels, not finite.

A rating of one means nothing, yet models give it, and half precision makes such images every day: an autoencoder's
overflow becomes a black image. The rule looks at the image alone, reduced by area to 64 px on its long side:

1. A side has fewer than 8 px.
2. No contrast: in every channel, the levels from the 0.1st to the 99.9th percentile span at most 5 % of the range.
3. Blurred away: neighbouring luma differs by at most a tenth of the luma's own span (99.9th percentiles of both). The
   share, not the level, is compared, so that fog and night, which are faint but sharp, are no blur.

Of 1,372 images as they are, no photograph meets it: the two that do are computed test charts. Darkened by gamma 2 or
faded to 1/4 of their contrast, no photograph does either; at gamma 4, 17 are too dark. `benchmarks/contentless.py`
counts and names the closest. The rule is this project's own; the area reduction keeps grain and single hot pixels out
of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoomiqa_reward.images.filters import luma

RULE = 1
"""Number of this rule: it stands in fingerprints, for a stored rating depends on it. Raise it with every change."""
MIN_SIDE_PX = 8
REDUCED_PX = 64
MIN_SPAN = 0.05
"""Of the range [0, 1], about 13 levels of 255."""
MIN_STEP_SHARE = 0.1
PERCENTILE = 0.999


def contentless(image: Tensor) -> str | None:
    """Return why a CHW image in [0, 1] shows nothing that could be rated, or None where it shows something.

    The image may have 1 or 3 channels, any float type and a graph; nothing is kept of the graph.
    """
    height, width = image.shape[-2:]
    if min(height, width) < MIN_SIDE_PX:
        return f"the image has no content: {width} x {height} px, at least {MIN_SIDE_PX} px per side are needed"
    pixels = image.detach().float()
    if not bool(pixels.isfinite().all()):
        return "the image has no content: it holds NaN or infinity"
    span, share = measures(pixels)
    if span <= MIN_SPAN:
        return (
            f"the image has no content: reduced to {REDUCED_PX} px, its contrast is {span:.1%} of the range, more than "
            f"{MIN_SPAN:.0%} is needed"
        )
    if share <= MIN_STEP_SHARE:
        return (
            f"the image has no content: it is blurred away (neighbours at {REDUCED_PX} px differ by {share:.1%} of its "
            f"contrast, more than {MIN_STEP_SHARE:.0%} is needed)"
        )
    return None


def measures(image: Tensor) -> tuple[float, float]:
    """Return what the rule compares, of a finite CHW image: the widest channel's span, and the step over luma's span.

    Both in [0, 1] or above; the second is 0 for an image of one luma.
    """
    with torch.autocast(image.device.type, enabled=False), torch.no_grad():
        small = _reduced(image.detach().float())
        span = float(_span(small.flatten(1)).max())
        grey = luma(small)[0] if len(small) == 3 else small[0]
        steps = torch.cat([grey.diff(dim=0).abs().flatten(), grey.diff(dim=1).abs().flatten()])
        step = float(torch.quantile(steps, PERCENTILE))
        of_luma = float(_span(grey.flatten()[None]))
    # Colours of one luma are no blur: what they show is in the channels.
    return span, step / of_luma if of_luma > MIN_SPAN / 2 else 1.0 if span > MIN_SPAN else 0.0


def _span(rows: Tensor) -> Tensor:
    """Return [rows] distance between the two outer percentiles."""
    ends = torch.tensor([1 - PERCENTILE, PERCENTILE], dtype=rows.dtype, device=rows.device)
    low, high = torch.quantile(rows, ends, dim=1).unbind()
    return high - low


def _reduced(image: Tensor) -> Tensor:
    """Return the image with a long side of at most 64 px, each pixel the mean of its area."""
    height, width = image.shape[-2:]
    factor = REDUCED_PX / max(height, width)
    if factor >= 1:
        return image
    return F.adaptive_avg_pool2d(image, (max(1, round(height * factor)), max(1, round(width * factor))))
