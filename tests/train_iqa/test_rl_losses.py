"""One whole update of RL and of SFT against a sum that is written out here token by token, and what leads up to it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_rl_trainer import LORA, config, dataset, generation, trainer_of  # noqa: F401 - `dataset` is a fixture
from test_sft import config as sft_config
from tiny import make_image, tiny_checkpoint

from train_iqa import grpo, sft
from train_iqa.rl.coverage import KlConfig
from train_iqa.rl.objective import mismatch_weight
from train_iqa.rl.resampling import ResamplingConfig
from train_iqa.rl.rewards import RewardConfig
from train_iqa.rows.completions import answer_logprobs, collate_completions, complete
from train_iqa.rows.conversations import read_conversations
from train_iqa.rows.turn_rows import DIRECT, build_row
from train_iqa.training.run_state import read_log
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.direct import trie_of
from zoomiqa_reward.model.turns import round1


def shaken(made, seed=0):
    """The generation as if policy, sampler and reference disagreed, some tokens were held and some dropped."""
    generator = torch.Generator().manual_seed(seed)

    def moved(rows, size):
        return [one + size * torch.randn(one.shape, generator=generator) for one in rows]

    def share(rows, part):
        return [torch.rand(one.shape, generator=generator) < part for one in rows]

    old = moved(made.old, 0.3)
    return replace(
        made, old=old, sampled=moved(old, 1.0), reference=moved(old, 0.4), held=share(old, 0.3), dropped=share(old, 0.2)
    )


def policy_logprobs(trainer, made, group):
    """Each row's own log-probabilities [tokens], from a batch of it alone."""
    found = []
    for k in group:
        batch = collate_completions(trainer.checkpoint, [made.rows[k]])
        logprobs, _ = answer_logprobs(trainer.model, batch, temperature=1.0, suppressed=trainer.suppressed)
        found.append(logprobs[0])
    return found


def loss_by_hand(trainer, made, group, logprobs):
    """The sum over rows of weight x the mean over tokens of what each token says."""
    kl, clip, cap = trainer.config.kl, trainer.config.clip, trainer.config.mismatch_cap
    total = 0.0
    for k, row in zip(group, logprobs, strict=True):
        tokens = []
        for t, logp in enumerate(row):
            advantage, old = float(made.row_advantages[k]), float(made.old[k][t])
            ratio = torch.exp(logp - old)
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
            trust = min(math.exp(old - float(made.sampled[k][t])), cap)
            token = 0.0 if made.dropped[k][t] else -gain * trust
            if kl.kind != "none" and made.held[k][t]:
                apart = made.reference[k][t] - logp
                estimate = torch.exp(apart) - apart - 1 if kl.reference == "initial" else (logp - old).abs()
                token = token + kl.beta * estimate
            tokens.append(token)
        total = total + float(made.row_weights[k]) * sum(tokens) / len(tokens)
    return total


@pytest.mark.integration
@pytest.mark.parametrize(
    "kl", [KlConfig(beta=0.7), KlConfig(kind="none"), KlConfig(beta=0.7, reference="old")],
    ids=["initial", "none", "old"],
)  # fmt: skip
def test_the_loss_of_an_update_is_its_sum_over_tokens(dataset, kl, monkeypatch):  # noqa: F811
    trainer, plain, _ = generation(dataset.images, LORA)
    monkeypatch.setattr(trainer, "config", replace(trainer.config, kl=kl, clip=0.25, mismatch_cap=1.5))
    made, group = shaken(plain), [0, 3, 5]
    assert len({len(made.old[k]) for k in group}) > 1  # some of the batch is padding
    assert {float(made.row_weights[k]) for k in range(len(made.rows))} == {0.5, 1.0}
    parameters = [one for one in trainer.model.parameters() if one.requires_grad]
    seen = {"ratio_off": 0.0, "clipped": 0.0}
    found = trainer.part_loss(made, group, 4.0, seen)
    wanted = loss_by_hand(trainer, made, group, policy_logprobs(trainer, made, group)) / 4.0
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert seen["clipped"] > 0
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, wanted)]
    largest = max(float(one.abs().max()) for one in gradients[1] if one is not None)
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-4 * largest)


