"""The formulas of tuning against numbers derived by hand, closed forms and diffusers' own schedulers."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from restoration.tuning.algorithms.dpo import DPO, dpo_loss
from restoration.tuning.algorithms.groups import TooManyFailures, group_advantages
from restoration.tuning.algorithms.grpo import grpo_loss, step_kl
from restoration.tuning.algorithms.nft import implicit_policies, nft_loss, old_decay, scaled_error
from restoration.tuning.algorithms.pairs import mine_pairs, read_pairs, weigh_pairs, write_pairs
from restoration.tuning.lora import EMA
from restoration.tuning.monitor.signals import diversity, fine_energy, gram_distance, grid_peak
from restoration.tuning.sampler.denoising import random_noise
from restoration.tuning.sampler.parametrisation import KINDS, noisy, target, to_noise, to_x0
from restoration.tuning.sampler.transitions import Schedule, step_std, transition
from zoomiqa_reward.model.pairs import pair_probabilities
from zoomiqa_reward.model.ratings import Scores


def scheduler_of(kind, **options):
    if kind == "flow":
        return FlowMatchEulerDiscreteScheduler(shift=3.0, **options)
    return DDIMScheduler(
        clip_sample=False, prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[kind], **options
    )


def levels_of(kind):
    sigma = torch.tensor([0.6, 0.8])
    return (1 - sigma, sigma) if kind == "flow" else ((1 - sigma**2).sqrt(), sigma)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_output_gives_back_signal_and_noise(kind):
    alpha, sigma = levels_of(kind)
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    x_t, output = noisy(x0, noise, alpha, sigma), target(kind, x0, noise, alpha, sigma)
    assert torch.allclose(to_x0(kind, output, x_t, alpha, sigma), x0, atol=1e-5)
    assert torch.allclose(to_noise(kind, output, x_t, alpha, sigma), noise, atol=1e-5)


def test_images_of_a_tempered_sampler_teach_the_model_that_drew_them_only_under_tempered_noise():
    """Signals N(0, s^2), s = 0.5, alpha = 0.6, sigma = 0.8: the best x0 from x_t is c x_t with
    c = alpha s^2 / (alpha^2 s^2 + sigma^2) = 0.15 / 0.73 = 0.2055. A sampler of temperature 0.5 draws N(0, 0.25^2).
    Least squares on those with noise of 0.5 has that c; with full noise 0.6 * 0.0625 / (0.36 * 0.0625 + 0.64) = 0.0566.
    """
    generator = torch.Generator().manual_seed(0)
    x0 = 0.25 * torch.randn(400_000, generator=generator)
    for temperature, wanted in ((0.5, 0.2055), (1.0, 0.0566)):
        x_t = 0.6 * x0 + 0.8 * random_noise(x0, generator, temperature)
        assert float((x0 * x_t).sum() / x_t.square().sum()) == pytest.approx(wanted, abs=3e-3)


def test_epsilon_without_signal_is_refused():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        to_x0("epsilon", torch.zeros(1, 1), torch.zeros(1, 1), zero, one)
    times, alphas, _ = Schedule(scheduler_of("epsilon", rescale_betas_zero_snr=True)).draw(64, torch.Generator())
    assert float(alphas.min()) > 0
    assert int(times.max()) < 999


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [False, True])
def test_a_step_is_that_of_diffusers(kind, eta, clip):
    scheduler = DDIMScheduler.from_config(scheduler_of(kind).config, clip_sample=clip, timestep_spacing="trailing")
    path = Schedule(scheduler).path(7)
    scheduler.set_timesteps(7)
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for index, time in enumerate(scheduler.timesteps):
        output = torch.randn(2, 3, 4, 4)
        theirs = scheduler.step(output, time, x, eta=eta, variance_noise=noise).prev_sample
        ours = transition(path, index, output, x, eta=eta, noise=noise).sample
        assert torch.allclose(ours, theirs, atol=2e-5), index
        x = theirs


def test_the_flow_without_noise_is_that_of_diffusers():
    scheduler = scheduler_of("flow")
    path = Schedule(scheduler).path(5)
    scheduler.set_timesteps(5)
    x = torch.randn(1, 3, 4, 4)
    for index, time in enumerate(scheduler.timesteps):
        output = torch.randn(1, 3, 4, 4)
        theirs = scheduler.step(output, time, x).prev_sample
        assert torch.allclose(transition(path, index, output, x, eta=0.0).sample, theirs, atol=1e-5)
        x = theirs


def test_a_flow_step_by_hand():
    path = Schedule(scheduler_of("flow")).path(2)
    path = replace(path, sigmas=torch.tensor([1.0, 0.8]), next_sigmas=torch.tensor([0.8, 0.6]),
                   alphas=torch.tensor([0.0, 0.2]), next_alphas=torch.tensor([0.2, 0.4]))  # fmt: skip
    # sigma 0.8 to 0.6: s = 0.7 sqrt(0.8 / 0.2) = 1.4; s^2 / 2 sigma = 1.225; std = 1.4 sqrt(0.2).
    done = transition(path, 1, torch.full((1, 1), 3.0), torch.full((1, 1), 2.0), eta=0.7, noise=torch.ones(1, 1))
    assert float(done.mean) == pytest.approx(2 * (1 - 0.245) + 3 * 1.245 * -0.2, abs=1e-5)
    assert done.std == pytest.approx(1.4 * math.sqrt(0.2), abs=1e-5)
    assert step_std(path, 0, 0.7) == pytest.approx(1.4 * math.sqrt(0.2), abs=1e-5)  # the pole: the next sigma, 0.8


def test_the_flows_noise_keeps_its_marginals():
    """Data N(0, 1): the true velocity is known, and the SDE must end at variance 1 as the ODE does."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    path = Schedule(scheduler).path(250)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator)
    for index in range(len(path)):
        s = path.sigmas[index]
        velocity = (s - (1 - s)) / ((1 - s) ** 2 + s**2) * x
        x = transition(path, index, velocity, x, eta=0.7, noise=torch.randn(x.shape, generator=generator)).sample
    assert float(x.std()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probability_is_that_of_a_normal(kind, temperature):
    path = replace(Schedule(scheduler_of(kind)).path(4), temperature=temperature)
    x, output, noise = (torch.randn(3, 2, 4, 4) for _ in range(3))
    done = transition(path, 1, output, x, eta=0.8, noise=noise)
    normal = torch.distributions.Normal(done.mean, done.std)
    assert done.std == pytest.approx(temperature * step_std(path, 1, 0.8))
    assert torch.allclose(done.log_prob, normal.log_prob(done.sample).flatten(1).mean(dim=1), atol=1e-5)
    assert torch.equal(transition(path, 1, output, x, eta=0.8, sample=done.sample).log_prob, done.log_prob)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_step_is_deterministic_and_has_no_density(kind):
    path = Schedule(scheduler_of(kind)).path(4)
    stds = [step_std(path, index, 1.0) for index in range(4)]
    assert min(stds[:-1]) > 0
    assert stds[-1] == 0
    done = transition(path, 3, torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2), eta=1.0)
    assert bool(done.log_prob.isnan().all())


