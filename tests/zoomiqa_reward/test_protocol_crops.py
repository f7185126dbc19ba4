"""Crops lie inside the image, keep the policy, and zoom the same on PIL images and tensors."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zoomiqa_reward.images import load_image
from zoomiqa_reward.protocol import CropPolicy, rating_to_score, usable_box, zoom, zoom_box, zoomed_size

VECTORS = json.loads((Path(__file__).parents[1] / "fixtures" / "protocol_vectors.json").read_text(encoding="utf-8"))
CROPS = [pytest.param(row, id=row["why"]) for row in VECTORS["crops"]]

sides = st.integers(1, 3000)
shares = st.lists(st.floats(0, 1), min_size=4, max_size=4)
numbers = st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=3)
anything = st.lists(st.floats() | st.integers(-5000, 5000), min_size=4, max_size=4) | st.lists(numbers) | numbers
policies = st.builds(
    CropPolicy, min_area_frac=st.floats(0.01, 0.5), max_area_frac=st.floats(0.5, 1), min_side_px=st.integers(1, 64)
)


@pytest.mark.parametrize("row", CROPS)
def test_vectors(row: dict[str, Any]) -> None:
    box, central = zoom_box(row["bbox"], *row["size"])
    assert (list(box), central) == (row["box"], row["central"])
    assert list(zoomed_size(box, *row["size"], central)) == row["zoomed"]
    for image in (Image.new("RGB", row["size"]), torch.zeros(3, *row["size"][::-1])):
        crop, same_box = zoom(image, row["bbox"])
        assert same_box == box
        assert list(crop.size if isinstance(crop, Image.Image) else crop.shape[:0:-1]) == row["zoomed"]


@settings(max_examples=300, deadline=None)
@given(anything | shares, sides, sides, policies)
def test_every_box_is_inside_and_not_empty(bbox: Any, width: int, height: int, policy: CropPolicy) -> None:
    (left, top, right, bottom), central = zoom_box(bbox, width, height, policy)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert central == (usable_box(bbox) is None)
    if not central:
        assert right - left >= min(policy.min_side_px, width)
        assert bottom - top >= min(policy.min_side_px, height)
    new_width, new_height = zoomed_size((left, top, right, bottom), width, height, central)
    assert 1 <= new_width <= width
    assert 1 <= new_height <= height
    if not central:
        assert new_width == width or new_height == height


@settings(max_examples=300, deadline=None)
@given(shares, st.integers(60, 3000), st.integers(60, 3000), policies)
def test_area_is_in_range_where_border_and_shortest_side_allow(
    bbox: list[float], width: int, height: int, policy: CropPolicy
) -> None:
    (left, top, right, bottom), central = zoom_box(bbox, width, height, policy)
    area, sides_px = (right - left) * (bottom - top), (right - left, bottom - top)
    # Truncation moves each corner by less than one pixel, so each side by less than one.
    slack = sides_px[0] + sides_px[1] + 1
    at_border = left == 0 or top == 0 or right == width or bottom == height
    if not central and not at_border:
        assert area >= policy.min_area_frac * width * height - slack
    # Only a side that the policy lengthens to its shortest can exceed the largest area (by a pixel where truncated).
    if not central and min(sides_px) > policy.min_side_px + 1:
        assert area <= policy.max_area_frac * width * height + slack


@given(shares, sides, sides)
def test_corner_order_does_not_matter(bbox: list[float], width: int, height: int) -> None:
    x1, y1, x2, y2 = bbox
    assert zoom_box(bbox, width, height) == zoom_box([x2, y1, x1, y2], width, height)
    assert zoom_box(bbox, width, height) == zoom_box((x2, y2, x1, y1), width, height)


@pytest.mark.parametrize(
    ("bbox", "usable"),
    [
        ([0, 0, 1, 1], (0.0, 0.0, 1.0, 1.0)),
        (("0.5", 1, 2, 3), (0.5, 1.0, 2.0, 3.0)),
        (np.array([1, 2, 3, 4]), (1.0, 2.0, 3.0, 4.0)),
        ([0, 0, 0, 0.0], None),
        ([math.nan, 0, 1, 1], None),
        ([10**400, 0, 1, 1], None),
        ([1, 2, 3], None),
        ([[0], 0, 1, 1], None),
        ({1: 0, 2: 0, 3: 0, 4: 0}, None),
        ("1234", None),
        (5, None),
    ],
)
def test_usable_box(bbox: Any, usable: tuple[float, ...] | None) -> None:
    assert usable_box(bbox) == usable


def test_policy_numbers_are_used() -> None:
    half = CropPolicy(min_area_frac=0.25, max_area_frac=0.25, min_side_px=1)
    assert zoom_box([0, 0, 1, 1], 200, 100, half) == ((50, 25, 150, 75), False)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_image_without_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        zoom_box([0, 0, 1, 1], *size)


PHOTO = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_pil_zoom_is_crop_and_lanczos() -> None:
    image = Image.fromarray(PHOTO)
    crop, box = zoom(image, [0.25, 0.25, 0.75, 0.75])
    assert box == (16, 10, 48, 38)  # 28 rows at least: 24 +- 14
    expected = image.crop(box).resize((54, 48), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(crop), np.asarray(expected))


def test_tensor_zoom_is_the_8_bit_one_but_for_rounding() -> None:
    image = Image.fromarray(PHOTO)
    for bbox in ([0.2, 0.1, 0.9, 0.6], [0, 0, 0.1, 0.1], [0.3, 0.3, 0.4, 0.9]):
        crop, box = zoom(load_image(PHOTO), bbox)
        expected, same_box = zoom(image, bbox)
        assert box == same_box
        assert crop.dtype == torch.float32
        assert crop.min() >= 0
        assert crop.max() <= 1
        # Pillow's 8-bit path rounds once after each of its two passes: half a level each, times the filter's gain.
        assert (crop - load_image(expected)).abs().max() < 1.5 / 255


@pytest.mark.parametrize("channels", [1, 3])
def test_central_crop_of_a_tensor_is_a_plain_copy(channels: int) -> None:
    image = torch.rand(channels, 40, 60)
    crop, box = zoom(image, None)
    assert box == (15, 10, 45, 30)
    assert torch.equal(crop, image[:, 10:30, 15:45])
    crop.zero_()
    assert image[:, 10:30, 15:45].max() > 0


def test_tensor_zoom_has_no_gradient() -> None:
    image = torch.rand(3, 40, 60, requires_grad=True)
    assert not zoom(image, [0.2, 0.2, 0.7, 0.7])[0].requires_grad
    assert not zoom(image, None)[0].requires_grad


@pytest.mark.parametrize("mode", ["1", "P", "L", "RGBA"])
def test_pil_modes(mode: str) -> None:
    crop, _ = zoom(Image.fromarray(PHOTO).convert(mode), [0.2, 0.2, 0.7, 0.7])
    assert crop.mode == {"1": "RGB", "P": "RGB"}.get(mode, mode)


def test_other_images_are_refused() -> None:
    with pytest.raises(TypeError, match="load_image"):
        zoom(PHOTO, [0, 0, 1, 1])
    for tensor in (torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="float CHW"):
            zoom(tensor, [0, 0, 1, 1])


@pytest.mark.parametrize("row", VECTORS["scores"])
def test_score(row: dict[str, float]) -> None:
    assert rating_to_score(row["rating"]) == row["score"]


def test_failed_rating_is_no_score() -> None:
    assert math.isnan(rating_to_score(math.nan))
