"""The JPEG with a slope: the real file's value, and a gradient of what it keeps."""

import torch
from tiny import make_image

from zoomiqa_reward.images.filters import dct_basis, drop_small_coefficients, jpeg_with_slope, through_jpeg


def steps(size: float):
    return torch.full((3, 1, 1, 8, 8), size)


def test_the_value_is_that_of_the_real_file():
    image = make_image(0, 21, 34)
    for quality in (30, 80, 95):
        stored = through_jpeg(image, quality)
        assert torch.equal(jpeg_with_slope(image, quality), stored)
        assert torch.allclose(jpeg_with_slope(image.clone().requires_grad_(), quality), stored, atol=1e-6)


def test_the_basis_is_orthonormal_and_its_first_row_is_the_mean():
    basis = dct_basis()
    assert torch.allclose(basis @ basis.T, torch.eye(8), atol=1e-6)
    assert torch.allclose(basis[0], torch.full((8,), 8**-0.5))


def test_steps_of_nothing_leave_the_image_and_huge_ones_its_means():
    image = make_image(1, 16, 24)
    assert torch.allclose(drop_small_coefficients(image, steps(0.0)), image, atol=1e-5)
    means = image.unfold(1, 8, 8).unfold(2, 8, 8).mean(dim=(-1, -2))
    flat = means.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    assert torch.allclose(drop_small_coefficients(image, steps(1e6)), flat, atol=1e-5)


def test_sides_that_are_no_multiples_of_eight():
    image = make_image(2, 13, 9)
    assert torch.allclose(drop_small_coefficients(image, steps(0.0)), image, atol=1e-5)


def test_a_faint_pattern_has_no_slope_where_the_file_drops_it_and_a_strong_one_has():
    """A checkerboard of one level in 255 is gone after quality 80, one of sixty is not."""
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = torch.where((rows + columns) % 2 == 0, 1.0, -1.0).expand(3, -1, -1)
    slopes = {}
    for levels in (1, 60):
        image = (0.5 + levels / 255 * board).requires_grad_()
        (jpeg_with_slope(image, 80) * board).sum().backward()
        slopes[levels] = float((image.grad * board).mean())
        stored = (through_jpeg(image.detach(), 80) * board).mean() * 255
        assert (abs(stored) > 1) == (levels == 60)  # the file itself: dropped, kept
    assert abs(slopes[1]) < 0.05
    assert slopes[60] > 0.5


def test_the_same_slope_by_finite_differences_of_the_survivors():
    image, table = make_image(3, 8, 8).double(), steps(30.0).double()
    direction = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    leaf = image.clone().requires_grad_()
    (drop_small_coefficients(leaf, table) * weight).sum().backward()
    step = 1e-6
    difference = (
        drop_small_coefficients(image + step * direction, table)
        - drop_small_coefficients(image - step * direction, table)
    ) * weight
    assert torch.allclose((leaf.grad * direction).sum(), difference.sum() / (2 * step), rtol=1e-5)
