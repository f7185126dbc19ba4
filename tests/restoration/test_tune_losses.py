"""One whole update of each algorithm against a sum that is written out here: its value and its gradient.

The formulas have tests of their own (`test_tune_math.py`); here it is what goes into them. The network is one linear
layer (`toy_denoiser.py`), so every sum below is a few matrix products.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from toy_denoiser import BOTH, loudness, said, toy_tuning, weight_parts

from restoration.tuning.algorithms import nft
from restoration.tuning.algorithms.dpo import DPO
from restoration.tuning.algorithms.grpo import GRPO
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.reward_gradient import RewardGradient
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.algorithms.supervised import Supervised
from restoration.tuning.context import Collected, LossTerm, Part
from restoration.tuning.lora import OLD, POLICY, reference, tuners
from restoration.tuning.sampler.rollout import draw_candidates, draw_piece
from restoration.tuning.sampler.transitions import transition
from restoration.tuning.updates import Updates
from zoomiqa_reward.rewards.metric import MetricReward

ROUND = 3


def rows(level):
    return level.reshape(-1, 1, 1, 1)


def mean(x):
    return x.flatten(1).mean(dim=1)


def image_of(x0):
    """As a PNG would hold it; the slope is that of no rounding."""
    plain = 0.5 + 0.1 * x0
    return plain + ((255 * plain.clamp(0, 1)).round() / 255 - plain).detach()


def scores_of(x0):
    return mean(image_of(x0).square())


def noised(tuning, x0, generator, temperature=None):
    """(times, alphas, sigmas, noise, x_t, the target v) of a loss's own draw: levels first, then the noise."""
    times, alphas, sigmas = tuning.denoiser.schedule.draw(len(x0), generator)
    noise = (temperature or tuning.config.temperature) * torch.randn(x0.shape, generator=generator)
    x_t = rows(alphas) * x0 + rows(sigmas) * noise
    return times, alphas, sigmas, noise, x_t, rows(alphas) * noise - rows(sigmas) * x0


def truth_of(tuning, example):
    """The ground truth's residual, sharpened as the settings say: an unsharp mask of 1.6 px."""
    plane = torch.from_numpy(np.stack([gaussian_filter(one, 1.6, mode="mirror") for one in example.hr.numpy()]))
    return 10 * ((example.hr + tuning.config.truth_sharpness * (example.hr - plane)).clamp(0, 1) - 0.5)


def truth_error(tuning, example, count, generator, parts):
    """The denoising error of the ground truth at `count` times, under full noise."""
    torch.randint(2**62, (count,), generator=generator)
    x0 = truth_of(tuning, example).expand(count, -1, -1, -1)
    times, _, _, _, x_t, target = noised(tuning, x0, generator, temperature=1.0)
    return mean((said(tuning.denoiser, x_t, times, example.lq, parts) - target).square()).mean()


