"""A training run's time."""

import pytest

from zoomiqa_reward.runs.training_folder import TimeBudget


def test_a_clock_that_goes_on_spends_only_the_rest():
    now = iter([0.0, 10.0, 10.0, 16.0, 100.0, 104.0, 105.0]).__next__
    clock = TimeBudget(10.0, now)
    clock.start()  # at 10
    assert clock.progress == pytest.approx(0.0)
    state = {"spent": clock.spent}  # at 16
    again = TimeBudget(10.0, now)  # at 100
    again.load_state_dict(state)  # at 104
    assert again.progress == pytest.approx(0.7)
