"""Gradients from the rating to the pixels: checked against finite differences, per image, and never silently cut."""

import contextlib
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import ARCHS, make_image, make_tiny_checkpoint, tiny_iqa, with_lora
from torch import nn

from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import save_png, to_pil
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.direct import rate_direct, trie_of
from zoomiqa_reward.model.gradients import frozen, graph_to_pixels
from zoomiqa_reward.rewards.base import ask
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

SIZES = ((70, 90), (64, 64), (110, 84), (70, 90))


@pytest.fixture(params=ARCHS)
def iqa(request):
    return tiny_iqa(request.param)


def batch(sizes=SIZES):
    return [(0.1 + 0.8 * make_image(seed, *size)).requires_grad_(True) for seed, size in enumerate(sizes)]


def layers_of(model):
    return [
        module for module in model.modules() if hasattr(module, "mlp") and hasattr(module, "gradient_checkpointing")
    ]


def gradients(reward, images):
    scores = reward(images, grad=True)
    return scores, torch.autograd.grad(scores.value.sum(), images)


@pytest.mark.parametrize("strict", [True, False])
def test_the_value_is_the_one_without_a_graph(iqa, strict):
    reward = ZoomIQAReward(iqa, strict=strict)
    assert reward.differentiable
    images = batch()
    with_graph, without = reward(images, grad=True), reward(images)
    assert torch.equal(with_graph.value, without.value)
    assert torch.equal(with_graph.std, without.std)
    assert with_graph.value.requires_grad
    assert not without.value.requires_grad
    assert not with_graph.std.requires_grad


@pytest.mark.parametrize("strict", [True, False])
def test_each_image_has_its_own_gradient_whatever_shares_its_batch(iqa, strict):
    reward = ZoomIQAReward(iqa, strict=strict)
    images = batch()
    scores = reward(images, grad=True)
    for place, image in enumerate(images):
        mixed = torch.autograd.grad(scores.value[place], images, retain_graph=True, allow_unused=True)
        for other, gradient in enumerate(mixed):
            if other != place:
                assert gradient is None or not gradient.any()
        alone = image.detach().clone().requires_grad_(True)
        [expected] = torch.autograd.grad(reward(alone, grad=True).value.sum(), alone)
        assert expected.abs().max() > 0
        tolerance = 0 if strict else 1e-3
        assert (mixed[place] - expected).norm() <= tolerance * expected.norm()


def test_a_batch_tensor_gets_one_gradient(iqa):
    images = torch.stack([make_image(seed, 60, 64) for seed in range(2)]).requires_grad_(True)
    ZoomIQAReward(iqa)(images, grad=True).value.sum().backward()
    assert (images.grad.abs().sum(dim=1) > 0).float().mean() > 0.99


@pytest.mark.parametrize("arch", ARCHS)
def test_gradient_agrees_with_central_differences(arch, tmp_path):
    """Along the gradient in a short step; then, with the whole image moving by 1e-2, along it and in random directions.

    A model of random weights bends within the long steps (its plain central differences are up to 17 % off, and about
    a ninth of that at a third of the step). So its weights are halved there, and the error's square term is cancelled:
    (4 D(h / 2) - D(h)) / 3.
    """
    checkpoint = load_checkpoint(make_tiny_checkpoint(tmp_path / arch, arch, 3), device="cpu")
    trie = trie_of(checkpoint)
    ratings = torch.tensor(trie.ratings)

    def value(image):  # the mean over the leaves, which an untaught model gives too little mass to be valid
        return (rate_direct(checkpoint, trie, [image], strict=True).logprobs.softmax(dim=-1) @ ratings)[0]

    image = batch([(90, 120)])[0]
    [gradient] = torch.autograd.grad(value(image), image)
    with torch.no_grad():  # as the model is: plain differences, a step as long as one that moves one pixel by 1e-2
        step = 1e-2 * gradient / gradient.norm()
        slope = (value(image + step) - value(image - step)) / 2e-2
        assert slope.item() == pytest.approx(gradient.norm().item(), rel=1e-2)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.5)
    [gradient] = torch.autograd.grad(value(image), image)

    @torch.no_grad()
    def difference(direction, step=1e-2):
        plain, half = (float(value(image + h * direction) - value(image - h * direction)) / (2 * h)
                       for h in (step, step / 2))  # fmt: skip
        return (4 * half - plain) / 3

    along = gradient / gradient.abs().max()
    assert difference(along) == pytest.approx(float((gradient * along).sum()), rel=1e-2)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randint(0, 2, image.shape, generator=generator) * 2.0 - 1 for _ in range(6)]
    predicted = torch.stack([(gradient * direction).sum() for direction in directions])
    measured = torch.tensor([difference(direction) for direction in directions])
    slope = (predicted * measured).sum() / predicted.square().sum()
    assert slope.item() == pytest.approx(1, abs=0.01)
    assert predicted.abs().max() > 0.01


