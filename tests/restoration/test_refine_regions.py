"""Refinement's regions: context around a box, weights over before the crop's edge, no seam."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_image
from tiny_pipelines import convolutions

from restoration.refinement.regions import CONTEXT_LQ_PX, FADE_LQ_PX, MIN_CROP_LQ_PX, Region
from restoration.restorer.restorer import Restorer


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=st.integers(5, 200), width=st.integers(5, 200), scale=st.integers(1, 3))
def test_crops_hold_their_box_with_context_and_weights_are_over_before_the_crops_edge(data, height, width, scale):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    region = Region.around((left, top, right, bottom), torch.zeros(3, height, width))
    weights = region.weights(scale)
    x0, y0, x1, y1 = region.crop
    assert weights.shape == ((y1 - y0) * scale, (x1 - x0) * scale)
    for first, last, start, end, length in ((x0, x1, left, right, width), (y0, y1, top, bottom, height)):
        assert 0 <= first <= max(start - CONTEXT_LQ_PX, 0)
        assert length >= last >= min(end + CONTEXT_LQ_PX, length)
        assert last - first >= min(MIN_CROP_LQ_PX, length)
    inside = weights[(top - y0) * scale : (bottom - y0) * scale, (left - x0) * scale : (right - x0) * scale]
    assert (inside == 1).all()
    unused = (CONTEXT_LQ_PX - int(FADE_LQ_PX[1])) * scale
    if x0 > 0:
        assert (weights[:, :unused] == 0).all()
    if y1 < height:
        assert (weights[-unused:] == 0).all()


@pytest.mark.parametrize("box", [(30, 40, 60, 70), (0, 0, 20, 90), (90, 10, 131, 40), (0, 0, 131, 150)])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_small_network_leaves_no_seam_at_all(box, scale):
    """It sees 5 px to each side: the part restored by itself is the part of the whole, wherever it is used."""
    network, image = Restorer.from_pretrained(convolutions(scale=scale, layers=5)), make_image(1, 150, 131)
    whole = next(network.restore(image, [0])).image
    region = Region.around(box, image)
    patch = next(network.restore(region.cut(image), [0])).image
    torch.testing.assert_close(region.blended(whole, patch, image), whole, atol=1e-5, rtol=0)
    old = torch.zeros_like(whole)
    found = region.blended(old, patch, image)
    left, top, right, bottom = (side * scale for side in box)
    torch.testing.assert_close(found[:, top:bottom, left:right], whole[:, top:bottom, left:right], atol=1e-5, rtol=0)


def test_a_network_that_looks_further_than_the_margin_is_noticed():
    """So that the test above can fail."""
    network, image = Restorer.from_pretrained(convolutions(scale=1, layers=20)), make_image(1, 150, 131)
    whole = next(network.restore(image, [0])).image
    region = Region.around((60, 60, 90, 90), image)
    patch = next(network.restore(region.cut(image), [0])).image
    assert (region.blended(whole, patch, image) - whole).abs().max() > 1e-3


def test_another_brightness_fades_in_and_what_is_outside_keeps_its_bits():
    image, scale, step = make_image(1, 150, 131), 2, 0.2
    large = image.repeat_interleave(2, 1).repeat_interleave(2, 2) * 0.5
    region = Region.around((50, 50, 80, 80), image)
    patch = region.cut(large, scale) + step
    found = region.blended(large, patch, image)
    rise = found - large
    assert rise.max() == pytest.approx(step, abs=1e-6)
    # A raised cosine over 8 LR pixels: its steepest step is pi / 2 of a straight one's.
    steepest = step * math.pi / 2 / ((FADE_LQ_PX[1] - FADE_LQ_PX[0]) * scale)
    assert max(rise.diff(dim=1).abs().max(), rise.diff(dim=2).abs().max()) <= 1.001 * steepest
    rise[:, 80:180, 80:180] = 0  # the box with 10 LR pixels around it
    assert torch.equal(rise, torch.zeros_like(rise))
    with pytest.raises(ValueError, match="28 x 128 px were expected"):
        region.blended(large, patch[:, 1:], image)
    with pytest.raises(ValueError, match="must hold a pixel"):
        Region.around((5, 5, 5, 9), image)
