"""One loop for all stages: seconds instead of steps, fresh images between steps, state and log in the run folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from train_iqa.nano.optimizers import SplitOptimizer, WeightAverage, cosine
from train_iqa.nano.store import BatchSource, Store
from zoomiqa_reward.runs.json_lines import trim_lines
from zoomiqa_reward.runs.training_folder import RunFolder, RunningMeans, TimeBudget

WARMUP_STEPS = 80
SAVE_EVERY_S = 60.0
AVERAGE_FROM = 0.7
"""Progress from which weights are averaged."""
FILL_S = 0.004
"""Seconds that a step waits for fresh images; it never waits longer."""
FILL_SHARE = 0.12
"""Of a stage's time, the most that labelling of fresh images may take: on a CPU a batch costs as much as a step."""


@dataclass(frozen=True, kw_only=True)
class TrainingStage:
    """One stage of a run."""

    name: str
    seconds: float
    step: Callable[[np.random.Generator], dict[str, float]]
    """Accumulates the gradients of one step and returns its losses."""
    optimizers: dict[str, tuple[SplitOptimizer, float]]
    """Name -> optimizer and its peak learning rate."""
    parts: dict[str, Any]
    """Modules whose state belongs to the run."""
    average: WeightAverage | None = None
    floor: float = 0.02
    """Learning rate at the end, of the peak."""
    seed: int = 0
    warmup: int = WARMUP_STEPS
    held: Sequence[nn.Parameter] = ()
    """Parameters that need no gradient from this stage on."""


def run_stage(
    stage: TrainingStage, folder: Path, store: Store, workers: BatchSource, *, save_every_s: float = SAVE_EVERY_S
) -> int:
    """Run what is left of a stage, and return its steps in all.

    Stopped at any moment it loses at most the time since the last save; a step's draws depend on the seed, the step
    and what the store holds, which is drawn anew after a stop.
    """
    run, clock, running = RunFolder(folder), TimeBudget(stage.seconds), RunningMeans()
    for parameter in stage.held:
        parameter.requires_grad_(False)
    parts = stage.parts | {f"optimizer_{name}": optimizer for name, (optimizer, _) in stage.optimizers.items()}
    parts |= {"clock": clock, "running": running} | ({"average": stage.average} if stage.average else {})
    step = run.load(parts)
    trim_lines(run.folder / "log.jsonl", "step", step)  # a kill may come between a row and its state
    clock.start()
    saved_at = started_at = time.monotonic()
    filling, over = 0.0, clock.progress >= 1
    while not over:
        began = time.monotonic()
        if filling <= FILL_SHARE * (began - started_at):
            store.fill(workers, seconds=FILL_S)
            filling += time.monotonic() - began
        losses = stage.step(np.random.default_rng([stage.seed, step]))
        factor = min(1.0, (step + 1) / stage.warmup) * cosine(clock.progress, stage.floor)
        for optimizer, peak in stage.optimizers.values():
            optimizer.step(peak * factor)
        running.update(losses)
        step += 1
        if stage.average is not None and clock.progress >= AVERAGE_FROM:
            stage.average.update()
        over = clock.progress >= 1  # asked once per step: time goes on between two questions
        if over or time.monotonic() - saved_at > save_every_s:
            saved_at = time.monotonic()
            held = {"crops": store.added["small"], "whole": store.added["large"]}
            run.log({"step": step, "seconds": clock.spent, **held, **running.means})
            run.save(step, parts)
    if stage.average is not None:
        stage.average.apply()
    return step