def sampled_truth_error(tuning, example, count, generator, parts):
    """The error of x0 as it is predicted at states of the sampler's own, before one random step of 4."""
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    step = int(torch.randint(4, (), generator=generator))
    path, own = tuning.path, [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = [torch.stack([torch.randn(3, 4, 4, generator=one) for one in own]) for _ in range(step + 1)]
    x = tuning.config.temperature * noise[0]
    with torch.no_grad():
        for k in range(step):
            output = said(tuning.denoiser, x, path.times[k], example.lq, parts)
            x = transition(path, k, output, x, eta=tuning.config.eta, noise=noise[k + 1]).sample
    alpha, sigma = path.alphas[step], path.sigmas[step]
    predicted = alpha * x - sigma * said(tuning.denoiser, x, path.times[step], example.lq, parts)
    return (predicted - truth_of(tuning, example)).square().mean()


def assert_update_is(tuning, collected, term_of):
    """Take the one update of a round, and compare loss and gradient with `term_of(part, generator, weights)`.

    That gives a part's loss as a mean over rows, and the rows; an update is the mean over all rows.
    """
    parts, total, count = weight_parts(tuning.denoiser), 0.0, 0
    for k, part in enumerate(collected.parts):
        value, number = term_of(part, torch.Generator().manual_seed(tuning.seed(9, ROUND, 0, k)), parts)
        total, count = total + value * number, count + number
    wanted = torch.autograd.grad(total / count, parts)
    updates = Updates(tuning)
    found, steps = updates.take(collected, ROUND)
    assert steps == 1
    assert found["loss"] == pytest.approx(float((total / count).detach()), rel=1e-4)
    for weight, gradient in zip(updates.weights, wanted, strict=True):  # named in this order: A, B
        assert float(gradient.abs().max()) > 1e-6
        assert torch.allclose(weight.grad, gradient, rtol=1e-3, atol=1e-6 * float(gradient.abs().max()) + 1e-8)
    return found


@pytest.mark.parametrize(
    ("truth_weight", "truth_states", "sharpness"),
    [(0.0, "noisy", 0.0), (0.7, "noisy", 0.0), (0.7, "noisy", 0.5), (0.7, "sampled", 0.0), (0.7, "sampled", 0.5)],
)
def test_sft_denoises_the_best_of_each_group(tmp_path, truth_weight, truth_states, sharpness):
    truths = {"truth_weight": truth_weight, "truth_states": truth_states, "truth_sharpness": sharpness}
    tuning = toy_tuning(tmp_path, **truths, temperature=0.6)
    algorithm = SFT(top=2)
    collected = algorithm.collect(tuning, ROUND)
    assert len(collected.parts) == 2

    def term(part, generator, parts):
        piece = part.loss.args[1]
        best = scores_of(piece.trajectory.x0).argsort(descending=True)[:2].sort().values
        times, _, _, _, x_t, target = noised(tuning, piece.trajectory.x0[best], generator)
        value = mean((said(tuning.denoiser, x_t, times, part.example.lq, parts) - target).square()).mean()
        if truth_weight:
            error = truth_error if truth_states == "noisy" else sampled_truth_error
            value = value + truth_weight * error(tuning, part.example, 2, generator, parts)
        return value, 2

    assert_update_is(tuning, collected, term)


@pytest.mark.parametrize("number", [0, 1, ROUND])
def test_supervised_learns_the_truth_where_its_own_sampler_comes_to(tmp_path, number):
    tuning, algorithm = toy_tuning(tmp_path, truth_states="sampled", temperature=0.6), Supervised()
    algorithm.prepare(tuning)
    collected = algorithm.collect(tuning, number)
    assert len(collected.parts) == 2

    def term(part, generator, parts):
        return sampled_truth_error(tuning, part.example, 4, generator, parts), 4

    assert_update_is(tuning, collected, term)


def test_supervised_needs_truths_and_no_second_loss_of_them(tmp_path):
    with pytest.raises(ValueError, match=r"truth_weight=0\.5 adds to another algorithm"):
        Supervised().prepare(toy_tuning(tmp_path, truth_weight=0.5))
    tuning = toy_tuning(tmp_path)
    blind = replace(tuning, examples=[replace(tuning.examples[0], hr=None)])
    with pytest.raises(ValueError, match="0 has no ground truth, and supervised learns from nothing else"):
        Supervised().prepare(blind)
    with pytest.raises(ValueError, match="truth_states='own': must be one of noisy, sampled"):
        toy_tuning(tmp_path, truth_states="own")
    with pytest.raises(ValueError, match=r"truth_sharpness=1\.5: must be 0 to 1"):
        toy_tuning(tmp_path, truth_sharpness=1.5)


def test_the_log_holds_the_losses_where_a_round_has_fewer_parts_than_updates(tmp_path):
    tuning = toy_tuning(tmp_path, updates_per_round=5)
    found, steps = Updates(tuning).take(Supervised().collect(tuning, ROUND), ROUND)
    assert steps == 2
    assert found["loss"] == pytest.approx(found["truth"])
    assert found["gradient_norm"] > 0


def test_nft_pulls_both_implicit_policies_and_holds_the_trained_one_to_the_base(tmp_path):
    tuning = toy_tuning(tmp_path, BOTH, temperature=0.8)
    algorithm, old = NFT(beta=0.5, advantage_clip=1.5, kl=0.3), weight_parts(tuning.denoiser, OLD)
    collected = algorithm.collect(tuning, ROUND)

    def term(part, generator, parts):
        piece, lq = part.loss.args[1], part.example.lq
        x0 = piece.trajectory.x0
        scores = scores_of(x0)
        advantage = ((scores - scores.mean()) / scores.std(correction=0)).clamp(-1.5, 1.5)
        share = (advantage / 1.5 / 2 + 0.5).detach()
        times, alphas, sigmas, _, x_t, _ = noised(tuning, x0, generator)
        now = said(tuning.denoiser, x_t, times, lq, parts)
        then = said(tuning.denoiser, x_t, times, lq, old).detach()
        base = said(tuning.denoiser, x_t, times, lq).detach()
        errors = []
        for sign in (1, -1):
            output = then + sign * 0.5 * (now - then)  # (1 -+ beta) old +- beta now
            off = rows(alphas) * x_t - rows(sigmas) * output - x0
            errors.append(mean(off.square()) / mean(off.abs()).detach())
        loss = 1.5 * (share * errors[0] + (1 - share) * errors[1]) / 0.5 + 0.3 * mean((now - base).square())
        return loss.mean(), 4

    found = assert_update_is(tuning, collected, term)
    assert found["kl"] > 1e-3


def test_nft_draws_with_old_which_follows_the_trained_policy(tmp_path, monkeypatch):
    tuning, active = toy_tuning(tmp_path, BOTH), []

    def draw(tuning, *args, **options):
        active.append(tuners(tuning.denoiser.module)[0].active_adapters)
        return draw_candidates(tuning, *args, **options)

    monkeypatch.setattr(nft, "draw_candidates", draw)
    NFT().collect(tuning, ROUND)
    assert active == [[OLD]]
    trained, then = (weight_parts(tuning.denoiser, name) for name in (POLICY, OLD))
    NFT().after_round(tuning, 200)
    for before, after, goal in zip(then, weight_parts(tuning.denoiser, OLD), trained, strict=True):
        assert torch.allclose(after, 0.2 * before + 0.8 * goal, atol=1e-6)


@pytest.mark.parametrize("truth_weight", [0.0, 0.4])
def test_dpo_compares_both_sides_at_one_time_and_noise_by_their_weights(tmp_path, truth_weight):
    tuning = toy_tuning(tmp_path, count=3, num_samples=4, truth_weight=truth_weight)
    algorithm = DPO(beta=2.0, share=0.5, pairs_per_image=3, winner_weight=0.3)
    algorithm.prepare(tuning)
    algorithm.begin(tuning)
    collected = algorithm.collect(tuning, ROUND)
    weights = [pair.weight for part in collected.parts for pair in part.loss.args[2]]
    assert max(weights) > 1.05 * min(weights)

    def drawn(example, seeds):
        with reference(tuning.denoiser.module):
            return torch.cat([draw_piece(tuning, example, [seed]).trajectory.x0 for seed in seeds])

    def term(part, generator, parts):
        pairs, lq = part.loss.args[2], part.example.lq
        sides = [drawn(part.example, [getattr(one, name) for one in pairs]) for name in ("seed_winner", "seed_loser")]
        assert bool((scores_of(sides[0]) > scores_of(sides[1])).all())
        torch.randint(2**62, (len(pairs),), generator=generator)  # seeds of the condition, of which this has no use
        noise = torch.randn(sides[0].shape, generator=generator)
        times, alphas, sigmas = tuning.denoiser.schedule.draw(len(pairs), generator)
        now, base = [], []
        for x0 in sides:
            x_t, target = rows(alphas) * x0 + rows(sigmas) * noise, rows(alphas) * noise - rows(sigmas) * x0
            now.append(mean((said(tuning.denoiser, x_t, times, lq, parts) - target).square()))
            base.append(mean((said(tuning.denoiser, x_t, times, lq) - target).square()).detach())
        inside = -2.0 / 2 * ((now[0] - base[0]) - (now[1] - base[1]))
        loss = torch.tensor([one.weight for one in pairs]) * torch.log1p(torch.exp(-inside)) + 0.3 * now[0]
        value = loss.mean()
        if truth_weight:
            value = value + truth_weight * truth_error(tuning, part.example, len(pairs), generator, parts)
        return value, len(pairs)

    assert_update_is(tuning, collected, term)


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_grpo_clips_the_ratio_of_a_random_step_and_holds_its_mean_to_the_base(tmp_path, kl):
    """Without the KL too: late steps hardly move, so that there it outweighs the rest by far."""
    tuning = toy_tuning(tmp_path, num_samples=6, rows_at_once=6, eta=0.8)
    algorithm = GRPO(clip=0.02, kl=kl, loss_steps=2, advantage_clip=1.2)
    collected = algorithm.collect(tuning, ROUND)
    assert len(collected.parts) == 4  # two images, two steps
    tuning.denoiser.move(torch.Generator().manual_seed(8), size=0.05)  # as if updated since it drew: ratios leave 1
    path, clipped, kinds = tuning.path, [], set()

    def step(index, x, lq, parts):
        """DDIM, eq. 12 and 16: the mean of a step, and the deviation of its noise."""
        alpha, sigma, after, left = (
            float(level[index]) for level in (path.alphas, path.sigmas, path.next_alphas, path.next_sigmas)
        )
        v = said(tuning.denoiser, x, path.times[index], lq, parts)
        std = 0.8 * left / sigma * math.sqrt(1 - (alpha / after) ** 2)
        return after * (alpha * x - sigma * v) + math.sqrt(left**2 - std**2) * (alpha * v + sigma * x), std

    def term(part, generator, parts):
        piece, index = part.loss.args[1], part.loss.args[4]
        x, end = piece.trajectory.states[index], piece.trajectory.states[index + 1]
        scores = scores_of(piece.trajectory.x0)
        advantage = ((scores - scores.mean()) / scores.std(correction=0)).clamp(-1.2, 1.2)
        now, std = step(index, x, part.example.lq, parts)
        base, _ = step(index, x, part.example.lq, None)
        density = mean(-((end - now) ** 2) / (2 * std**2)) - math.log(std) - 0.5 * math.log(2 * math.pi)
        ratio = torch.exp(density - piece.trajectory.log_probs[index])
        clipped.append((ratio - 1).abs() > 0.02)
        kinds.update(zip((ratio > 1.02).tolist(), (ratio < 0.98).tolist(), (advantage > 0).tolist(), strict=True))
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.98, 1.02) * advantage)
        return (kl * mean((now - base.detach()).square()) / (2 * std**2) - gain).mean(), 6

    found = assert_update_is(tuning, collected, term)
    assert 0 < torch.cat(clipped).float().mean() < 1
    assert found["clipped"] == pytest.approx(float(torch.cat(clipped).float().mean()))
    assert ("kl" in found) == (kl > 0)
    assert kinds >= {(True, False, True), (False, True, True), (False, True, False)}


