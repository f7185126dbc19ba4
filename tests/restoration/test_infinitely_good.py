"""Infinitely good (the PSNR of equal images) is the best value there is: never unmeasured, never lost in a file."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import make_image

from restoration import Restorer
from restoration.evaluation.records import ImageRecord
from restoration.evaluation.report import report
from restoration.selection.best_of_n import Cascade, best_of_n
from restoration.selection.early_stop import EarlyStop
from restoration.tuning.algorithms.groups import group_advantages
from restoration.tuning.algorithms.pairs import mine_pairs
from restoration.tuning.sampler.rollout import score_report
from zoomiqa_reward import CachedReward, CompositeReward, MetricReward, Term, rank
from zoomiqa_reward.images.loading import load_image, save_png, to_pil
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.normalise import METHODS, normalised, with_finite_bests
from zoomiqa_reward.rewards.restorations import PREFIX, as_worst
from zoomiqa_reward.runs.tables import read_table, write_table
from zoomiqa_reward.serving.wire import ScoreRow

HR = load_image(to_pil(make_image(0, 40, 40)))


def likeness(image, hr):
    difference = float((image - hr).abs().mean())
    return 1 / difference if difference else math.inf


def psnr():
    """A metric of the user's without an upper end."""
    return MetricReward(likeness, "likeness", True, (0, math.inf), needs=("hr",))


def three():
    """The second restores perfectly."""
    return [
        Restorer.from_pretrained(lambda image, by=by: (image + by).clamp(0, 1), name=f"plus {by}", scale=1)
        for by in (0.06, 0.0, 0.02)
    ]


def drawn(reward=None, **options):
    return best_of_n(three(), HR, reward or psnr(), n=3, hr=HR, progress=False, **options)


def test_the_perfect_candidate_wins_also_when_the_run_goes_on(tmp_path):
    for _ in range(2):
        result = drawn(out=tmp_path / "run")
        assert result.best.index == 1
        assert result.best.score == math.inf


def test_the_perfect_candidate_wins_the_cascade(tmp_path):
    flat = MetricReward(lambda image: 0.0, "flat", True, (0, 1))
    for _ in range(2):
        result = drawn(flat, out=tmp_path / "run", cascade=Cascade(reward=psnr(), top=3))
        assert result.best.index == 1
        assert result.best.cascade_score == math.inf


@pytest.mark.parametrize("method", METHODS)
def test_a_sum_prefers_the_perfect_image(method):
    terms = [Term(psnr(), 1.0, method), Term(MetricReward(lambda image: 0.5, "half", True, (0, 1)), 0.1, method)]
    images = [(HR + by).clamp(0, 1) for by in (0.06, 0.0, 0.02)]
    scores = CompositeReward(terms)(images, hr=[HR] * 3, lq=[HR] * 3)
    assert scores.valid.all()
    assert int(scores.value.argmax()) == 1


def test_a_plain_sum_is_the_same_alone_and_beside_others(tmp_path):
    total = CompositeReward([Term(psnr(), 2.0, "raw")])
    worse = (HR + 0.06).clamp(0, 1)
    values = [total([HR], hr=[HR]).value[0], total([worse, HR], hr=[HR, HR]).value[1]]
    with CachedReward(total, tmp_path / "c.db") as cached:
        values += [cached(images, hr=[HR] * len(images)).value[-1] for images in ([HR], [worse, HR])]
    assert [float(value) for value in values] == [math.inf] * 4


def test_normalised_values_by_hand():
    values, groups = torch.tensor([1.0, math.inf, 3.0, math.nan, -math.inf]), torch.zeros(5, dtype=torch.long)
    finite = with_finite_bests(values, groups)
    assert finite[:3].tolist() == [1.0, 5.0, 3.0]
    assert normalised(finite, groups, "minmax")[:3].tolist() == [0.0, 1.0, 0.5]
    assert normalised(finite, groups, "minmax").isnan().tolist() == [False, False, False, True, True]
    assert with_finite_bests(torch.full((2,), math.inf), groups[:2]).tolist() == [0.0, 0.0]
    apart = with_finite_bests(torch.tensor([math.inf, 1.0, 2.0, 100.0]), torch.tensor([0, 0, 0, 1]))
    assert apart.tolist() == [3.0, 1.0, 2.0, 100.0]  # by its own group


