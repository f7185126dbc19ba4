"""Trajectory advantages against numbers worked out by hand."""

import pytest
import torch

from train_iqa.rl.objective import (
    group_advantages,
    rows_loss,
    scatter_to_rows,
    token_row_weights,
    trajectory_row_weights,
)


def test_advantages_by_hand():
    """Rewards 1, 2, 3, 6: mean 3, deviations -2, -1, 0, 3, squares 14; 14 / 3 has root 2.160247.

    -2 / 2.160247 = -0.925820, -1 / 2.160247 = -0.462910, 3 / 2.160247 = 1.388730.
    """
    found = group_advantages(torch.tensor([[1.0, 2.0, 3.0, 6.0]]))
    assert found[0].tolist() == pytest.approx([-0.925820, -0.462910, 0.0, 1.388730], abs=2e-6)


def test_groups_do_not_know_each_other_and_have_zero_mean():
    rewards = torch.rand(5, 6)
    found = group_advantages(rewards)
    assert found.mean(dim=1).abs().max() < 1e-6
    assert torch.equal(found[2:3], group_advantages(rewards[2:3]))
    assert torch.allclose(found, group_advantages(3 * rewards + 7), atol=1e-4)


@pytest.mark.parametrize("reward", [0.1, 0.0, 1 / 3, 1e-8, 2.7])
@pytest.mark.parametrize("samples", [2, 3, 7])
def test_an_all_equal_group_gives_exactly_zero(reward, samples):
    assert torch.equal(group_advantages(torch.full((2, samples), reward)), torch.zeros(2, samples))


@pytest.mark.parametrize("rewards", [torch.tensor([[1.0, torch.nan]]), torch.ones(2, 1), torch.ones(3)])
def test_what_has_no_advantage_is_refused(rewards):
    with pytest.raises(ValueError, match="rewards"):
        group_advantages(rewards)


def test_a_zoomed_trajectory_counts_once():
    """Trajectory a: two rows of mean losses 1 and 3; trajectory b: one row of mean loss 5.

    By trajectory: ((1 + 3) / 2 + 5) / 2 = 3.5. By token (2, 4 and 1 of them): (2 * 1 + 4 * 3 + 5) / 7 = 19 / 7.
    """
    turns, mask = [2, 1], torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    losses = torch.tensor([[1.0, 1.0, 9.0, 9.0], [2.0, 4.0, 3.0, 3.0], [5.0, 9.0, 9.0, 9.0]])
    assert scatter_to_rows(torch.tensor([1.0, -1.0]), turns).tolist() == [1.0, 1.0, -1.0]
    weights = trajectory_row_weights(turns)
    assert float(rows_loss(losses, mask, weights) / weights.sum()) == pytest.approx(3.5)
    weights = token_row_weights(mask.sum(dim=1).tolist())
    assert float(rows_loss(losses, mask, weights) / weights.sum()) == pytest.approx(19 / 7)
