"""Pairs for DPO: the order of a best-of-N run with two rewards, files of another size, blank candidates."""

import json
import math

import pytest
import torch
from test_tune_blank import BLANK, IMAGES, NOTHING, SAMPLES, broken, seeing
from test_tune_blank import examples as dim_examples
from test_tune_denoisers import nano
from test_tune_training import examples, recipe_of, reward_of

from restoration.restorer.restorer import Restorer
from restoration.restorer.rng import candidate_seed
from restoration.selection.best_of_n import Cascade, best_of_n
from restoration.tuning import tune
from restoration.tuning.algorithms.dpo import DPO, probabilities_of
from restoration.tuning.algorithms.pairs import PreferencePair, pairs_from_best_of_n, read_pairs, write_pairs
from zoomiqa_reward.images import save_png
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.rewards.normalise import group_keys

__all__ = ["broken"]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of libraries, while pipelines are saved
]


def darkness():
    return MetricReward(lambda image: -image.mean(), "darkness", True, (-1, 0))


def test_pairs_follow_the_order_of_the_run_after_a_cascade(tmp_path):
    """The second reward turns the order of the best four round: the winner is the last of the first reward's."""
    lq = examples(1)[0].lq
    restorer = Restorer.from_pretrained(nano(), device="cpu", steps=4)
    given = {"n": 8, "out": tmp_path, "progress": False}
    best_of_n(restorer, lq, reward_of(), **given)
    plain = pairs_from_best_of_n(tmp_path, lq)
    result = best_of_n(restorer, lq, reward_of(), cascade=Cascade(reward=darkness(), top=4), **given)
    pairs = pairs_from_best_of_n(tmp_path, lq)
    order = [candidate.seed for candidate in result.order]
    assert {pair.seed_winner for pair in pairs} == set(order[:2])
    assert {pair.seed_loser for pair in pairs} == set(order[-2:])
    assert not {pair.seed_winner for pair in pairs} & {pair.seed_winner for pair in plain}
    assert all(pair.score_winner > pair.score_loser for pair in pairs)
    assert {pair.reward for pair in pairs} == {f"{plain[0].reward}, then {darkness().fingerprint}"}
    best_of_n(restorer, lq, reward_of(), **given)  # the second reward's scores lie in the folder and are not used
    assert pairs_from_best_of_n(tmp_path, lq) == plain
    file = tmp_path / "run.json"
    begun = json.loads(file.read_text())
    file.write_text(json.dumps({"settings": begun["settings"], "finished": False}))
    with pytest.raises(ValueError, match="run the same best-of-N again to finish it"):
        pairs_from_best_of_n(tmp_path, lq)


@pytest.mark.parametrize("side", [24, 96])
def test_files_of_another_size_are_refused_before_the_work(side, tmp_path):
    example = examples(1)[0]
    [key] = group_keys([example.lq], [""])
    files = [str(save_png(torch.rand(3, side, side), tmp_path / f"{name}.png")) for name in ("winner", "loser")]
    pair = PreferencePair(
        lr_hash=key, prompt="", seed_winner=1, seed_loser=2, score_winner=1.0, score_loser=0.0, value_winner=1.0,
        value_loser=0.0, group_std=0.5, reward="x", file_winner=files[0], file_loser=files[1],
    )  # fmt: skip
    file = write_pairs(tmp_path / "pairs.parquet", [pair])
    with pytest.raises(ValueError, match=rf"has {side} x {side} px, and the pipeline makes 48 x 48 of its image"):
        tune(recipe_of(DPO(pairs_file=file)), [example], reward_of(), tmp_path / "run", validation=None,
             pipeline=nano(), device="cpu")  # fmt: skip


# Candidates without content, with probabilities


def scores_of(values, stds, errors):
    value = torch.tensor(values)
    return Scores(value=value, valid=~value.isnan(), std=torch.tensor(stds), errors=tuple(errors))


def test_a_blank_candidate_loses_for_certain():
    nan = math.nan
    scores = scores_of([3.0, 3.1, 1.5, nan], [0.2, 0.2, nan, nan], [None, None, NOTHING, "no answer"])
    probabilities = probabilities_of(scores)
    assert probabilities[:2, 2].tolist() == [1, 1]
    assert probabilities[2, :2].tolist() == [0, 0]
    assert 0.5 < float(probabilities[1, 0]) < 1
    assert bool(probabilities[3].isnan().all())
    assert math.isnan(float(probabilities[2, 2]))
    with pytest.raises(ValueError, match="need a standard deviation"):
        probabilities_of(scores_of([3.0, 3.1], [0.2, nan], [None, None]))


class Sure(Reward):
    """The darker the better, and sure of it."""

    name, score_range, fingerprint = "sure", (-1.0, 0.0), "sure"

    def __call__(self, images, lq=None, hr=None, prompts=None):
        value = torch.stack([-image.mean() for image in images])
        return Scores(value=value, valid=torch.ones(len(value), dtype=torch.bool), std=torch.full_like(value, 1e-6))


def test_mining_by_probability_takes_blank_candidates_as_losers(broken, tmp_path):
    algorithm, _, prepared = seeing(DPO, share=0.25, min_probability=0.9)
    settings = {"rounds": 1, "num_samples": SAMPLES, "rows_at_once": SAMPLES, "crop_px": None, "max_failure_rate": 0.0}
    tune(recipe_of(algorithm, **settings), dim_examples(), Sure(), tmp_path, validation=None, pipeline=nano(),
         device="cpu")  # fmt: skip
    pairs, _ = read_pairs(tmp_path / "pairs.parquet")
    blank = {candidate_seed(prepared[0].seed(4, place), BLANK) for place in range(IMAGES)}
    assert {pair.seed_loser for pair in pairs} == blank