def test_tensor_path_and_pil_path_agree_bit_for_bit(iqa, tmp_path):
    image = (make_image(3, 90, 70) * 255).round() / 255
    reward = ZoomIQAReward(iqa)
    pil = to_pil(image)
    file = save_png(pil, tmp_path / "image.png")
    values = torch.cat([reward(one).value for one in (image, pil, file)])
    values = torch.cat([values, reward(image.clone().requires_grad_(True), grad=True).value.detach()])
    assert len(set(values.tolist())) == 1


def test_recomputing_gives_the_same_numbers_and_runs_every_layer_twice(iqa):
    images = batch(((70, 90), (64, 64)))
    plain, plain_gradients = gradients(ZoomIQAReward(iqa), images)
    calls = []
    layers = layers_of(iqa.checkpoint.model)
    assert len(layers) == 4  # two of the vision tower, two of the language model
    # before, not after: recomputing stops inside the last part, once all that is missing is there. The text before the
    # image has no gradient, so nothing of it is recomputed.
    hooks = [layer.mlp.register_forward_pre_hook(lambda _, inputs: calls.append(1) if inputs[0].requires_grad else None)
             for layer in layers]  # fmt: skip
    try:
        ZoomIQAReward(iqa)(images, grad=True)
        passes = len(calls)
        calls.clear()
        scores = ZoomIQAReward(iqa, gradient_checkpointing=True)(images, grad=True)
        assert len(calls) == passes
        found = torch.autograd.grad(scores.value.sum(), images)
        assert len(calls) == 2 * passes
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(scores.value, plain.value)
    for one, expected in zip(found, plain_gradients, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-7)


def test_recomputing_keeps_fewer_activations(iqa):
    def kept_bytes(**options):
        sizes = {}  # a tensor that several operators keep is held once

        def pack(tensor):
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ZoomIQAReward(iqa, **options)(batch(((110, 84),))[0], grad=True)
        return sum(sizes.values())

    assert kept_bytes(gradient_checkpointing=True) < 0.55 * kept_bytes()  # half of it are weights and pixels


def test_the_model_is_afterwards_as_it_was_also_after_an_error(iqa):
    model = iqa.checkpoint.model

    def state():
        return [(module.training, dict(vars(module)).get("gradient_checkpointing")) for module in model.modules()]

    before = state()
    reward = ZoomIQAReward(iqa, gradient_checkpointing=True)
    reward(batch()[0], grad=True)
    assert state() == before
    with contextlib.suppress(ZeroDivisionError), graph_to_pixels(model, gradient_checkpointing=True):
        assert state() != before
        assert not model.training
        _ = 1 / 0
    assert state() == before


@pytest.mark.parametrize("recompute", [False, True])
def test_parameters_get_no_gradient_and_are_unfrozen_again(iqa, recompute):
    parameters = list(iqa.checkpoint.model.parameters())
    image = batch()[0]
    try:
        parameters[0].requires_grad_(True)
        parameters[-1].requires_grad_(True)
        scores = ZoomIQAReward(iqa, gradient_checkpointing=recompute)(image, grad=True)
        assert [p.requires_grad for p in parameters].count(True) == 2  # before backward, which may recompute
        scores.value.sum().backward()
        assert image.grad.any()
        assert all(p.grad is None for p in parameters)
        assert [p.requires_grad for p in parameters].count(True) == 2
    finally:
        iqa.checkpoint.model.requires_grad_(False)


def test_dropout_that_would_act_is_refused(iqa):
    model = iqa.checkpoint.model
    attention = model.model.language_model.layers[0].self_attn
    rate = attention.attention_dropout
    reward = ZoomIQAReward(iqa, gradient_checkpointing=True)
    try:
        attention.attention_dropout = 0.1
        assert reward(batch()[0], grad=True).valid.all()  # the layer is switched, its attention is not
        attention.train()
        with pytest.raises(ValueError, match=r"attention_dropout=0\.1.*call model\.eval\(\)"):
            reward(batch()[0], grad=True)
    finally:
        attention.attention_dropout = rate
        model.eval()
    dropout = nn.Sequential(nn.Dropout(0.2))
    with pytest.raises(ValueError, match=r"p=0\.2"), graph_to_pixels(dropout):
        pass
    with graph_to_pixels(dropout.eval()):
        pass


