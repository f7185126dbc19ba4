"""Rewards against numbers worked out by hand; unreadable answers earn nothing and disturb nobody."""

import math

import pytest
import torch
from tiny import tiny_protocol

from train_iqa.rl.rewards import (
    RewardConfig,
    all_rewards,
    format_reward,
    gaussian_reward,
    rank_reward,
    threshold_reward,
)
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.turns import Turn
from zoomiqa_reward.protocol import read_rating, read_route, read_sections, read_tool, usable_box

PROTOCOL = tiny_protocol(sections1=("Summary", "Decision"), sections2=("Crop", "Decision"))
ZOOM = (
    "<think>Summary: soft. Decision: look closer.</think>"
    '<answer>{"bbox_2d": [0.1, 0.2, 0.5, 0.6], "rating": 2.50, "tool": "crop"}</answer>'
)
FINAL = (
    "<think>Summary: sharp. Decision: fine.</think>"
    '<answer>{"bbox_2d": [0, 0, 0, 0], "rating": 4.00, "tool": "final"}</answer>'
)
SECOND = FINAL.replace("Summary", "Crop")
NAN = math.nan


def assessment(*texts):
    turns = tuple(
        Turn(
            prompt="", text=text, sections=read_sections(text, (PROTOCOL.sections1, PROTOCOL.sections2)[k]),
            bbox=usable_box(read_route(text).bbox), crop_box=None, tool=read_tool(text), rating=read_rating(text),
        )
        for k, text in enumerate(texts)
    )  # fmt: skip
    return Assessment(rating=turns[-1].rating, std=NAN, turns=turns, valid=True)


@pytest.mark.parametrize("texts", [(FINAL,), (ZOOM, SECOND)])
def test_the_protocols_form_earns_1(texts):
    assert format_reward(PROTOCOL, assessment(*texts)) == 1.0


@pytest.mark.parametrize(
    "texts",
    [
        (FINAL.replace("Decision: ", ""),),  # a section is missing
        (FINAL.replace("</think>", ""),),
        (FINAL + " Thank you.",),
        (FINAL + " No: " + FINAL[FINAL.index("<answer>") :],),  # a second answer
        (FINAL.replace("</think>", "</think> So: <think></think>"),),
        (FINAL.replace("4.00", "7.00"),),
        (FINAL.replace("final", "crop"),),  # a closer look, at nothing
        (ZOOM.replace("crop", "final"),),  # no closer look, but a box
        (ZOOM.replace("0.5, 0.6", "0.05, 0.6"), SECOND),  # right edge left of the left one
        (ZOOM.replace("0.6", "60"), SECOND),
        (ZOOM.replace('"crop"', '"zoom"'), SECOND),
        (FINAL.replace("[0, 0, 0, 0]", "[0]"),),
        (ZOOM, ZOOM.replace("Summary", "Crop")),  # there is no third round
        (ZOOM, FINAL),  # round 1's sections in round 2
    ],
)
def test_anything_else_earns_0(texts):
    assert format_reward(PROTOCOL, assessment(*texts)) == 0.0


