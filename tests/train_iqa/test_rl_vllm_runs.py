"""RL runs whose rollouts come from vLLM: against a stand-in, and by vLLM itself where it is there."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scripted_vllm import LORA, SHORT, install, two_image_row
from test_rl_rollout import price, zooming_folder
from tiny import make_image

from train_iqa import grpo
from train_iqa.data import IqaDataset, LabelledImage, Scale
from train_iqa.grpo import Trainer
from train_iqa.rl.config import GrpoConfig
from train_iqa.rl.coverage import KlConfig
from train_iqa.rl.rewards import RewardConfig
from train_iqa.rl.vllm_rollout import VllmConfig
from train_iqa.rows.completions import TrainingRow
from train_iqa.training.learner import ModelConfig, make_accelerator
from train_iqa.training.run_state import read_log
from zoomiqa_reward.images import save_png
from zoomiqa_reward.model.checkpoint import load_checkpoint

pytestmark = pytest.mark.integration


@pytest.fixture
def dataset(tmp_path):
    paths = [save_png(make_image(k % 2, 56, 56 + 28 * (k % 2)), tmp_path / f"{k}.png") for k in range(4)]
    images = [
        LabelledImage(dataset="d", id=path.name, path=path, mos=1.2 + k, std=math.nan, label=k, split="training")
        for k, path in enumerate(paths)
    ]
    return IqaDataset(name="d", family="csv", root=tmp_path, scale=Scale(worst=1, best=5), images=tuple(images))


def config(out, name, **options):
    fields = {
        "model": ModelConfig(name=name, device="cpu"), "tuning": LORA, "out": out, "steps": 2, "images_per_step": 2,
        "images_per_rollout": 2, "num_samples": 3, "max_new_tokens": 110, "micro_rows": 4, "learning_rate": 1e-2,
        "warmup_steps": 0, "rewards": RewardConfig(rank=0.0), "page_every": 0, "tensorboard": False,
        "kl": KlConfig(share=0.05), "sampler": "vllm", "vllm": VllmConfig(enforce_eager=True),
    }  # fmt: skip
    return GrpoConfig(**(fields | options))


def test_a_run_hands_its_weights_over_before_every_step(dataset, tmp_path, monkeypatch):
    install(monkeypatch)
    engines = []
    real = Trainer.__init__

    def watched(trainer, *args):
        real(trainer, *args)
        engines.append(trainer.engine._llm)

    monkeypatch.setattr(Trainer, "__init__", watched)
    name = str(zooming_folder())
    grpo.train(config(tmp_path / "run", name), [dataset])
    (llm,) = engines
    first, second = llm.weights
    start = load_checkpoint(name, device="cpu").model.state_dict()
    assert all(torch.equal(first[key], start[key]) for key in start)
    moved = [key for key in start if not torch.allclose(second[key], start[key], atol=1e-6)]
    assert moved
    assert all("_proj" in key for key in moved)
    log = read_log(tmp_path / "run")
    assert [row["step"] for row in log] == [1, 2]
    assert log[0]["grad_norm"] > 0
    assert 0 < log[0]["zooms"] <= 1
    assert all(row["mismatch"] < 1e-4 and row["ratio_off"] < 1e-4 for row in log)


def test_the_sampler_is_checked_and_part_of_what_a_run_is(dataset, tmp_path):
    name = str(zooming_folder())
    for options in ({"sampler": "sglang", "vllm": None}, {"sampler": "transformers"}):
        with pytest.raises(ValueError, match="sampler"):
            config(tmp_path, name, **options)
    for options in ({"gpu_memory_utilization": 0.0}, {"dtype": "int8"}):
        with pytest.raises(ValueError, match="must be"):
            VllmConfig(**options)
    made = config(tmp_path / "run", name, sampler="transformers", vllm=None, steps=1, max_new_tokens=4)
    grpo.train(made, [dataset])
    with pytest.raises(ValueError, match="sampler was 'transformers', now 'vllm'"):
        grpo.train(replace(made, sampler="vllm"), [dataset])


@pytest.mark.filterwarnings("ignore")  # vLLM's own
def test_vllm_itself_samples_what_the_trainer_prices(dataset, tmp_path, nano, monkeypatch):
    """Two steps on the embedded model; the tiny ones' heads are too narrow for vLLM's kernels."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    module = pytest.importorskip("vllm", reason="pip install 'zoomiqa-reward[vllm]'")
    assert module.LLM
    made = config(
        tmp_path / "run", nano, max_new_tokens=300, num_samples=4, temperature=0.8,
        vllm=VllmConfig(enforce_eager=True, dtype="float32"),
    )  # fmt: skip
    trainer = Trainer(made, [dataset.images], make_accelerator(made.model))
    batch, values = trainer.step(0)
    assert values["mismatch"] < 1e-3
    assert values["grad_norm"] > 0
    assert len({tuple(row.completion_ids.tolist()) for row in batch.rows}) > 2
    old = [one.clone() for one in batch.old]
    batch, values = trainer.step(1)  # with the weights of after the update
    assert values["mismatch"] < 1e-3
    assert any(one.shape != two.shape or not torch.equal(one, two) for one, two in zip(old, batch.old, strict=False))
    trainer.engine.load(trainer.checkpoint.model)
    row = two_image_row(trainer.checkpoint)
    (drawn,) = trainer.engine(trainer.checkpoint, [row], replace(SHORT, max_new_tokens=40))
    answered = TrainingRow(prompt=row, completion_ids=drawn.ids, targets=torch.ones_like(drawn.ids, dtype=torch.bool))
    (again,) = price(trainer.checkpoint, [SimpleNamespace(row=answered)], SHORT.temperature)
    assert torch.allclose(again, drawn.logprobs, atol=1e-3)
    other = load_checkpoint(nano, device="cpu").model
    other.get_input_embeddings().weight.neg_()
    trainer.engine.load(other)
    with pytest.raises(RuntimeError, match="does not compute the same model"):
        trainer.engine(trainer.checkpoint, [batch.rows[0].prompt], SHORT)