def test_a_rating_with_the_dropout_of_an_adapter_is_refused_in_every_mode(tmp_path):
    iqa = ZoomIQA.from_pretrained(make_tiny_checkpoint(tmp_path), device="cpu")
    trained = with_lora(iqa.checkpoint.model, target_modules=["q_proj"], lora_dropout=0.5)
    iqa = ZoomIQA(replace(iqa.checkpoint, model=trained.get_base_model()))
    image = make_image()
    iqa.rate(image)
    trained.train()
    for say in (iqa.rate, iqa.assess, lambda one: iqa.rate(one, mode="reason"), lambda one: iqa.compare(one, one)):
        with pytest.raises(ValueError, match=r"lora_dropout.*p=0\.5.*call model\.eval\(\)"):
            say(image)


def test_a_model_without_layers_to_recompute_is_refused():
    with (
        pytest.raises(ValueError, match="Linear has no layer"),
        graph_to_pixels(nn.Linear(2, 2), gradient_checkpointing=True),
    ):
        pass


def test_frozen_restores_what_it_found():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with frozen(model):
        assert not model.weight.requires_grad
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)


def test_ascent_raises_the_rating(iqa):
    reward = ZoomIQAReward(iqa)
    image = (0.2 + 0.3 * make_image(5, 64, 84)).requires_grad_(True)
    ratings = []
    for _ in range(10):
        scores, [gradient] = gradients(reward, [image])
        ratings.append(scores.value.item())
        image = (image + 2e-2 * gradient / gradient.abs().max()).detach().clamp(0, 1).requires_grad_(True)
    assert reward(image).value.item() > ratings[0] + 2e-5  # the smallest steps of float32 are 2e-7 here


def test_what_cannot_be_measured_has_no_value_and_leaves_the_others_their_gradient():
    reward = ZoomIQAReward(tiny_iqa(), strict=False)
    images = [make_image(0).requires_grad_(True), (2 * make_image(1)).requires_grad_(True),
              (torch.arange(2100) // 80 % 2 * 0.5).repeat(3, 10, 1).requires_grad_(True)]  # fmt: skip
    scores = reward(images, grad=True)
    assert scores.valid.tolist() == [True, False, False]
    assert "not in [0, 1]" in scores.info["errors"][1]
    assert "cannot be resized" in scores.info["errors"][2]
    scores.value[scores.valid].sum().backward()
    assert images[0].grad.isfinite().all()
    assert images[1].grad is None


def test_a_graph_that_cannot_be_is_an_error(iqa):
    reward = ZoomIQAReward(iqa)
    image = batch()[0]
    with pytest.raises(ValueError, match=r"image 1 \(PIL RGB 8x8\) is no tensor"):
        reward([image, Image.new("RGB", (8, 8))], grad=True)
    with pytest.raises(ValueError, match=r"image 0 \(tensor 3x70x90\) does not require a gradient"):
        reward(image.detach(), grad=True)
    with torch.no_grad(), pytest.raises(ValueError, match=r"inside torch\.no_grad\(\)"):
        reward(image, grad=True)
    with pytest.raises(ValueError, match="does not require a gradient"):
        iqa.rate(image.detach(), grad=True)
    with pytest.raises(ValueError, match="needs grad=True"):
        iqa.rate(image, gradient_checkpointing=True)
    words = ZoomIQAReward(iqa, mode="reason")
    assert not words.differentiable
    with pytest.raises(ValueError, match=r"mode='reason' answers in text.*use mode='direct'"):
        words(image, grad=True)


def test_a_metric_that_says_it_is_differentiable_must_be():
    def metric(fn, differentiable=True):
        return MetricReward(fn, "m", True, (0, 1), differentiable=differentiable)

    image = make_image().requires_grad_(True)
    scores = metric(lambda one: one.mean())(image, grad=True)
    torch.testing.assert_close(
        torch.autograd.grad(scores.value[0], image)[0], torch.full_like(image, 1 / image.numel())
    )
    with pytest.raises(ValueError, match="'m' cut the graph"):
        metric(lambda one: one.mean().item())(image, grad=True)
    with pytest.raises(ValueError, match="'m' is not differentiable"):
        metric(lambda one: one.mean(), differentiable=False)(image, grad=True)
    with pytest.raises(ValueError, match="does not require a gradient"):
        metric(lambda one: one.mean())(make_image(), grad=True)


def test_ask_gives_a_graph_or_none_at_all():
    class Plain:
        name, differentiable = "plain", True

        def __call__(self, images, lq=None, hr=None, prompts=None):
            return MetricReward(lambda one: one.mean(), "m", True, (0, 1), differentiable=True)(images)

    image = make_image().requires_grad_(True)
    assert ask(Plain(), image, grad=True).value.requires_grad
    assert not ask(Plain(), image).value.requires_grad
    with pytest.raises(ValueError, match="'plain' cut the graph"):
        ask(Plain(), image.detach(), grad=True)
    other = Plain()
    other.differentiable = False
    with pytest.raises(ValueError, match="'plain' is not differentiable"):
        ask(other, image, grad=True)