def test_score_rewards_by_hand():
    """exp(-0.35^2 / (2 * 0.35^2)) = exp(-1/2) = 0.606531; an error of 0.7: exp(-2) = 0.135335. Below 0.35 is 1."""
    ratings, mos = torch.tensor([[3.0, 3.35, 3.7, NAN], [1.0, 1.25, 1.5, NAN]]), torch.tensor([3.0, 1.25])
    found = gaussian_reward(ratings, mos)
    assert found[0].tolist() == pytest.approx([1.0, 0.606531, 0.135335, 0.0], abs=1e-5)
    assert threshold_reward(ratings, mos, 0.3)[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert threshold_reward(ratings, mos)[1].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert threshold_reward(ratings, mos, 0.25)[1].tolist() == [0.0, 1.0, 0.0, 0.0]  # an error of just 0.25 is no hit


def test_rank_reward_by_hand():
    """Image a (MOS 4): 3 and 4, mean 3.5, variance 0.5. Image b (MOS 2): 2 and 2, mean 2, variance 0.

    root(0.5) = 0.707107. a's 3 against b: z = 1 / 0.707107, Phi(1.414214) = (1 + erf 1) / 2 = 0.921350; root 0.959870
    and root(eps) = 0.001.
    a's 4: Phi(2.828427) = (1 + erf 2) / 2 = 0.997661; root 0.998830. b's 2 against a: z = -1.5 / 0.707107,
    1 - Phi(-2.121320) = (1 + erf 1.5) / 2 = 0.983053; root 0.991490.
    """
    ratings = torch.tensor([[3.0, 4.0], [2.0, 2.0]])
    right = rank_reward(ratings, torch.tensor([4.0, 2.0]))
    assert right.flatten().tolist() == pytest.approx([0.960870, 0.999830, 0.992490, 0.992490], abs=2e-5)
    # The other order: roots of what is left, 0.078650, 0.002339 and 0.016947, and 0.001.
    wrong = rank_reward(ratings, torch.tensor([2.0, 4.0]))
    assert wrong.flatten().tolist() == pytest.approx([0.281446, 0.049363, 0.131182, 0.131182], abs=5e-5)
    # Equal MOS: root(p / 2) + root((1 - p) / 2) = 0.678731 + 0.198306 for p = 0.921350.
    tie = rank_reward(ratings, torch.tensor([3.0, 3.0]))
    assert float(tie[0, 0]) == pytest.approx(0.877036, abs=2e-5)


def test_rank_is_the_mean_over_the_others_and_knows_no_order_of_images():
    generator = torch.Generator().manual_seed(0)
    ratings, mos = 1 + 4 * torch.rand(8, 4, generator=generator), 1 + 4 * torch.rand(8, generator=generator)
    found = rank_reward(ratings, mos)
    order = torch.randperm(8, generator=generator)
    assert torch.allclose(rank_reward(ratings[order], mos[order]), found[order], atol=1e-6)
    pairs = [rank_reward(ratings[[0, j]], mos[[0, j]])[0] for j in range(1, 8)]
    assert torch.allclose(torch.stack(pairs).mean(dim=0), found[0], atol=1e-6)


def test_the_best_order_earns_1_and_no_more():
    """The eps inside the roots would add 0.001."""
    ratings = torch.tensor([[4.0, 4.1], [2.0, 2.05], [1.0, 1.1]])
    assert torch.equal(rank_reward(ratings, torch.tensor([4.0, 2.0, 1.0])), torch.ones(3, 2))


def test_an_unreadable_rating_earns_0_and_leaves_the_others_alone():
    ratings, mos = torch.tensor([[3.0, 4.0, NAN], [2.0, 2.0, 2.0], [NAN, 1.0, NAN]]), torch.tensor([4.0, 2.0, 1.0])
    found = rank_reward(ratings, mos)
    assert found[0, 2] == found[2, 0] == found[2, 2] == 0
    # Image c has one readable rating: it leaves the others' cohort, but is itself compared.
    without = rank_reward(ratings[:2], mos[:2])
    assert torch.allclose(found[:2], without, atol=1e-7)
    assert found[2, 1] > 0.95
    assert not rank_reward(ratings[[0, 2]], mos[[0, 2]])[0].any()  # nothing left to compare with
    nothing = torch.full((3, 2), NAN)
    for values in all_rewards(nothing, torch.ones(3, 2), mos, RewardConfig()).values():
        assert torch.equal(values, torch.zeros(3, 2))


def test_the_total_is_the_weighted_sum():
    ratings, mos = torch.tensor([[3.0, 4.0], [2.0, 2.0]]), torch.tensor([4.0, 2.0])
    forms = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    config = RewardConfig(format=0.5, gaussian=2.0, threshold=0.25, rank=0.0)
    found = all_rewards(ratings, forms, mos, config)
    assert found["total"][0].tolist() == pytest.approx([0.5 + 2 * math.exp(-1 / 0.245), 2.25], abs=1e-6)
    with pytest.raises(ValueError, match="not all 0"):
        RewardConfig(format=0, gaussian=0, rank=0)
