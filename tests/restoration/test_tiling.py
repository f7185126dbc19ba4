"""Tiles leave no seam: exactly for what looks no further than the margin, and with any geometry."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_image
from tiny_pipelines import convolutions

from restoration.restorer.restorer import Restorer
from restoration.restorer.rng import candidate_seed
from restoration.restorer.tiling import Tiling, restore_tiled, starts, windows


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 200), tile=st.integers(4, 60), share=st.floats(0, 0.5), scale=st.integers(1, 3))
def test_tiles_cover_and_windows_add_up_to_one(length, tile, share, scale):
    tiling = Tiling(tile_px=tile, overlap_px=int(tile * share))
    begin = starts(length, tiling)
    side = min(length, tile)
    assert begin[0] == 0
    assert begin[-1] + side == length
    gaps = [after - before for before, after in pairwise(begin)]
    assert all(0 < gap <= tile - tiling.overlap_px for gap in gaps)
    total = torch.zeros(length * scale)
    for first, window in zip(begin, windows(length, tiling, scale), strict=True):
        total[first * scale : (first + side) * scale] += window
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


def test_the_margin_of_a_tile_is_never_used():
    tiling = Tiling(tile_px=64, overlap_px=16)
    found = windows(200, tiling, scale=2)
    for k, window in enumerate(found):
        margin = 2 * 16 * 3 // 8
        if k > 0:
            assert (window[:margin] == 0).all()
        if k < len(found) - 1:
            assert (window[-margin:] == 0).all()
        assert window.max() == 1


@pytest.mark.parametrize("size", [(150, 131), (64, 300), (65, 64), (20, 20)])
def test_identity_is_seam_free(size):
    image = make_image(0, *size)
    [found] = restore_tiled(lambda tile, seeds: [tile], image, [0], Tiling(tile_px=64, overlap_px=16))
    torch.testing.assert_close(found, image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_small_network_is_seam_free_up_to_the_border(scale):
    network, image = convolutions(scale=scale, layers=5), make_image(1, 150, 131)
    whole = next(Restorer.from_pretrained(network).restore(image, [0])).image
    tiled = next(Restorer.from_pretrained(network, tile_px=48, tile_overlap_px=16).restore(image, [0])).image
    assert whole.shape == (3, 150 * scale, 131 * scale)
    assert whole.std() > 0.02
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_a_network_that_looks_further_than_the_margin_is_noticed():
    """So that the test above can fail: without overlap the tiles' own borders are seen."""
    network, image = convolutions(scale=1, layers=5), make_image(1, 150, 131)
    whole = next(Restorer.from_pretrained(network).restore(image, [0])).image
    tiled = next(Restorer.from_pretrained(network, tile_px=48, tile_overlap_px=0).restore(image, [0])).image
    assert (tiled - whole).abs().max() > 1e-2


def test_each_tile_has_its_own_seed_and_an_image_that_fits_has_the_candidates():
    seen = []

    def restore(tile, seeds):
        seen.append(list(seeds))
        return [tile for _ in seeds]

    restore_tiled(restore, make_image(0, 60, 100), [7, 8], Tiling(tile_px=60, overlap_px=8))
    assert seen == [[candidate_seed(7, t), candidate_seed(8, t)] for t in range(2)]
    seen.clear()
    restore_tiled(restore, make_image(0, 60, 60), [7, 8], Tiling(tile_px=60, overlap_px=8))
    assert seen == [[7, 8]]


def test_noise_in_tiles_is_the_same_whatever_else_is_drawn():
    def noisy(image, seed):
        return (image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)

    restorer = Restorer.from_pretrained(noisy, tile_px=40, tile_overlap_px=8)
    image = make_image(0, 90, 70)
    alone = next(restorer.restore(image, [5])).image
    among = [one.image for one in restorer.restore(image, [3, 4, 5])]
    assert torch.equal(alone, among[2])
    assert not torch.equal(alone, among[1])


def test_only_one_tile_is_in_work_at_a_time():
    largest = []

    def doubled(image):
        largest.append(max(image.shape[1:]))
        return image.repeat_interleave(2, 1).repeat_interleave(2, 2)

    image = make_image(0, 200, 170)
    restorer = Restorer.from_pretrained(doubled, tile_px=64, tile_overlap_px=16)
    found = next(restorer.restore(image, [0])).image
    assert max(largest) == 64
    assert len(largest) == 4 * 4
    torch.testing.assert_close(found, doubled(image), atol=1e-5, rtol=0)


def test_odd_tilings_are_refused():
    with pytest.raises(ValueError, match="twice"):
        Tiling(tile_px=30, overlap_px=16)
    with pytest.raises(ValueError, match="tile_px=0"):
        Restorer.from_pretrained(lambda image: image, tile_px=0)