def test_an_update_divides_the_sum_of_all_rows_by_their_weights(dataset, monkeypatch):  # noqa: F811
    trainer, plain, _ = generation(dataset.images, LORA)
    made, every = shaken(plain, 1), list(range(len(plain.rows)))
    parameters = [one for one in trainer.model.parameters() if one.requires_grad]
    wanted = loss_by_hand(trainer, made, every, policy_logprobs(trainer, made, every)) / float(made.row_weights.sum())
    norm = math.sqrt(sum(float(one.square().sum()) for one in torch.autograd.grad(wanted, parameters)))
    taken = []
    monkeypatch.setattr(trainer.optimizer.optimizer, "step", lambda *_: taken.append(1))  # the model stays as it is
    values = trainer.update(made, 1e-3)
    assert len(taken) == 1
    assert values["loss"] == pytest.approx(float(wanted.detach()), rel=1e-3)
    assert values["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert values["learning_rate"] == 1e-3


def test_progressive_resampling_runs_forwards(dataset, tmp_path, monkeypatch):  # noqa: F811
    """From every image alike to every level alike, over the run's steps, each with its own draw."""
    seen = []

    def draw(mos, count, settings, progress, rng):
        seen.append((progress, settings.alpha(progress), rng.random()))
        return np.arange(count)

    made = config(tmp_path, steps=5, images_per_step=8, rewards=RewardConfig(),
                  resampling=ResamplingConfig(start=0.1, end=0.9))  # fmt: skip
    trainer = trainer_of(made, dataset)
    monkeypatch.setattr(grpo, "draw_images", draw)
    for step in range(5):
        trainer.draw(step)
    assert [one[0] for one in seen] == [0, 0.25, 0.5, 0.75, 1]
    assert [one[1] for one in seen] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert len({one[2] for one in seen}) == 5


def test_the_rate_warms_up_and_stays(dataset, tmp_path, monkeypatch):  # noqa: F811
    trainer = trainer_of(config(tmp_path, steps=6, warmup_steps=4, learning_rate=1e-3), dataset)
    _, made, held = generation(dataset.images, LORA)
    rates = []
    monkeypatch.setattr(trainer, "generate", lambda step: made)
    monkeypatch.setattr(trainer, "logprobs_and_entropies", lambda model, rows: (made.old, made.old))
    monkeypatch.setattr(trainer, "hold", lambda made, step: held)
    monkeypatch.setattr(trainer, "update", lambda made, rate: rates.append(rate) or {})
    alphas = [trainer.step(step)[1]["alpha"] for step in range(6)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])
    assert alphas == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


@pytest.mark.integration
def test_sft_is_the_mean_over_the_tokens_that_are_learned(tmp_path):
    """Of a wordless row that is the rating alone, and not the prefix before it."""
    made = sft_config(tmp_path, steps=1, rows_per_step=6, direct_share=0.5, save_every=1, max_grad_norm=0.0)
    sft.train(made)
    checkpoint = load_checkpoint(tiny_checkpoint(), device="cpu")  # before the step a LoRA changes nothing
    plan, trie = sft._Plan(made, [read_conversations(made.data[0].path)], checkpoint), trie_of(checkpoint)
    kinds, total, count = [], 0.0, 0
    for group in plan.step(0, made.micro_rows):
        for planned in group:
            row = build_row(checkpoint, trie, planned.conversation, planned.kind)
            with torch.no_grad():
                found, _ = answer_logprobs(checkpoint.model, collate_completions(checkpoint, [row]))
            total -= sum(float(logp) for logp, learned in zip(found[0], row.targets, strict=True) if learned)
            count += int(row.targets.sum())
            kinds.append(planned.kind)
            assert (int(row.targets.sum()) < len(row.targets)) == (planned.kind == DIRECT)
    assert {DIRECT} < set(kinds)
    (row,) = read_log(tmp_path / "run")
    assert row["loss"] == pytest.approx(total / count, rel=1e-4)
    assert row["target_tokens"] == count
    assert row["grad_norm"] > 0


def test_the_importance_weight_is_a_constant():
    old = torch.zeros(2, requires_grad=True)
    assert not mismatch_weight(old, torch.zeros(2), 2.0).requires_grad


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_is_never_sampled_has_no_share_of_the_probability(temperature):
    """By hand: the distribution at the temperature, without the suppressed tokens, over what is left."""
    checkpoint = load_checkpoint(tiny_checkpoint(), device="cpu")
    row = complete(checkpoint, round1(checkpoint.protocol, make_image(0, 56, 84)), "Soft.")
    batch = collate_completions(checkpoint, [row])
    logits = checkpoint.model(**batch.inputs).logits[0, -len(row.completion_ids) - 1 : -1] / temperature
    likely = [int(token) for token in logits.mean(0).topk(8).indices if token not in row.completion_ids]
    found, spread = answer_logprobs(checkpoint.model, batch, temperature=temperature, suppressed=likely, entropy=True)
    odds = logits.exp()
    odds[:, likely] = 0
    shares = odds / odds.sum(1, keepdim=True)
    wanted = shares.gather(1, row.completion_ids[:, None])[:, 0].log()
    torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(spread[0], -torch.xlogy(shares, shares).sum(1), rtol=1e-4, atol=1e-4)