def test_schedules_that_cannot_be_tuned_say_why():
    with pytest.raises(ValueError, match="'sample'"):
        Schedule(DDIMScheduler(prediction_type="sample"))
    with pytest.raises(ValueError, match="use_dynamic_shifting=False"):
        Schedule(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(ValueError, match="more noise than its level"):
        step_std(Schedule(scheduler_of("epsilon")).path(4), 1, 2.0)
    assert Schedule(DPMSolverMultistepScheduler(prediction_type="v_prediction")).path(3).kind == "v"


def test_grpo_by_hand():
    old, new = torch.zeros(4), torch.tensor([0.1, 0.1, -0.1, -0.1])
    advantage = torch.tensor([2.0, -1.0, 2.0, -1.0])
    # r = 1.10517 and 0.90484, clamped to 1.05 and 0.95.
    wanted = torch.tensor([-2 * 1.05, 1.105171, -2 * 0.904837, 0.95])
    assert torch.allclose(grpo_loss(new, old, advantage, clip=0.05), wanted, atol=1e-5)
    # (0.3^2 + 0.1^2) / 2 over 2 * 0.5^2.
    kl = step_kl(torch.tensor([[0.3, 0.1]]), torch.zeros(1, 2), 0.5)
    assert float(kl) == pytest.approx(0.1)


def test_grpo_climbs_and_its_gradient_stops_at_the_clip():
    log_prob = torch.tensor([0.0, 0.2], requires_grad=True)
    grpo_loss(log_prob, torch.zeros(2), torch.tensor([1.5, 1.5]), clip=0.1).sum().backward()
    assert log_prob.grad.tolist() == [-1.5, 0.0]


def test_nft_by_hand():
    positive, negative = implicit_policies(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 0.5)
    assert (float(positive), float(negative)) == (1.5, 0.5)
    half = torch.tensor([0.5])
    x0 = [to_x0("flow", v, torch.tensor([[1.0]]), half, half) for v in (positive, negative)]
    errors = [scaled_error(x, torch.zeros(1, 1)) for x in x0]  # 0.25^2 / 0.25 and 0.75^2 / 0.75
    assert [float(e) for e in errors] == [0.25, 0.75]
    assert float(nft_loss(torch.tensor([0.75]), *errors, 0.5)) == pytest.approx((0.75 * 0.25 + 0.25 * 0.75) / 0.5)
    assert float(nft_loss(torch.tensor([0.75]), *errors, 0.5, 5.0)) == pytest.approx(5 * 0.375 / 0.5)
    assert float(scaled_error(torch.zeros(1, 4), torch.zeros(1, 4))) == 0
    assert [old_decay(n) for n in (0, 100, 9999)] == [0.0, 0.1, 0.5]


def test_dpo_by_hand():
    # -log sigmoid(-2 / 2 ((0.1 - 0.3) - (0.5 - 0.4))) = log(1 + exp(-0.3))
    one = [torch.tensor([v]) for v in (0.1, 0.5, 0.3, 0.4)]
    assert float(dpo_loss(*one, 2.0)) == pytest.approx(math.log(1 + math.exp(-0.3)), abs=1e-6)


def scores_of(values):
    value = torch.tensor(values)
    errors = [None if math.isfinite(v) else "unreadable" for v in values]
    return Scores(value=value, valid=~value.isnan(), std=torch.full_like(value, math.nan), info={"errors": errors})


def test_advantages_drop_what_says_nothing():
    keys = [*"aaa", *"bb", *"cc", *"dd"]
    scores = scores_of([1.0, 3.0, math.nan, 2.0, 2.0, 4.9, 4.95, math.nan, 5.0])
    found = group_advantages(scores, keys, score_range=(1, 5), max_failure_rate=0.5)
    assert found.value[:2].tolist() == [-1, 1]
    assert found.kept.tolist() == [True, True, *[False] * 7]
    assert bool(found.value[2:].isnan().all())
    assert found.report() == {"failed": 2, "tied_groups": 2, "saturated_groups": 1, "kept": 2}
    assert group_advantages(scores, keys, max_failure_rate=0.5).num_saturated == 0  # no range, no top
    niqe = scores_of([-8.0, -8.5, -7.5])  # all in the upper tenth of -100 to 0, as every image's: not the rule's case
    assert group_advantages(niqe, ["a"] * 3, score_range=(-100, 0)).num_saturated == 0
    with pytest.raises(TooManyFailures, match=r"2 of 9 .*unreadable"):
        group_advantages(scores, keys)


def test_advantages_are_clipped_and_zero_mean():
    values = torch.randn(12).tolist()
    found = group_advantages(scores_of(values), ["a"] * 12).value
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)
    assert float(group_advantages(scores_of([0.0] * 99 + [1.0]), ["a"] * 100).value.max()) == 5.0


