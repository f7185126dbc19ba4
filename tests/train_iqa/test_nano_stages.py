"""The loop of all stages: where its time ends, its state is saved."""

import numpy as np
import pytest
import torch

from train_iqa.nano.optimizers import SplitOptimizer
from train_iqa.nano.stages import TrainingStage, run_stage
from zoomiqa_reward.runs.json_lines import append_line, read_lines
from zoomiqa_reward.runs.training_folder import TimeBudget


class NothingNew:
    """A store that is never filled."""

    def __init__(self):
        self.added = {"small": 0, "large": 0}

    def fill(self, workers, *, seconds):
        """Take nothing."""


def stage_of(layer: torch.nn.Linear, seconds: float) -> TrainingStage:
    def step(rng: np.random.Generator) -> dict[str, float]:
        loss = layer(torch.ones(1, 1)).square().sum()
        loss.backward()
        return {"loss": float(loss.detach())}

    optimizer = SplitOptimizer(list(layer.named_parameters()), weight_decay=0.0)
    return TrainingStage(
        name="tiny", seconds=seconds, step=step, parts={"layer": layer}, optimizers={"all": (optimizer, 1e-2)},
        average=None, floor=0.1, warmup=1,
    )  # fmt: skip


@pytest.mark.parametrize("seconds", [4.5, 5.5, 6.5, 7.5, 8.5])
def test_the_last_step_is_saved_wherever_the_time_ends(tmp_path, monkeypatch, seconds):
    """A second passes at each look at the clock, so the budget ends at every place of the loop once."""
    spent = iter(range(1000))
    monkeypatch.setattr(TimeBudget, "spent", property(lambda clock: float(next(spent))))
    layer = torch.nn.Linear(1, 1)
    steps = run_stage(stage_of(layer, seconds), tmp_path, NothingNew(), None, save_every_s=1e6)
    state = torch.load(tmp_path / "state.pt")
    assert state["step"] == steps > 0
    torch.testing.assert_close(state["layer"]["weight"], layer.weight.data, rtol=0, atol=0)
    monkeypatch.undo()
    rows = read_lines(tmp_path / "log.jsonl")
    append_line(tmp_path / "log.jsonl", {"step": steps + 1})  # a kill came between a row and its state
    again = torch.nn.Linear(1, 1)
    assert run_stage(stage_of(again, seconds), tmp_path, NothingNew(), None) == steps
    assert torch.equal(again.weight, layer.weight)
    assert read_lines(tmp_path / "log.jsonl") == rows
