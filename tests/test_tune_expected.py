"""Learning from what the drawing model expects of a candidate: the same mean, without the candidate's grain."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_tune_denoisers import nano
from test_tune_training import ALGORITHMS, examples, recipe_of, reward_of, rows_of, run
from test_tune_varied import SEEDS, detail, tuning

from restoration.tune import tune
from restoration.tune.denoiser import Condition
from restoration.tune.denoising import expected_target
from restoration.tune.dpo import DPO
from restoration.tune.nft import NFT
from restoration.tune.pairs import read_pairs, write_pairs
from restoration.tune.parametrisation import KINDS, noisy, target, to_x0
from restoration.tune.rollout import Varied, draw_piece

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries, while pipelines are saved


def test_the_target_means_the_picture_that_the_drawing_model_expects(tmp_path):
    """Told under the picture as it is, and under the picture as it was seen: two x0, one picture."""
    one = tuning(tmp_path)
    piece = draw_piece(one, examples(1)[0], SEEDS, vary_sharpness=1.0)
    drawn, x0, kind = piece.as_drawn(range(3)), piece.trajectory.x0, one.denoiser.schedule.kind
    assert not torch.allclose(drawn.x0, x0, atol=1e-2)
    levels = one.denoiser.schedule.draw(3, torch.Generator().manual_seed(0))
    times, alphas, sigmas = levels
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    wanted = expected_target(one.denoiser, drawn, x0, noise, levels)
    shown = one.denoiser.decode(x0, piece.condition)
    told = one.denoiser.decode(to_x0(kind, wanted, noisy(x0, noise, alphas, sigmas), alphas, sigmas), piece.condition)
    state = noisy(drawn.x0, noise, alphas, sigmas)
    with torch.no_grad():
        output = one.denoiser.predict(state, times, drawn.condition)
    seen = one.denoiser.decode(to_x0(kind, output, state, alphas, sigmas), drawn.condition)
    inside = (shown > 1e-3) & (shown < 1 - 1e-3)  # where the candidate was clipped, its two x0 are two pictures
    assert float(inside.float().mean()) > 0.9
    torch.testing.assert_close(told[inside], seen[inside], atol=1e-4, rtol=0)


def test_of_a_candidate_that_saw_the_picture_as_it_is_nothing_is_learned(tmp_path):
    one = tuning(tmp_path)
    piece = draw_piece(one, examples(1)[0], SEEDS)
    x0, levels = piece.trajectory.x0, one.denoiser.schedule.draw(3, torch.Generator().manual_seed(0))
    noise = torch.zeros_like(x0)
    wanted = expected_target(one.denoiser, piece.as_drawn(range(3)), x0, noise, levels)
    with torch.no_grad():
        output = one.denoiser.predict(noisy(x0, noise, *levels[1:]), levels[0], piece.condition)
    assert torch.equal(wanted, output)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_mean_of_the_sampled_targets_and_varies_less(kind):
    """A Gaussian whose denoiser is known: x0 ~ N(m, s^2) under the condition that drew it, told as x0 + c.

    E[x0 | x_t] = m + s^2 alpha / (s^2 alpha^2 + sigma^2) (x_t - alpha m). The sampled target less the expected one must
    have no mean, and no correlation with the noisy state: then both lead a regression to the same function.
    """
    m, s, c, count = 0.7, 0.5, 0.3, 200_000
    alpha, sigma = (0.6, 0.4) if kind == "flow" else (0.6, 0.8)
    levels = (torch.zeros(count), torch.full((count,), alpha), torch.full((count,), sigma))

    def predict(x_t, _times, _condition):
        mean = m + s**2 * alpha / (s**2 * alpha**2 + sigma**2) * (x_t - alpha * m)
        return target(kind, mean, (x_t - alpha * mean) / sigma, *levels[1:])

    gen = torch.Generator().manual_seed(0)
    drawn = m + s * torch.randn(count, 1, generator=gen)
    noise = torch.randn(count, 1, generator=gen)
    denoiser = SimpleNamespace(schedule=SimpleNamespace(kind=kind), predict=predict)
    varied = Varied(condition=Condition(lq=torch.zeros(count, 1, 1, 1)), x0=drawn)
    expected = expected_target(denoiser, varied, drawn + c, noise, levels)
    sampled = target(kind, drawn + c, noise, *levels[1:])
    rest, state = sampled - expected, noisy(drawn + c, noise, *levels[1:])
    bound = 5 / math.sqrt(count)
    assert abs(float(rest.mean())) < bound * float(rest.std())
    assert abs(float(((state - state.mean()) * rest).mean())) < bound * float(state.std() * rest.std())
    assert float(expected.var()) < 0.95 * float(sampled.var())


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