def test_pairs_of_the_best_and_the_worst():
    scores = [1.0, 5.0, 2.0, 4.0, 3.0, math.nan, 3.5, 2.5, 1.5]
    pairs = mine_pairs(scores, list(range(9)), lr_hash="x")
    assert {(one.seed_winner, one.seed_loser) for one in pairs} == {(1, 8), (1, 0), (3, 8), (3, 0)}
    [best] = [one for one in pairs if (one.seed_winner, one.seed_loser) == (1, 0)]
    assert (best.value_winner, best.value_loser) == (1.0, 0.0)
    assert mine_pairs([2.0, 2.0, 2.0], [0, 1, 2], lr_hash="x") == []
    assert mine_pairs([2.0, math.nan], [0, 1], lr_hash="x") == []


def test_pair_weights_average_one_and_favour_wide_gaps(tmp_path):
    pairs = [*mine_pairs([0.0, 1.0, 2.0, 4.0], [0, 1, 2, 3], lr_hash="a", share=0.5),
             *mine_pairs([0.0, 3.0], [0, 1], lr_hash="b", share=0.5)]  # fmt: skip
    found = weigh_pairs(pairs)
    gaps = [one.value_winner - one.value_loser for one in found]
    mean_gap, mean_std = sum(gaps) / len(gaps), sum(one.group_std for one in found) / len(found)
    within = [gap + 1 - mean_gap for gap in gaps]
    assert sum(within) / len(within) == pytest.approx(1)
    for one, factor in zip(found, within, strict=True):
        assert one.weight == pytest.approx(factor * (one.group_std + 1 - mean_std))
    by_gap = sorted(found[:4], key=lambda one: one.value_winner - one.value_loser)
    assert by_gap[0].weight < by_gap[-1].weight
    with pytest.raises(ValueError, match="negative"):
        weigh_pairs([replace(found[0], value_loser=found[0].value_winner + 5), found[1]])

    file = write_pairs(tmp_path / "pairs.parquet", found, reward="metric")
    again, header = read_pairs(file)
    assert again == found
    assert header == {"format": 1, "reward": "metric"}


