"""Zoom-IQA as a reward function in the call forms of DDPO and Flow-GRPO."""

import math

import numpy as np
import pytest
import torch
from mean_reward import mean_reward

from zoomiqa_reward.integrations.ddpo import batch_images, ddpo_reward, flow_grpo_reward, from_reward_function
from zoomiqa_reward.rewards.base import GroupwiseError
from zoomiqa_reward.rewards.composite import CompositeReward, Term


def test_ddpo_form_of_both_layouts():
    fn = ddpo_reward(mean_reward())
    floats = torch.rand(3, 3, 8, 10)
    scores, info = fn(floats, ["a"] * 3, [{}] * 3)
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32
    assert scores.tolist() == pytest.approx(floats.mean(dim=(1, 2, 3)).tolist())
    assert info["valid"].tolist() == [True] * 3
    assert info["errors"] == [None] * 3
    eight_bit = (floats * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for form in (eight_bit, torch.from_numpy(eight_bit), list(eight_bit)):
        found, _ = fn(form, ["a"] * 3, [{}] * 3)
        assert found.tolist() == pytest.approx((eight_bit / 255).mean(axis=(1, 2, 3)).tolist())


def test_floats_are_not_rounded_to_eight_bits():
    image = torch.full((1, 3, 8, 8), 0.5001)
    assert ddpo_reward(mean_reward())(image, [""], [{}])[0].item() == pytest.approx(0.5001, abs=1e-6)


def test_low_quality_image_travels_in_the_metadata():
    fn = ddpo_reward(mean_reward(needs=("lq",)))
    images = torch.full((2, 3, 8, 8), 0.25)
    metadata = [{"lq": torch.full((3, 4, 4), 0.5)}, {"lq": np.full((4, 4, 3), 255, dtype=np.uint8)}]
    assert fn(images, ["", ""], metadata)[0].tolist() == pytest.approx([0.75, 1.25])
    renamed = ddpo_reward(mean_reward(needs=("lq",)), lq_key="source")
    assert renamed(images[:1], [""], [{"source": metadata[0]["lq"]}])[0].tolist() == pytest.approx([0.75])
    with pytest.raises(ValueError, match=r"needs metadata\[0\]\['lq'\]; it holds \['id'\]"):
        fn(images, ["", ""], [{"id": 1}, {"id": 2}])
    with pytest.raises(ValueError, match="metadata holds 1 for 2"):
        fn(images, ["", ""], metadata[:1])
    with pytest.raises(ValueError, match="metadata is NoneType"):
        fn(images, ["", ""], None)


def test_prompts_reach_a_reward_that_needs_them():
    fn = ddpo_reward(mean_reward(fn=lambda image, prompt: float(len(prompt)), needs=("prompts",)))
    assert fn(torch.rand(2, 3, 8, 8), ("a", "abc"), ({}, {}))[0].tolist() == [1, 3]
    with pytest.raises(ValueError, match="needs prompts"):
        fn(torch.rand(1, 3, 8, 8))


def test_a_failure_is_an_error_or_nan_and_never_zero():
    """DDPO's loop takes the mean of all rewards and insists on the number of samples, so it cannot drop a NaN."""
    images = torch.stack([torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), 3.0)])
    with pytest.raises(RuntimeError, match="could not measure image 1"):
        ddpo_reward(mean_reward())(images, ["", ""], [{}, {}])
    scores, info = ddpo_reward(mean_reward(), on_invalid="nan")(images, ["", ""], [{}, {}])
    assert scores.tolist() == pytest.approx([0.5, math.nan], nan_ok=True)
    assert info["valid"].tolist() == [True, False]
    assert "not in [0, 1]" in info["errors"][1]
    with pytest.raises(ValueError, match="on_invalid='zero'"):
        ddpo_reward(mean_reward(), on_invalid="zero")


