"""Gradients that a GPU computes in one order: they are the plain ones, and nothing else is left in a strict graph."""

from functools import partial

import pytest
import torch
from tiny import make_image, tiny_iqa
from torch.nn.functional import interpolate, scaled_dot_product_attention

from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.model import repeatable
from zoomiqa_reward.model.pixels import to_patches
from zoomiqa_reward.model.repeatable import attention, permuted, repeatable_gradients, resized

UNORDERED = ("ScaledDotProduct", "EfficientAttention", "Upsample", "IndexSelect", "Gather", "ScatterAdd", "CumSum")
"""Starts of the names of graph nodes whose gradients a GPU adds in any order."""


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("sizes", [(5, 5), (3, 7), (1, 6)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_has_the_values_of_the_kernel_and_the_gradient_of_its_formula(heads, sizes, masked):
    asked, seen = sizes
    query, key, value = (
        random(2, count, tokens, 8, seed=seed).requires_grad_(True)
        for seed, (count, tokens) in enumerate([(heads[0], asked), (heads[1], seen), (heads[1], seen)])
    )
    mask = torch.ones(asked, seen, dtype=torch.bool).tril(seen - asked) if masked else None
    fused = partial(scaled_dot_product_attention, attn_mask=mask, scale=0.3, enable_gqa=True)
    weight = random(2, heads[0], asked, 8, seed=9)

    def gradients(run):
        out = run(query, key, value)
        return out, torch.autograd.grad((out * weight).sum(), (query, key, value))

    expected, slopes = gradients(fused)
    with repeatable_gradients():
        made, own = gradients(lambda q, k, v: attention(fused, q, k, v, 0.3, mask))
    assert torch.equal(made, expected)
    for a, b in zip(own, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # written out in float32


def test_attention_is_the_kernels_own_outside():
    query = random(1, 1, 3, 4).requires_grad_(True)
    out = attention(partial(scaled_dot_product_attention, scale=0.5), query, query, query, 0.5)
    assert "ScaledDotProduct" in out.grad_fn.name()


@pytest.mark.parametrize("size", [(7, 9), (40, 13), (24, 31), (3, 90)])
def test_a_resize_has_the_plain_values_and_gradient(size):
    image = random(3, 24, 31).float().requires_grad_(True)
    weight = random(3, *size, seed=1).float()
    plain = interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]
    made = resized(image, *size)
    assert torch.equal(made, plain)
    expected, own = (torch.autograd.grad((out * weight).sum(), image)[0] for out in (plain, made))
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_a_new_order_has_the_plain_gradient():
    x, order = random(2, 6, 3).requires_grad_(True), torch.tensor([3, 0, 5, 1, 2, 4])
    weight = random(2, 6, 3, seed=1)
    made = permuted(x, order, order.argsort())
    assert torch.equal(made, x[:, order])
    assert torch.equal(*(torch.autograd.grad((out * weight).sum(), x)[0] for out in (x[:, order], made)))


def test_the_own_resize_is_the_processors_bit_for_bit():
    processor = ZoomIQA.from_pretrained("nano").checkpoint.image_processor
    for size in ((130, 170), (300, 90), (20, 33), (512, 512)):
        image = make_image(1, *size)
        ours, grid = to_patches(processor, [image], min_pixels=3136, max_pixels=100352, resize=True)
        theirs = processor(
            images=[image], size={"shortest_edge": 3136, "longest_edge": 100352}, do_rescale=False,
            do_convert_rgb=False, input_data_format="channels_first", return_tensors="pt",
        )  # fmt: skip
        assert torch.equal(ours, theirs["pixel_values"])
        assert torch.equal(grid, theirs["image_grid_thw"])


def nodes(function, seen):
    if function is not None and function not in seen:
        seen.add(function)
        for below, _ in function.next_functions:
            nodes(below, seen)
    return seen


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_a_strict_graph_holds_only_gradients_of_one_order(strict, recompute):
    iqa = ZoomIQA.from_pretrained("nano")
    image = make_image(2, 120, 150).requires_grad_(True)  # the whole image and other scales are resized
    rating = iqa.rate([image], strict=strict, grad=True, gradient_checkpointing=recompute).mean
    names = {node.name() for node in nodes(rating.grad_fn, set())}
    assert any("_Resize" in name for name in names)
    unordered = {name for name in names if name.startswith(UNORDERED)}
    if strict:
        assert not unordered
        assert any("_Attention" in name for name in names)
    else:
        assert unordered


@pytest.mark.parametrize("recompute", [True, False])
def test_strict_and_plain_gradients_agree(recompute):
    iqa = tiny_iqa()
    image = (0.1 + 0.8 * make_image(3, 110, 84)).requires_grad_(True)
    found = []
    for strict in (True, False):
        value = iqa.rate([image], strict=strict, grad=True, gradient_checkpointing=recompute).mean.sum()
        found.append(torch.autograd.grad(value, image)[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3 * float(found[1].abs().max()))


@pytest.mark.parametrize("kind", ["resize", "attention"])
def test_what_the_caller_of_backward_has_switched_on_changes_nothing(kind):
    leaf = random(1 if kind == "attention" else 3, 24, 31).float().requires_grad_(True)

    def gradient(on):
        if kind == "resize":
            made = resized(leaf, 40, 13)
        else:
            rows = leaf[None]
            with repeatable_gradients():
                made = attention(partial(scaled_dot_product_attention, scale=0.4), rows, rows, rows, 0.4)
        before = torch.get_default_dtype()
        repeatable._resize_matrix.cache_clear()
        try:
            torch.set_default_dtype(torch.float64 if on else before)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
                return torch.autograd.grad((made * made.detach().cos()).sum(), leaf)[0]
        finally:
            torch.set_default_dtype(before)

    assert torch.equal(gradient(False), gradient(True))