def test_a_foreign_parquet_file_is_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no pair file"):
        read_pairs(tmp_path / "other.parquet")


def test_ema_follows_and_steps_aside():
    part = torch.nn.Parameter(torch.zeros(2))
    ema = EMA([part], 0.9)
    with torch.no_grad():
        part.fill_(1.0)
    ema.update()  # keeps min(0.9, 2 / 11)
    assert ema.averages[0].tolist() == pytest.approx([9 / 11] * 2)
    with ema.applied():
        assert part.tolist() == pytest.approx([9 / 11] * 2)
    assert part.tolist() == [1, 1]
    with pytest.raises(ValueError, match="decay"):
        EMA([part], 1.0)


def test_signals_see_what_they_are_for():
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8), size=(64, 64), mode="bicubic").clamp(0, 1)
    noise = (smooth + 0.1 * torch.randn_like(smooth)).clamp(0, 1)
    assert bool((fine_energy(noise) > 5 * fine_energy(smooth)).all())
    grid = smooth.clone()
    grid[..., ::4] = (grid[..., ::4] + 0.05).clamp(0, 1)
    grid[..., ::4, :] = (grid[..., ::4, :] + 0.05).clamp(0, 1)
    assert bool((grid_peak(grid, 4) > grid_peak(smooth, 4) + 6).all())
    assert float(grid_peak(noise, 4).abs().max()) < 6
    assert bool(grid_peak(smooth[..., :8, :8], 4).isnan().all())
    features, other = [torch.randn(2, 5, 6, 6)], [3 * torch.randn(2, 5, 6, 6)]
    assert gram_distance(features, features).tolist() == [0, 0]
    assert float(gram_distance([2 * features[0]], features)[0]) == pytest.approx(
        3
    )  # the Gram matrix is 4 times as large
    assert float(gram_distance(other, features).min()) > 1
    assert diversity(noise) > diversity(noise[:1].repeat(2, 1, 1, 1)) == 0
    with pytest.raises(ValueError, match="at least 2"):
        diversity(noise[:1])


def test_pairs_below_the_least_probability_are_left_out():
    scores = Scores(value=torch.tensor([1.0, 1.2, 3.0, 3.1]), std=torch.full((4,), 2.0), valid=torch.ones(4).bool())
    matrix = pair_probabilities(scores, temperature=0.5)
    every = mine_pairs(scores.value.tolist(), [0, 1, 2, 3], lr_hash="a", share=0.5)
    assert {(pair.seed_winner, pair.seed_loser) for pair in every} == {(3, 0), (3, 1), (2, 0), (2, 1)}
    limit = float(matrix[3, 1])
    sure = mine_pairs(
        scores.value.tolist(), [0, 1, 2, 3], lr_hash="a", share=0.5, probabilities=matrix, min_probability=limit
    )
    sides = [(best, worst) for best in (2, 3) for worst in (0, 1) if matrix[best, worst] >= limit]
    assert {(pair.seed_winner, pair.seed_loser) for pair in sure} == set(sides)
    assert 0 < len(sure) < len(every)
    with pytest.raises(ValueError, match="needs probabilities="):
        mine_pairs([0.0, 1.0], [0, 1], lr_hash="a", min_probability=0.8)
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        DPO(min_probability=1.0)
