"""Which views an image is read as: all but a thin rest covered, nothing resampled at scale 1, weights that sum to 1."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import ARCHS, make_image, tiny_checkpoint

from zoomiqa_reward.images import ImageError, to_pil
from zoomiqa_reward.model.pixels import factor_of, to_patches, whole_size
from zoomiqa_reward.model.views import (
    KEPT_SHARE,
    VIEWS_RULE,
    ViewCutter,
    chunks,
    nearest_shares,
    plan_views,
    scaled,
    spans,
    trimmed,
)
from zoomiqa_reward.protocol.spec import ViewPolicy
from zoomiqa_reward.runs.digest import digest

BUDGET = {"factor": 28, "min_pixels": 3136, "max_pixels": 1003520}
POLICY = ViewPolicy(scales=(1.0, 0.5, 0.25), weights=(0.5, 0.2, 0.1), whole_weight=0.2, tile_px=336)
sides = st.integers(min_value=20, max_value=2500)


@pytest.fixture(params=ARCHS)
def processor(request):
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(tiny_checkpoint(request.param), backend="torchvision")


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, factor=st.sampled_from([28, 32]))
def test_plan_covers_every_scale_but_for_a_thin_rest_at_the_edges_and_weighs_one(height, width, factor):
    plan = plan_views(height, width, POLICY, factor=factor, min_pixels=3136, max_pixels=1003520)
    assert sum(view.weight for view in plan) == pytest.approx(1.0)
    for scale in {view.scale for view in plan} - {None}:
        tiles = [view for view in plan if view.scale == scale]
        assert len({view.size for view in tiles}) == 1
        assert all(side % factor == 0 and side > 0 for view in tiles for side in view.size)
        assert len(tiles) == 1 or all(side <= 336 for view in tiles for side in view.size)
        covered = torch.zeros(scaled(height, scale, factor), scaled(width, scale, factor), dtype=torch.bool)
        for view in tiles:
            assert view.top + view.size[0] <= covered.shape[0]
            assert view.left + view.size[1] <= covered.shape[1]
            covered[view.top : view.top + view.size[0], view.left : view.left + view.size[1]] = True
        for lines in (covered.any(dim=1), covered.any(dim=0)):
            length, (first, last) = len(lines), (lines.nonzero()[0].item(), lines.nonzero()[-1].item())
            rests = first, length - 1 - last
            assert lines[first : last + 1].all()
            assert sum(rests) < factor
            assert max(rests) - min(rests) <= 1  # half of it at each edge
            assert sum(rests) <= (1 - KEPT_SHARE) * length
        assert covered.sum() == covered.any(dim=1).sum() * covered.any(dim=0).sum()


@settings(max_examples=60, deadline=None)
@given(length=st.integers(28, 4000), longest=st.sampled_from([28, 56, 336]), factor=st.sampled_from([14, 28]))
def test_spans_are_the_fewest_are_spread_evenly_and_share_the_whole_length(length, longest, factor):
    offsets, side = spans(length, longest, factor)
    covered, widest = trimmed(length, factor), min(longest, length // factor * factor)
    assert side % factor == 0
    assert side <= widest
    assert (len(offsets) - 1) * widest < covered  # one fewer is too few
    assert side - factor < covered / len(offsets) <= side  # and none is larger than it must be
    steps = {b - a for a, b in pairwise(offsets)}
    assert not steps or max(steps) - min(steps) <= 1
    assert sum(nearest_shares(offsets, side, length)) == pytest.approx(1.0)


def test_shares_count_the_pixels_that_are_nearest():
    assert nearest_shares([0, 60, 200], 100, 300) == pytest.approx([80 / 300, 100 / 300, 120 / 300])


def test_an_image_that_needs_no_resize_is_read_once_with_both_weights_and_at_the_other_scales():
    plan = plan_views(560, 784, POLICY, **BUDGET)
    whole = [view for view in plan if view.scale is None]
    assert whole[0].size == (560, 784)
    assert whole[0].weight == pytest.approx(0.7)
    assert {view.scale for view in plan} == {None, 0.5, 0.25}


def test_an_image_with_a_thin_rest_is_read_once_without_it():
    plan = plan_views(512, 516, POLICY, **BUDGET)
    assert {view.scale for view in plan} == {1.0, 0.5, 0.25}
    (native,) = [view for view in plan if view.scale == 1.0]
    assert (native.top, native.left, native.size) == (4, 6, (504, 504))
    assert native.weight == pytest.approx(0.7)


@pytest.mark.parametrize("size", [(1200, 1100), (100, 512)])  # too large for the processor; too much would be cut off
def test_an_image_that_must_be_resized_is_read_whole_and_as_native_tiles(size):
    plan = plan_views(*size, replace(POLICY, min_side_px=20), **BUDGET)
    assert {view.scale for view in plan} == {None, 1.0, 0.5, 0.25}
    assert sum(view.weight for view in plan if view.scale == 1.0) == pytest.approx(0.5, abs=0.06)
    whole = next(view for view in plan if view.scale is None)
    assert whole.size == whole_size(*size, **BUDGET)


def test_scales_that_are_too_small_are_left_out_and_the_rest_renormalised():
    plan = plan_views(83, 130, POLICY, **BUDGET)  # at 0.5 the shorter side is 42 or one token, less than 56
    by_scale = {scale: sum(v.weight for v in plan if v.scale == scale) for scale in {v.scale for v in plan}}
    assert by_scale == pytest.approx({None: 2 / 7, 1.0: 5 / 7})


@pytest.mark.parametrize("size", [(20, 20), (5, 90), (1, 1)])
def test_an_image_too_small_for_every_scale_is_read_whole_even_without_a_weight(size):
    plan = plan_views(*size, ViewPolicy(), **BUDGET)
    assert [(view.scale, view.weight) for view in plan] == [(None, 1.0)]


def test_scales_alone_read_no_whole():
    plan = plan_views(500, 500, ViewPolicy(scales=(1.0, 0.5), weights=(1.0, 1.0)), **BUDGET)
    assert {view.scale for view in plan} == {1.0, 0.5}


def test_an_extreme_aspect_ratio_is_an_image_error():
    with pytest.raises(ImageError, match="cannot be resized"):
        plan_views(10, 2100, POLICY, **BUDGET)


def test_native_tiles_are_the_image_itself_and_scaled_ones_keep_the_graph():
    image = make_image(height=200, width=150).requires_grad_(True)
    plan = plan_views(200, 150, ViewPolicy(scales=(1.0, 0.5), weights=(1.0, 1.0), tile_px=84), **BUDGET)
    cutter = ViewCutter(image, 28)
    for view in plan:
        cut = cutter.cut(view)
        assert cut.shape[1:] == view.size
        if view.scale == 1.0:
            top, left = view.top, view.left
            assert torch.equal(cut, image[:, top : top + view.size[0], left : left + view.size[1]])
    sum(cutter.cut(view).sum() for view in plan).backward()
    assert (image.grad[:, 2:-2, 5:-5] > 0).all()  # 200 and 150 px are read as 196 and 140


def test_a_12_megapixel_image_is_read_in_bounded_chunks():
    plan = plan_views(3000, 4000, POLICY, **BUDGET)
    tasks = [(0, view) for view in plan]
    groups = list(chunks(tasks))
    assert sorted(map(id, (view for group in groups for _, view in group))) == sorted(map(id, plan))
    assert max(sum(v.size[0] * v.size[1] for _, v in group) for group in groups) <= 1 << 20
    assert len(plan) > 108


def test_chunks_hold_one_size_and_one_kind():
    plan = plan_views(500, 700, POLICY, **BUDGET)
    for group in chunks([(0, view) for view in plan]):
        assert len({(view.scale is None, view.size) for _, view in group}) == 1


def test_pixels_agree_with_the_processors_own_uint8_path(processor):
    image = make_image(height=130, width=170)
    image = (image * 255).round() / 255
    ours, grid = to_patches(processor, [image], min_pixels=3136, max_pixels=1003520, resize=True)
    theirs = processor(images=[to_pil(image)], size={"shortest_edge": 3136, "longest_edge": 1003520})
    assert torch.equal(grid, torch.as_tensor(theirs["image_grid_thw"]))
    difference = (ours - torch.as_tensor(theirs["pixel_values"])).abs()
    assert difference.mean() < 0.02
    assert difference.max() < 0.5


def test_unresized_pixels_are_exactly_the_normalised_image(processor):
    factor = factor_of(processor)
    image = make_image(height=2 * factor, width=3 * factor)
    values, grid = to_patches(processor, [image], min_pixels=3136, max_pixels=1003520, resize=False)
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    expected = ((image - mean) / std).flatten().sort().values.repeat_interleave(2)  # each patch stands twice in time
    torch.testing.assert_close(values.flatten().sort().values, expected)
    assert grid.tolist() == [[1, 2 * factor // processor.patch_size, 3 * factor // processor.patch_size]]


def test_pixels_keep_the_gradient(processor):
    image = make_image(height=100, width=75).requires_grad_(True)
    values, _ = to_patches(processor, [image], min_pixels=3136, max_pixels=1003520, resize=True)
    values.square().sum().backward()
    assert (image.grad.abs().sum(dim=0) > 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (28, 3)])
def test_tiny_images_are_enlarged_by_the_processor(processor, size):
    _, grid = to_patches(processor, [make_image(height=size[0], width=size[1])], min_pixels=3136, max_pixels=99999,
                         resize=True)  # fmt: skip
    expected = whole_size(*size, factor=factor_of(processor), min_pixels=3136, max_pixels=99999)
    assert (grid[0, 1:] * processor.patch_size).tolist() == list(expected)


def test_an_unresized_view_of_a_wrong_size_is_refused(processor):
    with pytest.raises(ValueError, match="multiples of"):
        to_patches(processor, [make_image(height=60, width=60)], min_pixels=1, max_pixels=99999, resize=False)


def test_smaller_scales_match_an_antialiased_resize():
    image = make_image(height=200, width=160)
    plan = plan_views(200, 160, ViewPolicy(scales=(0.5,), weights=(1.0,), tile_px=336), **BUDGET)
    assert [(view.size, view.top, view.left) for view in plan] == [((112, 84), 0, 0)]  # whole tokens: nothing is cut
    cut = ViewCutter(image, 28).cut(plan[0])
    channels = [Image.fromarray(c.numpy()).resize((84, 112), Image.Resampling.BICUBIC) for c in image]
    expected = torch.stack([torch.tensor(list(c.get_flattened_data())).reshape(112, 84) for c in channels])
    torch.testing.assert_close(cut, expected, atol=2e-3, rtol=0)


def test_another_plan_needs_another_rule_or_caches_mix_old_ratings_with_new():
    sizes = [(20, 20), (60, 60), (100, 130), (256, 256), (512, 516), (700, 400), (1200, 1200), (3000, 4000)]
    plans = [plan_views(*size, POLICY, factor=factor, min_pixels=3136, max_pixels=1003520)
             for size in sizes for factor in (28, 32)]  # fmt: skip
    said = "how an image is cut has changed: raise VIEWS_RULE, then write its number and digest here"
    assert (VIEWS_RULE, digest(repr(plans))) == (2, "a0ad74c56ce2acac"), said