def test_a_group_with_a_perfect_candidate_teaches():
    values = torch.tensor([1.0, math.inf, 3.0])
    scores = Scores(value=values, valid=torch.ones(3, dtype=torch.bool), std=torch.zeros(3))
    advantages = group_advantages(scores, ["a"] * 3)
    expected = (np.array([1.0, 5.0, 3.0]) - 3) / np.std([1.0, 5.0, 3.0])
    np.testing.assert_allclose(advantages.value.numpy(), expected, rtol=1e-6)
    [pair] = mine_pairs(values.tolist(), [10, 11, 12], lr_hash="x", share=0.25)
    assert (pair.seed_winner, pair.seed_loser) == (11, 10)
    assert math.isfinite(pair.score_winner)


def test_the_choice_of_an_evaluation_counts_the_perfect_candidate():
    records = [
        ImageRecord(image="a", row="candidate", seed=seed, metrics={"psnr_y": value}, reward=reward, lq_sha256="l",
                    hr_sha256="h")
        for seed, value, reward in ((1, 20.0, 2.0), (2, 30.0, math.inf))
    ]  # fmt: skip
    records = [ImageRecord.from_json(record.as_json()) for record in records]
    settings = {"metrics": {"psnr_y": "1"}, "n": 2, "seeds": [1, 2], "reward": {"name": "likeness"}}
    settings |= {"headline": "psnr_y", "not_headline": {}}
    assert report(settings, records)["rows"]["selected"]["psnr_y"]["value"] == 30.0


@pytest.mark.parametrize("endless", [math.inf, -math.inf])
@pytest.mark.parametrize("width", [math.inf, 4.0])
def test_beside_an_endless_score_an_image_without_content_is_still_the_worst(endless, width):
    blank = f"{PREFIX}: black"
    scores = Scores(value=torch.tensor([endless, 1.0, 2.0, math.nan]), valid=torch.tensor([True, True, True, False]),
                    std=torch.zeros(4), errors=(None, None, None, blank))  # fmt: skip
    ordered = as_worst(scores, ["a"] * 4, width)
    assert bool(ordered.valid[3])
    assert -math.inf < float(ordered.value[3]) < 1.0
    assert bool(group_advantages(ordered, ["a"] * 4).value[3] < 0)
    nothing = replace(scores, value=torch.full((4,), -math.inf), valid=torch.tensor([True, True, True, False]))
    assert not bool(as_worst(nothing, ["a"] * 4, width).valid[3])


def test_the_log_of_a_round_means_its_finite_scores():
    """One infinite mean would make the running mean of all later rounds infinite."""
    scores = Scores(value=torch.tensor([math.inf, 1.0, 3.0]), valid=torch.ones(3, dtype=torch.bool), std=torch.zeros(3))
    assert score_report(scores, ["a"] * 3) == {"score": 2.0, "score_std": 1.0}
    assert score_report(replace(scores, value=torch.full((3,), math.inf)), ["a"] * 3) == {}


def test_it_survives_the_cache_the_wire_and_a_table(tmp_path):
    with CachedReward(psnr(), tmp_path / "c.db") as cached:
        for _ in range(2):
            assert float(cached([HR], hr=[HR]).value[0]) == math.inf
    row = ScoreRow(value=math.inf, std=math.nan, valid=True)
    assert ScoreRow.from_json(row.as_json()).value == math.inf
    for name in ("t.jsonl", "t.csv", "t.parquet"):
        write_table(tmp_path / name, [{"value": math.inf}, {"value": 1.0}, {"value": math.nan}])
        values = [None if item["value"] is None else float(item["value"]) for item in read_table(tmp_path / name)]
        assert values == [math.inf, 1.0, None]


def test_nothing_is_better_than_perfect():
    assert EarlyStop(min_draws=3).says_stop([[1.0, 2.0, math.inf]])
    tied = rank(psnr(), [HR, (HR + 0.1).clamp(0, 1), HR.clone()], hr=HR)
    assert (tied.order, tied.gap, tied.ties) == ((0, 2, 1), 0.0, ((0, 2),))


def test_a_file_that_holds_another_image_than_was_scored_is_told(tmp_path):
    drawn(out=tmp_path / "run")
    file = tmp_path / "run" / "candidates" / "0001.png"
    for spoil in (lambda: save_png(1 - HR, file), lambda: file.write_bytes(b"no image")):
        spoil()
        with pytest.raises(ValueError, match=r"0001\.png: is not the image that was made and scored"):
            drawn(out=tmp_path / "run")
