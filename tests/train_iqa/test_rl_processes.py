"""Two processes of RL, as two threads that exchange what accelerate would, have the batch of one process."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from test_rl_trainer import LORA, config, dataset, generation, trainer_of  # noqa: F401 - `dataset` is a fixture

from train_iqa import grpo
from train_iqa.rl import objective
from train_iqa.rl.coverage import KlConfig
from train_iqa.rl.rewards import RewardConfig
from train_iqa.training import learner

KL = KlConfig(share=0.2, quadrant="all", reference="old", clip_cov=True)


class Exchange:
    """`gather_object` between threads; outside of them there is one process."""

    def __init__(self, processes):
        self.barrier = threading.Barrier(processes, timeout=60)
        self.rank = threading.local()
        self.brought = [None] * processes

    def gather(self, values):
        rank = getattr(self.rank, "value", None)
        if rank is None:
            return list(values)
        self.barrier.wait()
        self.brought[rank] = values
        self.barrier.wait()
        return [value for part in self.brought for value in part]


class ProcessView:
    """An accelerator that says it is one process of several."""

    def __init__(self, accelerator, rank, processes):
        self.accelerator, self.process_index, self.num_processes = accelerator, rank, processes

    def __getattr__(self, name):
        return getattr(self.accelerator, name)


def answers_by_image(made, monkeypatch):
    """Let rollouts answer by seed and place alone; some look closer, so that processes have unequally many rows."""
    zoomed = next(k for group in made.groups for k in group if k.assessment.valid and len(k.turns) == 2)
    seeds = []

    def trajectory(draws):
        size = 1 + float(torch.rand((), generator=draws))
        shown = zoomed.turns if size > 1.6 else zoomed.turns[:1]
        turns = tuple(replace(turn, logprobs=-size * torch.arange(len(turn.logprobs)) / 8) for turn in shown)
        return replace(zoomed, assessment=replace(zoomed.assessment, rating=1 + 2 * size), turns=turns)

    def roll_out(checkpoint, images, *, num_samples, sampling, draw):
        seeds.append(sampling.seed)
        draws = torch.Generator().manual_seed(sampling.seed)
        return [[trajectory(draws) for _ in range(num_samples)] for _ in images]

    monkeypatch.setattr(grpo, "roll_out", roll_out)
    return seeds


def batch_of(trainer):
    """The generation batch of a process, what it logs of the tokens that are held, and the sum of an update's loss."""
    made = trainer.generate(0)
    made.old = made.sampled
    held = trainer.hold(made, 0)
    trainer.part_loss = lambda made, group, total, noted: made.row_weights[group].sum() / total
    return made, held, trainer.update(made, 1e-3)["loss"]


@pytest.mark.integration
def test_two_processes_have_the_batch_of_one(dataset, tmp_path, monkeypatch):  # noqa: F811
    weights = RewardConfig(format=0.0, rank=1.0)
    options = {
        "images_per_step": 8,
        "images_per_rollout": 2,
        "num_samples": 3,
        "rewards": weights,
        "kl": KL,
        "micro_rows": 1,
    }
    trainer = trainer_of(config(tmp_path, **options), dataset)
    seeds = answers_by_image(generation(dataset.images, LORA)[1], monkeypatch)
    exchange = Exchange(2)
    for module in (grpo, learner, objective):
        monkeypatch.setattr(module, "gather_object", exchange.gather)
    monkeypatch.setattr(  # only the sum is looked at: the threads share one model
        grpo, "optimizer_step", lambda accelerator, model, optimizer, parts, **_: (sum(float(k()) for k in parts), 0.0)
    )

    def process(rank):
        exchange.rank.value = rank
        mine = copy.copy(trainer)
        mine.accelerator = ProcessView(trainer.accelerator, rank, 2)
        return batch_of(mine)

    whole, logged, loss = batch_of(copy.copy(trainer))
    drawn, expected = {image.id for image in whole.images}, sorted(seeds)
    seeds.clear()
    with ThreadPoolExecutor(2) as pool:
        (first, *logs), (second, *others) = pool.map(process, range(2))
    assert loss == pytest.approx(1.0)
    assert logs == others == [pytest.approx(logged, nan_ok=True), pytest.approx(1.0)]
    assert [image.id for image in (*first.images, *second.images)] == [image.id for image in whole.images]
    assert len(drawn) == 8
    assert sorted(seeds) == expected
    assert len(first.rows) != len(second.rows)
    for name, values in whole.rewards.items():
        assert torch.equal(torch.cat([first.rewards[name], second.rewards[name]]), values), name
    assert whole.rewards["rank"].std() > 0
    for name in ("held", "dropped"):
        parts = [torch.cat(getattr(part, name)) for part in (first, second)]
        assert torch.equal(torch.cat(parts), torch.cat(getattr(whole, name))), name
        assert any(part.any() for part in parts)
