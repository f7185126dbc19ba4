"""`direct` against independent computations: plain causal rows, plain full forwards, other company, other processes."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import ARCHS, make_image, make_tiny_checkpoint, tiny_checkpoint, tiny_iqa, tiny_protocol

from zoomiqa_reward import ZoomIQAReward
from zoomiqa_reward.images import ImageError
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.direct import NO_RATING, leaf_logprobs, mix, rate_direct, summarise, trie_of
from zoomiqa_reward.model.inputs import TokenRow, collate, make_row
from zoomiqa_reward.model.plain import leaf_logprobs_one_by_one, plain_leaf_logprobs
from zoomiqa_reward.model.trie import RATING_TEXTS
from zoomiqa_reward.model.turns import round1
from zoomiqa_reward.model.views import plan_views
from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.protocol.spec import ViewPolicy

SIZES = ((70, 90), (64, 64), (150, 84), (30, 40), (200, 230))


@pytest.fixture(params=ARCHS)
def iqa(request):
    return tiny_iqa(request.param)


@pytest.fixture(scope="module", params=ARCHS)
def random_checkpoint(request, tmp_path_factory):
    """Untaught, with large weights: every part of the input shows in the output."""
    return load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("random"), request.param, 3), device="cpu")


@cache
def images():
    return [make_image(seed, *size) for seed, size in enumerate(SIZES)]


def rows_of(checkpoint, images):
    questions = ("How good is this image?", "Sharp?")
    asked = [round1(checkpoint.protocol, image, questions[i % 2]) for i, image in enumerate(images)]
    return [make_row(checkpoint, prompted) for prompted in asked]


@torch.no_grad()
def test_tree_equals_plain_causal_rows(random_checkpoint):
    trie = trie_of(random_checkpoint)
    rows = rows_of(random_checkpoint, images()[1:3])
    together = leaf_logprobs(random_checkpoint, trie, rows)  # of different lengths
    padded = plain_leaf_logprobs(random_checkpoint, trie, rows)  # on the left, under one dense mask
    torch.testing.assert_close(padded, together, atol=1e-4, rtol=0)
    for index, row in enumerate(rows):
        expected = leaf_logprobs_one_by_one(random_checkpoint, trie, [row])
        torch.testing.assert_close(together[index : index + 1], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(leaf_logprobs(random_checkpoint, trie, [row]), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_tree_equals_one_full_forward_for_each_leaf(random_checkpoint):
    trie, tokenizer = trie_of(random_checkpoint), random_checkpoint.tokenizer
    row = rows_of(random_checkpoint, images()[:1])[0]
    found = leaf_logprobs(random_checkpoint, trie, [row])[0]
    for index in (0, 57, 123, 250, 399, 400):
        text = random_checkpoint.protocol.direct_prefix + RATING_TEXTS[index]
        answer = tokenizer(text, add_special_tokens=False)["input_ids"]
        batch = collate(random_checkpoint, [row], append=answer)
        logits = random_checkpoint.model(**batch).logits[0, -len(answer) - 1 : -1].log_softmax(dim=-1)
        expected = sum(logits[i, answer[i]] for i in range(len(trie.prefix_ids), len(answer)))
        assert float(found[index]) == pytest.approx(float(expected), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("part", ["model", "language_model", "decoder layer", "attention", "tower", "tower block"])
def test_a_hooked_module_is_called(random_checkpoint, part):
    inner = random_checkpoint.model.model
    layer = inner.language_model.layers[0]
    modules = {
        "model": random_checkpoint.model, "language_model": inner.language_model, "decoder layer": layer,
        "attention": layer.self_attn, "tower": inner.visual, "tower block": inner.visual.blocks[0],
    }  # fmt: skip
    trie, rows, calls = trie_of(random_checkpoint), rows_of(random_checkpoint, images()[:1]), []
    before = leaf_logprobs(random_checkpoint, trie, rows)
    hook = modules[part].register_forward_hook(lambda *_: calls.append(part))
    hooked = leaf_logprobs(random_checkpoint, trie, rows)
    hook.remove()
    assert calls
    torch.testing.assert_close(hooked, before, rtol=1e-4, atol=1e-4)
    assert torch.equal(leaf_logprobs(random_checkpoint, trie, rows), before)


@torch.no_grad()
def test_image_and_positions_show_in_the_result(random_checkpoint, monkeypatch):
    """The comparisons above would notice a lost image, and 3-D positions that fell back to text."""
    trie = trie_of(random_checkpoint)
    row, other = (
        make_row(random_checkpoint, round1(random_checkpoint.protocol, make_image(s, 90, 150))) for s in (0, 1)
    )
    base = leaf_logprobs(random_checkpoint, trie, [row])
    assert (leaf_logprobs(random_checkpoint, trie, [other]) - base).abs().max() > 1e-2
    monkeypatch.setattr(
        "zoomiqa_reward.model.reading._positions",
        lambda checkpoint, row, ids: torch.arange(ids.shape[1]).expand(3, 1, -1),
    )
    assert (leaf_logprobs(random_checkpoint, trie, [row]) - base).abs().max() > 1e-2


@torch.no_grad()
def test_eager_attention_agrees(random_checkpoint):
    eager = load_checkpoint(random_checkpoint.source, device="cpu", attn_implementation="eager")
    trie = trie_of(eager)
    rows = rows_of(eager, images()[:3])
    torch.testing.assert_close(
        leaf_logprobs(eager, trie, rows), leaf_logprobs(random_checkpoint, trie, rows), atol=1e-4, rtol=0
    )


@pytest.mark.integration
@pytest.mark.parametrize("window", [16, 4096])
@torch.no_grad()
def test_layers_with_a_sliding_window_see_as_far_as_it_reaches(tmp_path, window):
    folder = make_tiny_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    layers = {"use_sliding_window": True, "sliding_window": window,
              "layer_types": ["full_attention", "sliding_attention"]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | {"text_config": config["text_config"] | layers}))
    checkpoint = load_checkpoint(folder, device="cpu")
    trie, rows = trie_of(checkpoint), rows_of(checkpoint, images()[:2])
    found = leaf_logprobs(checkpoint, trie, rows)
    for index, row in enumerate(rows):
        expected = leaf_logprobs_one_by_one(checkpoint, trie, [row])
        torch.testing.assert_close(found[index : index + 1], expected, atol=1e-4, rtol=0)
    under_one_mask = plain_leaf_logprobs(checkpoint, trie, rows)
    assert ((under_one_mask - found).abs().max() > 0.1) == (window == 16)


def test_attention_that_takes_no_mask_is_refused(random_checkpoint, monkeypatch):
    config = random_checkpoint.model.config.get_text_config()
    monkeypatch.setattr(type(config), "_attn_implementation", property(lambda self: "flash_attention_2"))
    with pytest.raises(ValueError, match="cannot take: load with attn_implementation='sdpa'"):
        leaf_logprobs(random_checkpoint, trie_of(random_checkpoint), rows_of(random_checkpoint, images()[:1]))


def test_ratings_keep_the_batch_axis_and_are_in_range(iqa):
    for count in (1, 3):
        ratings = iqa.rate(images()[:count])
        assert ratings.mean.shape == ratings.std.shape == ratings.valid.shape == (count,)
        assert ratings.mean.dtype == torch.float32
        assert ratings.valid.all()
        assert ((ratings.mean >= 1) & (ratings.mean <= 5) & (ratings.std >= 0)).all()
        assert ratings.std_kind == "token"
    assert len(iqa.rate([])) == 0


def test_batched_agrees_with_strict(iqa):
    strict, batched = iqa.rate(images(), strict=True), iqa.rate(images(), batch_size=4)
    torch.testing.assert_close(batched.mean, strict.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(batched.std, strict.std, atol=1e-4, rtol=0)


@torch.no_grad()
def test_batched_agrees_with_strict_where_every_pixel_shows(random_checkpoint):
    trie = trie_of(random_checkpoint)
    strict, batched = (rate_direct(random_checkpoint, trie, images(), strict=s).logprobs for s in (True, False))
    torch.testing.assert_close(batched, strict, atol=1e-4, rtol=0)
    assert strict.std(dim=0).max() > 1e-2


def test_strict_images_share_no_operation(iqa, monkeypatch):
    """On a GPU a sum may depend on a row's place in its batch."""
    shapes = []

    def seen(logprobs, ratings):
        shapes.append(len(logprobs))
        return summarise(logprobs, ratings)

    monkeypatch.setattr("zoomiqa_reward.model.direct.summarise", seen)
    count = len(images())
    strict = iqa.rate(images(), strict=True)
    assert shapes == [1] * count
    shapes.clear()
    together = iqa.rate(images(), strict=False)
    assert shapes == [count]
    torch.testing.assert_close(strict.std, together.std, atol=1e-4, rtol=0)


