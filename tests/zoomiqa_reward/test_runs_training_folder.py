"""A training run's time and state."""

import contextlib
from pathlib import Path

import pytest
import torch

from zoomiqa_reward.runs import training_folder
from zoomiqa_reward.runs.program import message_of
from zoomiqa_reward.runs.training_folder import RunFolder, RunningMeans, TimeBudget


def test_a_clock_that_goes_on_spends_only_the_rest():
    now = iter([0.0, 10.0, 10.0, 16.0, 100.0, 104.0, 105.0]).__next__
    clock = TimeBudget(10.0, now)
    clock.start()  # at 10
    assert clock.progress == pytest.approx(0.0)
    state = {"spent": clock.spent}  # at 16
    again = TimeBudget(10.0, now)  # at 100
    again.load_state_dict(state)  # at 104
    assert again.progress == pytest.approx(0.7)


def test_a_state_is_read_to_the_cpu_whatever_device_it_was_on(tmp_path, monkeypatch):
    """So a run of a GPU goes on where there is none."""
    means, given = RunningMeans(), []
    means.update({"loss": 2.0})
    RunFolder(tmp_path / "run").save(3, {"means": means})
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: given.append(options) or load(*args, **options))
    again = RunningMeans()
    assert RunFolder(tmp_path / "run").load({"means": again}) == 3
    assert again.means == {"loss": 2.0}
    assert given[0]["map_location"] == "cpu"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_named_as_one(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    monkeypatch.setattr(training_folder, "replacing", lambda path: contextlib.nullcontext(Path("/dev/full")))
    with pytest.raises(OSError, match="No space left") as raised:
        run.save(1, {"layer": torch.nn.Linear(300, 300)})
    assert message_of(raised.value).startswith(f"{tmp_path}/run/state.pt: the disk is full; make room")