@pytest.mark.parametrize("grad_steps", [1, 2])
def test_reward_gradient_goes_through_its_last_steps_and_minds_low_frequencies(tmp_path, grad_steps):
    tuning = toy_tuning(tmp_path, num_samples=3, steps=5, eta=0.7)
    algorithm = RewardGradient(last_share=0.6, grad_steps=grad_steps, tau=0.6, reward_weight=2.0, low_frequency=0.3)
    collected = algorithm.collect(tuning, ROUND)
    path = tuning.path

    def walk(x, first, stop, lq, generators, parts):
        """Take the steps `first` .. `stop` - 1; return x after them, and the last prediction of x0."""
        x0 = x
        for index in range(first, stop):
            alpha, sigma, after, left = (
                float(level[index]) for level in (path.alphas, path.sigmas, path.next_alphas, path.next_sigmas)
            )
            noise = torch.stack([torch.randn(x.shape[1:], generator=one) for one in generators])
            v = said(tuning.denoiser, x, path.times[index], lq, parts)
            std = 0.7 * left / sigma * math.sqrt(max(0.0, 1 - (alpha / after) ** 2))
            x0 = alpha * x - sigma * v
            x = after * x0 + math.sqrt(max(0.0, left**2 - std**2)) * (alpha * v + sigma * x) + std * noise
        return x, x0

    def start(generators):
        return torch.stack([torch.randn(3, 4, 4, generator=one) for one in generators])

    def term(part, generator, parts):
        lq, (example, number) = part.example.lq, part.loss.args[1:]
        assert example is part.example
        seeds = torch.randint(2**62, (number,), generator=generator).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        first = min(2 + int(torch.randint(3, (1,), generator=generator)), 5 - grad_steps)  # of the last 3 of 5 steps
        x, _ = walk(start(generators), 0, first, lq, generators, parts)
        _, x0 = walk(x.detach(), first, first + grad_steps, lq, generators, parts)
        loss = 2.0 * (0.6 - scores_of(x0)).clamp_min(0).mean()
        x, _ = walk(start(generators), 0, 1, lq, generators, parts)  # a quarter of 5 steps
        _, early = walk(x.detach(), 1, 2, lq, generators, parts)
        return loss + 0.3 * (0.5 + 0.1 * early - lq).square().mean(), number

    assert_update_is(tuning, collected, term)


