"""Learning what the drawing model expects under what a varied candidate saw: without the candidate's grain."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_tune_denoisers import PIPELINES, nano
from test_tune_training import ALGORITHMS, examples, recipe_of, reward_of, rows_of, run
from test_tune_varied import SEEDS, detail, tuning

from restoration.tuning import Example, TuneConfig, tune
from restoration.tuning.algorithms.dpo import DPO
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.pairs import read_pairs, write_pairs
from restoration.tuning.denoisers.base import Condition, denoiser_of
from restoration.tuning.lora import add_lora
from restoration.tuning.sampler.denoising import denoising_errors, expected_target
from restoration.tuning.sampler.parametrisation import KINDS, noisy, target, to_noise, to_x0
from restoration.tuning.sampler.rollout import Varied, draw_piece, generators_of
from restoration.tuning.sampler.transitions import draw

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries, while pipelines are saved


def test_the_target_means_the_image_that_is_expected_of_what_was_seen(tmp_path):
    """From the same noisy image, told under the image as it is and under the one that was seen: one expectation."""
    one = tuning(tmp_path)
    piece = draw_piece(one, examples(1)[0], SEEDS, vary_sharpness=1.0, expected=True)
    assert draw_piece(one, examples(1)[0], SEEDS, vary_sharpness=1.0).varied is None  # drawn only where it is used
    varied, kind = piece.varied, one.denoiser.schedule.kind
    plain = draw_piece(one, examples(1)[0], SEEDS)
    torch.testing.assert_close(varied.x0_as_is, plain.trajectory.x0)
    assert not torch.allclose(varied.x0_as_is, piece.trajectory.x0, atol=1e-2)
    levels = one.denoiser.schedule.draw(3, torch.Generator().manual_seed(0))
    times, alphas, sigmas = levels
    noise = torch.randn(varied.x0_as_is.shape, generator=torch.Generator().manual_seed(1))
    wanted = expected_target(one.denoiser, varied, noise, levels)
    state = noisy(varied.x0_as_is, noise, alphas, sigmas)
    told = one.denoiser.decode(to_x0(kind, wanted, state, alphas, sigmas), piece.condition)
    state = noisy(varied.x0, noise, alphas, sigmas)
    with torch.no_grad():
        output = one.denoiser.predict(state, times, varied.condition)
    seen = one.denoiser.decode(to_x0(kind, output, state, alphas, sigmas), varied.condition)
    shown = one.denoiser.decode(varied.x0_as_is, piece.condition)
    inside = (shown > 1e-3) & (shown < 1 - 1e-3)  # where the candidate was clipped, its two x0 are two images
    assert float(inside.float().mean()) > 0.9
    torch.testing.assert_close(told[inside], seen[inside], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PIPELINES)
def test_of_a_varied_candidate_only_the_sharpness_differs(name, tmp_path, monkeypatch):
    """Its noise is that of the same seed under the image as it is, also what the condition itself draws (SD-x4)."""
    build, options, _ = PIPELINES[name]
    run_of_it = replace(tuning(tmp_path), denoiser=denoiser_of(build(), **options))
    example = Example(name="a", lq=torch.rand(3, 16, 16))
    plain = draw_piece(run_of_it, example, SEEDS)
    piece = draw_piece(run_of_it, example, SEEDS, vary_sharpness=1.0, expected=True)
    assert torch.equal(piece.varied.x0_as_is, plain.trajectory.x0)
    for name, tensor in plain.condition.given.items():
        assert torch.equal(piece.condition.given[name], tensor)
    monkeypatch.setattr("restoration.tuning.sampler.rollout.drawn_sharpness", lambda seed, amount: 0.0)
    same = draw_piece(run_of_it, example, SEEDS, vary_sharpness=1.0, expected=True)
    for name, tensor in plain.condition.given.items():
        assert torch.equal(same.varied.condition.given[name], tensor)


def test_the_noise_in_a_condition_is_not_that_of_the_sampler(tmp_path):
    """SD-x4 draws both from one generator, one after the other."""
    run_of_it = replace(tuning(tmp_path), denoiser=denoiser_of(PIPELINES["sd_x4"][0]()))
    begun = []
    begin = run_of_it.denoiser.begin
    run_of_it.denoiser.denoiser.begin = lambda noise, *rest: begun.append(noise) or begin(noise, *rest)
    draw_piece(run_of_it, Example(name="a", lq=torch.rand(3, 16, 16)), SEEDS, vary_sharpness=1.0, expected=True)
    assert len(begun) == 2
    assert torch.equal(*begun)
    in_condition = draw((3, 16, 16), generators_of(SEEDS), torch.device("cpu"))
    assert not bool((begun[0][:, :3] == in_condition).any())


@pytest.mark.integration
def test_dpo_tells_both_sides_of_one_noise(tmp_path, monkeypatch):
    """The states of both are what the winner's seed leads to under the image as it is, not what it saw."""
    seen, learned = [], []

    def spied(denoiser, varied, noise, levels):
        seen.append(varied.condition)
        return expected_target(denoiser, varied, noise, levels)

    def errors(denoiser, condition, *rest):
        seen.append(condition)
        learned.append(rest[0])
        return denoising_errors(denoiser, condition, *rest)

    monkeypatch.setattr("restoration.tuning.algorithms.dpo.expected_target", spied)
    monkeypatch.setattr("restoration.tuning.algorithms.dpo.denoising_errors", errors)
    config = TuneConfig(steps=4, crop_px=None, vary_sharpness=1.0, expected_targets=True)
    run_of_it = replace(tuning(tmp_path), denoiser=denoiser_of(PIPELINES["sd_x4"][0]()), config=config)
    add_lora(run_of_it.denoiser, 2, 2)
    algorithm = DPO()
    algorithm.prepare(run_of_it)
    algorithm.begin(run_of_it)
    [part] = algorithm.collect(run_of_it, 0).parts
    monkeypatch.setattr("restoration.tuning.algorithms.dpo.drawn_sharpness", lambda seed, amount: 0.0)
    part.loss(torch.Generator().manual_seed(0))
    assert len(seen) == 3
    assert all(torch.equal(condition.given["noised"], seen[0].given["noised"]) for condition in seen)
    winners, losers = seen[0].given["noised"].chunk(2)
    assert torch.equal(winners, losers)
    as_it_is = torch.cat([draw_piece(run_of_it, part.example, [pair.seed_winner]).trajectory.x0
                          for pair in part.loss.args[2]])  # fmt: skip
    assert all(torch.allclose(x0, as_it_is.repeat(2, 1, 1, 1)) for x0 in learned)


