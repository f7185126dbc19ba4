"""The loop of all stages: where its time ends, its state is saved."""

import numpy as np
import pytest
import torch

from train_iqa.nano.optimizers import SplitOptimizer, WeightAverage
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


def taken_by(folder, monkeypatch, *, kill_at=None):
    """Run a stage of ten steps, each of a tenth of its time; return its draws, rates, weights and layer."""
    draws, rates, weights = [], [], []

    def attempt():
        torch.manual_seed(0)
        layer = torch.nn.Linear(1, 1)
        optimizer = SplitOptimizer(list(layer.named_parameters()), weight_decay=0.0)
        take = optimizer.step

        def step(rng: np.random.Generator) -> dict[str, float]:
            if len(draws) == kill_at and not killed:
                killed.append(kill_at)
                raise KeyboardInterrupt
            draws.append(rng.random())
            loss = layer(torch.full((1, 1), 1 + draws[-1])).square().sum()
            loss.backward()
            return {"loss": float(loss.detach())}

        def noted(rate: float) -> torch.Tensor:
            rates.append(rate)
            norm = take(rate)
            weights.append(layer.weight.item())
            return norm

        monkeypatch.setattr(optimizer, "step", noted)
        stage = TrainingStage(
            name="tiny", seconds=10.0, step=step, parts={"layer": layer}, optimizers={"all": (optimizer, 0.5)},
            average=WeightAverage(layer.parameters()), floor=0.2, warmup=4, seed=3,
        )  # fmt: skip
        return run_stage(stage, folder, NothingNew(), None, save_every_s=0.0), layer

    killed: list[int] = []
    monkeypatch.setattr(TimeBudget, "spent", property(lambda clock: float(len(draws))))
    if kill_at is not None:
        with pytest.raises(KeyboardInterrupt):
            attempt()
    steps, layer = attempt()
    assert steps == 10
    return draws, rates, weights, layer


def test_a_stage_warms_up_decays_draws_anew_and_ends_at_the_average(tmp_path, monkeypatch):
    draws, rates, weights, layer = taken_by(tmp_path, monkeypatch)
    assert draws == [np.random.default_rng([3, step]).random() for step in range(10)]
    cosines = [0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * (step + 1) / 10)) for step in range(10)]
    warm = [0.25, 0.5, 0.75, *[1.0] * 7]
    assert rates == pytest.approx([0.5 * one * other for one, other in zip(warm, cosines, strict=True)])
    mean = weights[6]  # seven tenths of the time are over
    for weight in weights[7:]:
        mean += 0.03 * (weight - mean)
    assert layer.weight.item() == pytest.approx(mean, abs=1e-6)
    assert abs(mean - weights[-1]) > 1e-3


@pytest.mark.parametrize("kill_at", [5, 9])
def test_a_killed_stage_goes_on_with_the_same_steps(tmp_path, monkeypatch, kill_at):
    """Optimizer and average included; the ninth step is behind the beginning of the average."""
    *whole, layer = taken_by(tmp_path / "whole", monkeypatch)
    *parts, again = taken_by(tmp_path / "parts", monkeypatch, kill_at=kill_at)
    assert parts == whole
    assert torch.equal(again.weight, layer.weight)