def test_an_update_weighs_rows_alike_clips_above_0_and_not_at_0(tmp_path):
    """Parts of 1 and of 3 rows: the gradient of the mean over all 4."""
    leaf = {}

    def part(slope, count):
        def loss(generator):
            weight = leaf["weight"]
            return LossTerm((slope * weight).sum(), count, {"noted": slope})

        return Part(loss=loss, example=None)

    for limit, factor in ((0.0, 1.0), (0.1, None), (1e3, 1.0)):
        tuning = toy_tuning(tmp_path, max_grad_norm=limit, learning_rate=1e-2)
        updates = Updates(tuning)
        leaf["weight"] = updates.weights[0]
        before = updates.weights[0].detach().clone()
        found, _ = updates.take(Collected(parts=[part(1.0, 1), part(5.0, 3)]), ROUND)
        size = math.sqrt(before.numel()) * 4.0
        wanted = 4.0 if factor else 4.0 * limit / size
        assert torch.allclose(updates.weights[0].grad, torch.full_like(before, wanted), rtol=1e-4)
        assert found["gradient_norm"] == pytest.approx(size, rel=1e-4)
        assert found["noted"] == 4
        assert torch.allclose(updates.weights[0], before - 1e-2, atol=1e-4)  # AdamW's first step has this size
        assert torch.equal(updates.ema.averages[0], updates.weights[0].detach())


