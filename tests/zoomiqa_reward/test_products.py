"""Products by oneDNN are PyTorch's own up to the last bits, with the same gradients, whatever stands beside a row."""

import pytest
import torch
from torch.nn.functional import linear

from zoomiqa_reward.model import products
from zoomiqa_reward.model.products import affine, filled_rows, suits

pytestmark = pytest.mark.skipif(not products.IS_THERE, reason="this PyTorch has no oneDNN, or this is no x86 CPU")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 192), (65, 192), (300, 192), (3, 50, 192), (2, 1, 40, 192)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_is_the_linear_layer(shape, with_bias):
    x, weight, bias = random(*shape), random(96, 192, seed=1), random(96, seed=2) if with_bias else None
    assert suits(x, weight)
    result = affine(x, weight, bias)
    assert result.shape == (*shape[:-1], 96)
    assert result.is_contiguous()
    torch.testing.assert_close(result, linear(x, weight, bias), rtol=1e-5, atol=1e-4)


def test_a_convolution_as_wide_as_its_step():
    convolution = torch.nn.Conv3d(3, 64, (2, 14, 14), stride=(2, 14, 14))
    patches = random(70, 3 * 2 * 14 * 14)
    expected = convolution(patches.view(70, 3, 2, 14, 14)).flatten(1)
    torch.testing.assert_close(affine(patches, convolution.weight, convolution.bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("of", [(0,), (1,), (2,), (0, 1, 2)])
def test_gradients_are_those_of_the_linear_layer(of):
    tensors = [random(3, 40, 192), random(128, 192, seed=1), random(128, seed=2)]
    slopes = random(3, 40, 128, seed=3)
    gradients = []
    for function in (affine, linear):
        for index, tensor in enumerate(tensors):
            tensor.requires_grad_(index in of)
        function(*tensors).backward(slopes)
        gradients.append([tensors[index].grad for index in of])
        tensors = [tensor.detach().clone() for tensor in tensors]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_a_row_has_the_same_bits_beside_any_others():
    x, weight = random(1500, 192), random(192, 192, seed=1)
    everything = affine(x, weight)
    for count in (64, 65, 130, 700):
        assert torch.equal(affine(x[:count], weight), everything[:count])
        assert torch.equal(affine(x[-count:], weight), everything[-count:])


def test_a_graph_does_not_change_the_bits():
    x, weight = random(77, 192), random(192, 192, seed=1)
    assert torch.equal(affine(x.clone().requires_grad_(), weight).detach(), affine(x, weight))


def test_a_changed_weight_is_not_multiplied_as_it_was():
    x, weight = random(80, 192), torch.nn.Parameter(random(192, 192, seed=1))
    with torch.no_grad():
        affine(x, weight)
        weight.mul_(2)
        torch.testing.assert_close(affine(x, weight), linear(x, weight), rtol=1e-5, atol=1e-4)
        weight.data.add_(1)  # as PEFT merges an adapter: no version counter tells
        torch.testing.assert_close(affine(x, weight), linear(x, weight), rtol=1e-5, atol=1e-4)
        weight.data = random(192, 192, seed=2)
        torch.testing.assert_close(affine(x, weight), linear(x, weight), rtol=1e-5, atol=1e-4)


def test_kernels_are_few_and_hardly_larger_than_the_rows():
    counts = range(1, 16_385)
    filled = [filled_rows(rows) for rows in counts]
    assert all(rows <= full <= max(rows + 7, 1.25 * rows) for rows, full in zip(counts, filled, strict=True))
    assert len({full for full in filled if full >= 64}) <= 33


@pytest.mark.parametrize(("x", "weight"), [
    (random(63, 192), random(192, 192)),
    (random(0, 192), random(192, 192)),
    (random(80, 16), random(16, 16)),
    (random(80, 192), random(192, 400)[:, :192]),
    (random(80, 192).bfloat16(), random(192, 192).bfloat16()),
    (random(80, 192).double(), random(192, 192).double()),
])  # fmt: skip
def test_what_oneDNN_does_not_take_is_pytorchs_own(x, weight):
    assert not suits(x, weight)
    assert torch.equal(affine(x, weight), linear(x, weight))


@pytest.mark.parametrize("bias", [random(384)[::2], random(1).expand(192), random(1)])
def test_a_bias_with_gaps_is_read_where_it_lies(bias):
    x, weight = random(80, 192), random(192, 192, seed=1)
    assert torch.equal(affine(x, weight, bias), linear(x, weight, bias))


def test_autocast_of_a_caller_who_computes_in_it_holds():
    x, weight = random(80, 192), random(192, 192)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert affine(x, weight).dtype == torch.bfloat16


def test_the_embedded_judge_takes_it(monkeypatch):
    from zoomiqa_reward import ZoomIQA

    iqa, image = ZoomIQA.from_pretrained("nano"), random(3, 80, 112).sigmoid()
    ours = iqa.rate([image], strict=True).mean
    asked = []
    monkeypatch.setattr(products, "suits", lambda x, weight, bias=None: asked.append(weight.shape) or False)
    plain = iqa.rate([image], strict=True).mean
    assert len(asked) >= 8 * 6  # blocks of the tower alone
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