def test_strict_is_bit_equal_in_any_company_and_order(iqa):
    together = iqa.rate(images(), strict=True)
    for index, image in enumerate(images()):
        alone = iqa.rate(image, strict=True)
        assert torch.equal(alone.mean[0], together.mean[index])
        assert torch.equal(alone.std[0], together.std[index])
    backwards = iqa.rate(images()[::-1], strict=True)
    assert torch.equal(backwards.mean.flip(0), together.mean)
    assert torch.equal(iqa.rate(images()[0], strict=True).mean, together.mean[:1])


@pytest.mark.integration
def test_strict_is_bit_equal_in_another_process():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tiny import make_image; from zoomiqa_reward.model.zoomiqa import ZoomIQA\n"
        "iqa = ZoomIQA.from_pretrained(sys.argv[2], device='cpu')\n"
        "images = [make_image(9, 40, 50), make_image(4, 200, 230)]\n"
        "print(*(value.hex() for value in iqa.rate(images, strict=True).mean.tolist()))"
    )
    here = Path(__file__).parents[1] / "support"
    command = [sys.executable, "-c", code, str(here), str(tiny_checkpoint())]
    env = os.environ | {"PYTHONPATH": str(here.parents[1]), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.split()
    assert float.fromhex(out[1]) == tiny_iqa().rate(make_image(4, 200, 230), strict=True).mean.item()


def test_views_are_mixed_by_their_weights(iqa):
    """Whole and one smaller scale, each read alone, give the mixture's mass, mean and spread by hand."""
    factor = 28 if iqa.checkpoint.image_processor.patch_size == 14 else 32
    image = make_image(2, 2 * factor, 3 * factor)
    checkpoint = iqa.checkpoint

    def read(**views):
        policy = tiny_protocol(views=ViewPolicy(tile_px=3 * factor, min_side_px=factor, **views))
        one = ZoomIQA(type(checkpoint)(**(vars(checkpoint) | {"protocol": policy})))
        with torch.no_grad():
            return rate_direct(one.checkpoint, iqa.trie, [image])

    mixed = read(scales=(1.0, 0.5), weights=(0.3, 0.4), whole_weight=0.3)
    whole, half = read(scales=(1.0,), weights=(1.0,)), read(scales=(0.5,), weights=(1.0,))
    share = 0.6 * whole.logprobs.exp() + 0.4 * half.logprobs.exp()
    torch.testing.assert_close(mixed.logprobs.exp(), share)
    values = torch.tensor(iqa.trie.ratings)
    mean = (share * values).sum() / share.sum()
    assert mixed.mean.item() == pytest.approx(mean.item(), abs=1e-4)
    spread = (share * (values - mean) ** 2).sum() / share.sum()
    assert mixed.std.item() == pytest.approx(math.sqrt(spread), abs=1e-4)


def test_other_views_share_the_weights_and_change_rating_and_fingerprint(iqa):
    image = make_image(4, 200, 230)
    glance = iqa.with_views(ViewPolicy.whole())
    assert glance.checkpoint.model is iqa.checkpoint.model
    assert glance.fingerprint != iqa.fingerprint
    height, width = image.shape[1:]
    protocol = glance.protocol
    assert len(plan_views(height, width, protocol.views, factor=28, min_pixels=784, max_pixels=28 * 28 * 4)) == 1
    changed = replace(iqa.checkpoint, protocol=replace(iqa.protocol, views=ViewPolicy.whole()))
    by_hand = rate_direct(changed, iqa.trie, [image])
    assert float(glance.rate([image]).mean[0]) == float(by_hand.mean[0])


def test_chunk_size_does_not_change_the_rating(iqa):
    with torch.no_grad():
        one = rate_direct(iqa.checkpoint, iqa.trie, [make_image(4, 200, 230)], chunk_pixels=1)
        many = rate_direct(iqa.checkpoint, iqa.trie, [make_image(4, 200, 230)])
    torch.testing.assert_close(one.mean, many.mean, atol=1e-4, rtol=0)


def test_too_little_mass_is_nan_and_not_valid():
    logprobs = torch.log(torch.tensor([[0.3, 0.3], [0.2, 0.29], [0.5, 0.0]]))
    found = summarise(logprobs, (1.0, 5.0))
    assert found.valid.tolist() == [True, False, True]
    assert found.mean.tolist() == pytest.approx([3.0, math.nan, 1.0], nan_ok=True)
    assert found.std.tolist() == pytest.approx([2.0, math.nan, 0.0], nan_ok=True, abs=1e-5)


def test_mix_keeps_the_mass():
    logprobs = torch.log(torch.tensor([[0.5, 0.1], [0.1, 0.3]]))
    torch.testing.assert_close(mix(logprobs, torch.tensor([0.75, 0.25])).exp(), torch.tensor([0.4, 0.15]))


def test_an_untaught_model_measures_nothing(random_checkpoint):
    ratings = ZoomIQA(random_checkpoint).rate(images()[:2])
    assert ratings.errors == (NO_RATING,) * 2
    assert ZoomIQAReward(ZoomIQA(random_checkpoint))(images()[0]).errors == (NO_RATING,)
    assert not ratings.valid.any()
    assert ratings.mean.isnan().all()
    assert ratings.std.isnan().all()


def test_gradient_reaches_every_pixel(iqa):
    image = make_image(1, 90, 120).requires_grad_(True)
    iqa.rate(image, grad=True, strict=True).mean.sum().backward()
    assert image.grad.isfinite().all()
    assert (image.grad.abs().sum(dim=0) > 0).float().mean() > 0.99


def test_gradient_matches_a_finite_difference(random_checkpoint):
    trie = trie_of(random_checkpoint)

    def value(image):
        return rate_direct(random_checkpoint, trie, [image], strict=True).logprobs[0].mean()

    image = (0.3 + 0.4 * make_image(1, 90, 120)).requires_grad_(True)
    value(image).backward()
    direction = image.grad / image.grad.norm()
    step = 0.02
    with torch.no_grad():
        slope = (value(image + step * direction) - value(image - step * direction)) / (2 * step)
    assert slope.item() == pytest.approx(image.grad.norm().item(), rel=0.05)


def test_no_graph_is_kept_unless_asked_for(iqa):
    assert not iqa.rate(make_image().requires_grad_(True)).mean.requires_grad
    assert all(p.grad is None for p in iqa.checkpoint.model.parameters())


def test_a_refused_image_is_named_by_its_place(iqa):
    with pytest.raises(ImageError, match=r"^image 1: .*no such file"):
        iqa.rate([make_image(), "no-such-file.png"])
    with pytest.raises(ImageError, match="cannot be resized"):
        iqa.rate((torch.arange(2100) // 80 % 2 * 0.5).expand(3, 10, 2100))


def test_wrong_arguments_are_refused(iqa):
    with pytest.raises(ValueError, match="mode='fast'"):
        iqa.rate(make_image(), mode="fast")
    with pytest.raises(ValueError, match="need mode='reason'"):
        iqa.rate(make_image(), num_samples=3)
    with pytest.raises(ValueError, match="needs mode='direct'"):
        iqa.rate(make_image(), mode="reason", grad=True)


def test_a_batch_with_too_few_image_features_fails_loudly(iqa):
    row = rows_of(iqa.checkpoint, images()[:1])[0]
    with pytest.raises(ValueError, match="image tokens"):
        collate(iqa.checkpoint, [TokenRow(input_ids=row.input_ids, pixel_values=row.pixel_values[:4],
                                     image_grid_thw=torch.tensor([[1, 2, 2]]))])  # fmt: skip


@pytest.mark.parametrize("name", ["batch_size", "num_samples", "rounds", "seed", "max_new_tokens"])
def test_a_number_that_is_not_whole_or_a_batch_of_none_is_named(iqa, name):
    mode = "direct" if name == "batch_size" else "reason"
    with pytest.raises(TypeError, match=rf"^{name}=2\.0: must be a whole number"):
        iqa.rate([make_image(0, 64, 64)], mode=mode, **{name: 2.0})
    for mode in ("direct", "reason"):
        with pytest.raises(ValueError, match=r"^batch_size=0: must be at least 1"):
            iqa.rate([make_image(0, 64, 64)], mode=mode, batch_size=0)
    with pytest.raises(ValueError, match="must be a text"):
        iqa.rate([make_image(0, 64, 64)], question=["Is it sharp?"])
