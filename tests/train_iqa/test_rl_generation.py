"""A generation batch: each image has its own rewards, each token its own advantage, each step its own samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_rl_trainer import LORA, config, dataset, generation, trainer_of  # noqa: F401 - `dataset` is a fixture

from train_iqa import grpo
from train_iqa.grpo import Trainer
from train_iqa.rl.coverage import KlConfig, coverage_mask
from train_iqa.rl.rewards import RewardConfig, all_rewards, format_reward
from train_iqa.training.learner import make_accelerator


def scripted(dataset, monkeypatch):  # noqa: F811
    """Let rollouts answer with ratings that are drawn here, and return what they were asked."""
    _, made, _ = generation(dataset.images, LORA)
    readable = next(k for group in made.groups for k in group if k.assessment.valid)
    unreadable = replace(readable, assessment=replace(readable.assessment, rating=float("nan"), valid=False))
    turn = replace(readable.assessment.turns[0], text="Fine. " + readable.assessment.turns[0].text)
    formless = replace(readable, assessment=replace(readable.assessment, turns=(turn,)))
    rng, calls = np.random.default_rng(0), []

    def roll_out(checkpoint, images, *, num_samples, sampling, draw):
        calls.append((sampling, images))
        groups = [
            [replace(readable, assessment=replace(readable.assessment, rating=float(rng.uniform(1, 5))))
             for _ in range(num_samples)] for _ in images
        ]  # fmt: skip
        groups[0][:2] = [unreadable, formless]
        return groups

    monkeypatch.setattr(grpo, "roll_out", roll_out)
    return calls


@pytest.mark.integration
def test_rewards_are_those_of_an_images_own_ratings_and_opinion_score(dataset, tmp_path, monkeypatch):  # noqa: F811
    weights = RewardConfig(format=0.5, threshold=2.0, rank=1.5)
    options = {"images_per_step": 8, "images_per_rollout": 4, "num_samples": 3, "rewards": weights}
    trainer = trainer_of(config(tmp_path, **options), dataset)
    scripted(dataset, monkeypatch)
    made = trainer.generate(0)
    mos = [image.mos for image in made.images]
    assert mos != sorted(mos)
    ratings = torch.tensor([[k.assessment.rating for k in group] for group in made.groups])
    forms = [[format_reward(trainer.checkpoint.protocol, k.assessment) for k in group] for group in made.groups]
    wanted = all_rewards(ratings, torch.tensor(forms), torch.tensor(mos), weights)
    assert set(made.rewards) == set(wanted) == {"format", "gaussian", "threshold", "rank", "total"}
    assert 0 < wanted["format"].sum() < (~ratings.isnan()).sum()
    for name, values in wanted.items():
        assert torch.equal(made.rewards[name], values), name
    total = wanted["total"]
    centred = (total - total.mean(dim=1, keepdim=True)) / total.std(dim=1, keepdim=True)
    torch.testing.assert_close(made.advantages, centred, rtol=1e-4, atol=1e-4)
    for image, pixels in zip(made.images, made.pixels, strict=True):
        assert torch.equal(pixels, grpo.load_image(image.path))


def test_every_step_seed_and_rollout_has_samples_of_its_own(dataset, tmp_path, monkeypatch):  # noqa: F811
    calls = scripted(dataset, monkeypatch)
    for seed in (0, 1):
        trainer = trainer_of(config(tmp_path, seed=seed, images_per_rollout=1, temperature=0.7), dataset)
        for step in (0, 1):
            trainer.generate(step)
    assert len({sampling.seed for sampling, _ in calls}) == len(calls) == 8
    assert {(sampling.temperature, sampling.top_p, sampling.top_k) for sampling, _ in calls} == {(0.7, 1.0, 0)}


def test_a_step_draws_from_one_data_set_and_each_has_its_share_of_steps(dataset, tmp_path):  # noqa: F811
    other = tuple(replace(image, dataset="other") for image in dataset.images[:4])
    trainer = Trainer(config(tmp_path, steps=6), [dataset.images, other], make_accelerator(config(tmp_path).model))
    names = [{image.dataset for image in trainer.draw(step)} for step in range(6)]
    assert sorted(map(len, names)) == [1] * 6
    assert sum(name == {"other"} for name in names) == 2  # 4 of 12 images, so a third


@pytest.mark.integration
def test_tokens_are_priced_at_the_temperature_at_which_they_were_drawn(dataset, tmp_path):  # noqa: F811
    trainer = trainer_of(config(tmp_path, temperature=0.6, max_new_tokens=6, num_samples=2), dataset)
    made = trainer.generate(0)
    old, _ = trainer.logprobs_and_entropies(trainer.model, made.rows)
    for recomputed, sampled in zip(old, made.sampled, strict=True):
        assert torch.allclose(recomputed, sampled, atol=1e-4)
    made.old = old
    trainer.hold(made, 0)
    seen = {"ratio_off": 0.0, "clipped": 0.0}
    trainer.part_loss(made, [0, 1], 1.0, seen)
    assert seen["ratio_off"] < 1e-4


@pytest.mark.parametrize("quadrant", ["high", "all"])
def test_the_mask_is_made_of_each_tokens_own_advantage(dataset, monkeypatch, quadrant):  # noqa: F811
    trainer, plain, _ = generation(dataset.images, LORA)
    kl = KlConfig(share=0.1, quadrant=quadrant, reference="old", clip_cov=True)
    monkeypatch.setattr(trainer, "config", replace(trainer.config, kl=kl))
    monkeypatch.setattr(trainer, "reference", None)
    generator = torch.Generator().manual_seed(0)
    old = [4 * torch.rand(values.shape, generator=generator) - 4 for values in plain.old]
    made = replace(plain, old=old, row_advantages=torch.randn(len(old), generator=generator))
    values = trainer.hold(made, 0)
    advantages = [float(made.row_advantages[k]) for k, row in enumerate(old) for _ in row]
    wanted = coverage_mask(torch.cat(old), torch.tensor(advantages), share=0.1, quadrant=quadrant)
    assert [len(row) for row in made.held] == [len(row) for row in old]
    assert torch.equal(torch.cat(made.held), wanted)
    assert values["held_tokens"] == int(wanted.sum()) > 0
    covariances = (torch.cat(old) - torch.cat(old).mean()) * (torch.tensor(advantages) - np.mean(advantages))
    assert values["covariance"] == pytest.approx(float(covariances.mean()), abs=1e-5)
    dropped = covariances[torch.cat(made.dropped)]
    assert len(dropped) == 1
    assert 1 < float(dropped) < 5


def test_an_update_clips_and_decays_as_configured(dataset, tmp_path, monkeypatch):  # noqa: F811
    trainer = trainer_of(config(tmp_path, max_grad_norm=1e-3, weight_decay=0.03), dataset)
    _, made, _ = generation(dataset.images, LORA)
    norms = []

    def note(*_):
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    monkeypatch.setattr(trainer.optimizer.optimizer, "step", note)
    assert trainer.update(made, 1e-3)["grad_norm"] > 0.01
    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.03


def test_the_log_says_how_far_sampler_and_trainer_are_apart(dataset, monkeypatch):  # noqa: F811
    trainer, plain, held = generation(dataset.images, LORA)
    made = replace(plain, sampled=[old + 0.25 for old in plain.old])
    entropies = [torch.full_like(old, 0.5) for old in plain.old]
    monkeypatch.setattr(trainer, "generate", lambda step: made)
    monkeypatch.setattr(trainer, "logprobs_and_entropies", lambda model, rows: (plain.old, entropies))
    monkeypatch.setattr(trainer, "hold", lambda made, step: held)
    monkeypatch.setattr(trainer, "update", lambda made, rate: {})
    _, values = trainer.step(0)
    assert values["mismatch"] == pytest.approx(0.25, abs=1e-5)
    assert values["entropy"] == pytest.approx(0.5)