def test_rounds_epochs_and_parts_have_noise_levels_of_their_own(tmp_path):
    seeds = []

    def loss(generator):
        seeds.append(generator.initial_seed())
        return LossTerm(updates.weights[0].sum(), 1, {})

    updates = Updates(toy_tuning(tmp_path, epochs=2, learning_rate=1e-6))
    for number in (0, 1):
        updates.take(Collected(parts=[Part(loss=loss, example=None), Part(loss=loss, example=None)]), number)
    assert len(seeds) == len(set(seeds)) == 8  # 2 rounds, 2 epochs, 2 parts


def test_grpo_learns_from_other_steps_in_other_rounds(tmp_path):
    tuning = toy_tuning(tmp_path, eta=0.8)
    steps = [GRPO(loss_steps=1).collect(tuning, number).parts[0].loss.args[-1] for number in range(8)]
    assert len(set(steps)) > 1


class LosesOne(MetricReward):
    """Gives the first of the images a value of its own."""

    lost = math.nan

    def __call__(self, images, **inputs):
        scores = super().__call__(images, **inputs)
        return replace(scores, value=scores.value + torch.tensor([self.lost, *[0.0] * (len(scores) - 1)]))


@pytest.mark.parametrize("lost", [math.nan, -math.inf])
def test_reward_gradient_counts_the_rows_that_were_measured(tmp_path, lost):
    """Rows weigh a part in its update: what could not be measured must not, nor what is infinitely bad."""
    reward = LosesOne(loudness, "loudness", True, (-math.inf, 1), differentiable=True)
    reward.lost = lost
    tuning = replace(toy_tuning(tmp_path), reward=reward)
    term = RewardGradient()._loss(tuning, tuning.examples[0], 3, torch.Generator().manual_seed(0))
    assert (term.rows, term.asked.total, len(term.asked.failures), term.asked.empty) == (2, 3, 1, 0)
    assert math.isfinite(float(term.value.detach()))
    assert ("no gradient leads back" in term.asked.failures[0]) == (lost == -math.inf)