def test_of_a_candidate_that_saw_the_image_as_it_is_nothing_is_learned(tmp_path):
    one = tuning(tmp_path)
    piece = draw_piece(one, examples(1)[0], SEEDS)
    x0, levels = piece.trajectory.x0, one.denoiser.schedule.draw(3, torch.Generator().manual_seed(0))
    noise = torch.zeros_like(x0)
    wanted = expected_target(one.denoiser, Varied(condition=piece.condition, x0_as_is=x0, x0=x0), noise, levels)
    with torch.no_grad():
        output = one.denoiser.predict(noisy(x0, noise, *levels[1:]), levels[0], piece.condition)
    assert torch.equal(wanted, output)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_carried_from_one_x0_to_the_other(kind):
    """A denoiser that knows x0 = 0.7 under what was seen; the same images are told as x0 + 0.3 under the other.

    So at any state the target must mean 1.0, and the noise must be the state's own: (x_t - alpha) / sigma.
    """
    alpha, sigma = (0.6, 0.4) if kind == "flow" else (0.6, 0.8)
    levels = (torch.zeros(4), torch.full((4,), alpha), torch.full((4,), sigma))

    def predict(x_t, _times, _condition):
        return target(kind, torch.full_like(x_t, 0.7), (x_t - alpha * 0.7) / sigma, *levels[1:])

    own = torch.tensor([[1.0], [1.5], [-2.0], [0.0]])
    noise = torch.tensor([[0.1], [-1.0], [2.0], [0.5]])
    denoiser = SimpleNamespace(schedule=SimpleNamespace(kind=kind), predict=predict)
    varied = Varied(condition=Condition(lq=torch.zeros(4, 1, 1, 1)), x0_as_is=own, x0=own - 0.3)
    wanted = expected_target(denoiser, varied, noise, levels)
    state = noisy(own, noise, *levels[1:])
    torch.testing.assert_close(to_x0(kind, wanted, state, *levels[1:]), torch.ones(4, 1))
    torch.testing.assert_close(to_noise(kind, wanted, state, *levels[1:]), (state - alpha) / sigma)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["nft", "dpo", "sft"])
def test_every_algorithm_that_takes_varied_candidates_can_learn_from_it(name, tmp_path):
    algorithm, changes = ALGORITHMS[name]
    rows = {}
    for expected in (False, True):
        result = run(algorithm, tmp_path / str(expected), reward_of(detail), rounds=2, vary_sharpness=1.0,
                     expected_targets=expected, **changes)  # fmt: skip
        rows[expected] = rows_of(result.folder)
        assert all(math.isfinite(row["loss"]) for row in rows[expected])
    assert rows[False] != rows[True]


def test_it_needs_candidates_that_saw_something_else(tmp_path):
    with pytest.raises(ValueError, match="set vary_sharpness above 0"):
        recipe_of(NFT(), expected_targets=True)


@pytest.mark.integration
def test_pairs_of_files_are_refused(tmp_path):
    run(DPO(), tmp_path / "one", rounds=1, num_samples=8, vary_sharpness=0.5)
    pairs, header = read_pairs(tmp_path / "one" / "pairs.parquet")
    for one in pairs:
        object.__setattr__(one, "file_winner", "a.png")
        object.__setattr__(one, "file_loser", "b.png")
    file = write_pairs(tmp_path / "pairs.parquet", pairs, **{k: v for k, v in header.items() if k != "format"})
    recipe = recipe_of(DPO(pairs_file=file), rounds=1, num_samples=8, vary_sharpness=0.5, expected_targets=True)
    with pytest.raises(ValueError, match="these are files"):
        tune(recipe, examples(), reward_of(), tmp_path / "two", validation=None, pipeline=nano(), device="cpu")


@pytest.mark.integration
def test_rejection_sft_draws_and_is_taught_by_the_base(tmp_path):
    """So what it has learned already does not change what it draws: scores are those of a run that learns nothing."""
    algorithm, changes = ALGORITHMS["sft"]
    scores = {}
    for rate in (0.0, 3e-2):
        for expected in (False, True):
            result = run(algorithm, tmp_path / f"{rate}{expected}", rounds=3, vary_sharpness=1.0, learning_rate=rate,
                         expected_targets=expected, **changes)  # fmt: skip
            scores[rate, expected] = [row["score"] for row in rows_of(result.folder)]
    assert scores[0.0, True] == scores[3e-2, True]
    assert scores[0.0, False] != scores[3e-2, False]
