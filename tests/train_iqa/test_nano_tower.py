"""The padded tower: the library's tokens, whatever the sizes in a batch, and nothing of the padding."""

import pytest
import torch

from train_iqa.nano.build import TOKEN_PX, build_image_processor, build_model
from train_iqa.nano.tower import flat_tokens, pad_images, read_tokens

SIZES = ((112, 112), (224, 224), (84, 140), (56, 308))


@pytest.fixture(scope="module")
def tower():
    return build_model(None, seed=0).model.visual.eval()


def by_the_library(tower, image):
    """(tokens, width) of one CHW image, by the library's processor and forward."""
    processor = build_image_processor(784, 200704)
    inputs = processor(images=[image], do_rescale=False, do_resize=False, return_tensors="pt")
    out = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    return out.pooler_output.reshape(-1, out.pooler_output.shape[-1])


@torch.no_grad()
def test_tokens_are_the_librarys_in_a_batch_of_several_sizes(tower):
    images = [torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) for size in SIZES]
    batch, grids = pad_images(images)
    assert batch.shape == (4, 3, 224, 336)
    assert grids.tolist() == [[height // TOKEN_PX, width // TOKEN_PX] for height, width in SIZES]
    together = flat_tokens(read_tokens(tower, batch, grids), grids)
    apart = torch.cat([by_the_library(tower, image) for image in images])
    assert together.shape == apart.shape
    assert torch.allclose(together, apart, atol=1e-4)


@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(tower):
    batch, grids = pad_images([torch.rand(3, 84, 140), torch.rand(3, 112, 112)])
    filled = batch.clone()
    filled[0, :, 84:], filled[0, :, :, 140:] = 1.0, 1.0
    plain, other = (flat_tokens(read_tokens(tower, x, grids), grids) for x in (batch, filled))
    assert torch.allclose(plain, other, atol=1e-5)


@torch.no_grad()
def test_without_padding_no_mask_is_needed(tower):
    images = torch.rand(2, 3, 112, 224)
    grids = torch.tensor([[4, 8], [4, 8]])
    assert torch.allclose(read_tokens(tower, images), read_tokens(tower, images, grids), atol=1e-5)


def test_a_padded_batch_keeps_the_graph_to_its_images(tower):
    images = torch.rand(2, 3, 84, 140, requires_grad=True)
    batch, grids = pad_images(list(images))
    flat_tokens(read_tokens(tower, batch, grids), grids).square().sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