def test_a_reward_that_compares_images_is_refused():
    """A batch may hold fragments of groups: four different sources would all get 0, the value of a tie."""
    grouped = CompositeReward([Term(mean_reward(), 1.0, "z")])
    for form in (ddpo_reward, flow_grpo_reward):
        with pytest.raises(GroupwiseError, match="within its own groups"):
            form(grouped)


def test_flow_grpo_has_no_place_for_nan():
    images = torch.stack([torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), 3.0)])
    with pytest.raises(RuntimeError, match="could not measure image 1"):
        flow_grpo_reward(mean_reward())(images, ["", ""], [{}, {}])
    rewards, info = flow_grpo_reward(mean_reward(), on_invalid="nan")(images, ["", ""], [{}, {}])
    assert rewards["avg"].tolist() == pytest.approx([0.5, math.nan], nan_ok=True)
    assert info["valid"].tolist() == [True, False]


def test_flow_grpo_form():
    """As its loop reads it: named scores as tensors on the device, `avg` for the advantage."""
    fn = flow_grpo_reward(mean_reward())
    rewards, _ = fn(torch.full((2, 3, 8, 8), 0.5), ["", ""], [{}, {}], only_strict=True)
    rewards = {key: torch.as_tensor(value).float() for key, value in rewards.items()}
    assert rewards["avg"].tolist() == rewards["mean"].tolist() == [0.5, 0.5]
    # its `multi_score` multiplies each of the scores by a weight
    scores, _ = ddpo_reward(mean_reward())(torch.full((2, 3, 8, 8), 0.5), ["", ""], {})
    assert [0.5 * score for score in scores] == [0.25, 0.25]
    edit = flow_grpo_reward(mean_reward(needs=("lq",)))
    found, _ = edit(torch.full((1, 3, 8, 8), 0.5), [""], None, ref_images=torch.full((1, 3, 4, 4), 0.25))
    assert found["avg"].tolist() == [0.75]
    metadata = np.array([{"name": "a"}, {"name": "b"}])  # as a data loader of numpy's arrays gives it
    found, _ = edit(torch.full((2, 3, 8, 8), 0.5), ["", ""], metadata, ref_images=torch.full((2, 3, 4, 4), 0.25))
    assert found["avg"].tolist() == [0.75, 0.75]


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.rand(1, 8, 8, 3), np.random.rand(1, 8, 8, 3), "x.png"])
def test_other_layouts_are_refused(images):
    with pytest.raises(ValueError, match="must be a float tensor NCHW"):
        batch_images(images)


def test_their_reward_functions_are_rewards_here():
    seen = []

    def fn(images, prompts, metadata):
        seen.append((tuple(images.shape), prompts, [sorted(entry) for entry in metadata]))
        return images.mean(dim=(1, 2, 3)).numpy(), {}

    images = [torch.full((3, 8, 8), level) for level in (0.2, 0.4)]
    reward = from_reward_function(fn, "theirs", (0, 1))
    assert reward(images, prompts=["a", "b"]).value.tolist() == pytest.approx([0.2, 0.4])
    assert seen == [((2, 3, 8, 8), ["a", "b"], [[], []])]
    source = torch.zeros(3, 4, 4)
    worse = from_reward_function(fn, "theirs", (0, 1), higher_is_better=False, needs=("lq", "hr"), lq_key="source")
    assert worse(images, lq=[source] * 2, hr=images).value.tolist() == pytest.approx([-0.2, -0.4])
    assert seen[1] == ((2, 3, 8, 8), ["", ""], [["hr", "source"]] * 2)
    for answer in ({"avg": [0.5], "other": [0.1]}, [0.5], (torch.tensor([[0.5]]), {}), (np.array([0.5]), {})):
        only = from_reward_function(lambda images, prompts, metadata, answer=answer: answer, "theirs", (0, 1), needs=())
        assert only(images[:1]).value.tolist() == [0.5]
    there_and_back = from_reward_function(ddpo_reward(mean_reward()), "mean", (0, 1), needs=())
    assert there_and_back(images).value.tolist() == pytest.approx([0.2, 0.4])
