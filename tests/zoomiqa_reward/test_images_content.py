"""Images without content: the rule, and every way to a rating obeys it."""

import math

import pytest
import torch
from skimage import data

from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.check.ladders import add_noise, blur
from zoomiqa_reward.images.content import MIN_SIDE_PX, contentless
from zoomiqa_reward.images.loading import load_image, save_png
from zoomiqa_reward.model.measuring import measure


@pytest.fixture(scope="module")
def photo():
    return load_image(data.astronaut()[:256, :256].copy())


@pytest.fixture(scope="module")
def iqa():
    return ZoomIQA.from_pretrained("nano", device="cpu")


def degenerate(photo):
    grain = torch.Generator().manual_seed(0)
    return {
        "black": photo * 0,
        "white": photo * 0 + 1,
        "one colour": torch.tensor([0.2, 0.5, 0.8]).view(3, 1, 1).expand_as(photo),
        "dark": photo * 0.04,
        "washed out": 0.5 + (photo - 0.5) * 0.04,
        "blurred away": blur(photo, 20.0),  # sigma 40 of 512 px
        "black with grain": (0.02 * torch.randn(photo.shape, generator=grain)).clamp(0, 1),
        "black with a hot pixel": (photo * 0).index_fill(2, torch.tensor([], dtype=torch.long), 1.0).clone(),
        "few pixels": photo[:, : MIN_SIDE_PX - 1, :],
        "not finite": photo * math.nan,
    }


def test_each_kind_of_degenerate_image_is_named(photo):
    hot = degenerate(photo)
    hot["black with a hot pixel"][:, 100, 100] = 1
    for name, image in hot.items():
        why = contentless(image)
        assert why is not None
        assert why.startswith("the image has no content"), name


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket", "camera", "moon", "text", "cell"])
def test_no_photograph_is_named_nor_its_dark_foggy_noisy_and_soft_copies(name):
    image = load_image(getattr(data, name)())
    small = torch.nn.functional.adaptive_avg_pool2d(image, 192)
    copies = [image, image**2, 0.5 + image / 2, add_noise(small, 0.1), blur(small, 3.0), small[:, ::6, ::6]]
    assert [contentless(one) for one in copies] == [None] * len(copies)


def test_a_small_bright_thing_in_an_even_sky_is_content():
    sky = torch.full((3, 512, 512), 0.7)
    sky[:, 200:280, 200:280] = 0.1
    assert contentless(sky) is None


def test_the_rule_leaves_graph_and_precision_alone(photo):
    image = photo.clone().requires_grad_(True)
    assert contentless(image) is None
    assert contentless(image.half()) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert contentless(photo * 0.04) is not None


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_rate_says_not_valid_with_the_reason_and_rates_the_others(iqa, photo, mode):
    small = photo[:, ::2, ::2]
    found = iqa.rate([small * 0, small, small * 0 + 1], mode=mode)
    alone = iqa.rate([small], mode=mode, strict=True)
    assert found.valid.tolist() == [False, bool(alone.valid[0]), False]
    assert "no content" in found.errors[0]
    assert found.errors[0] == found.errors[2]
    reward = ZoomIQAReward(iqa, mode)([small * 0, small])
    assert not reward.valid[0]
    assert "no content" in reward.errors[0]
    assert torch.equal(reward.value[1:], alone.value) or not alone.valid[0]


def test_assess_says_not_valid_with_the_reason(iqa, photo):
    first, second = iqa.assess([photo[:, ::2, ::2] * 0, photo[:, ::2, ::2]])
    assert not first.valid
    assert "no content" in first.error
    assert first.turns == ()
    assert second.turns


def test_a_gradient_reaches_the_images_with_content_alone(iqa, photo):
    black = (photo[:, ::2, ::2] * 0).requires_grad_(True)
    seen = photo[:, ::2, ::2].clone().requires_grad_(True)
    found = ZoomIQAReward(iqa)([black, seen], grad=True)
    found.value[found.valid].sum().backward()
    assert found.valid.tolist() == [False, True]
    assert black.grad is None
    assert bool(seen.grad.isfinite().all())
    assert bool(seen.grad.any())


def test_the_command_line_names_the_reason(iqa, photo, tmp_path):
    file = save_png(photo * 0, tmp_path / "black.png")
    for mode in ("direct", "reason"):
        [found] = measure(iqa, [str(file)], mode=mode)
        assert not found.record.valid
        assert "no content" in found.record.error
