"""The pool that is varied in structure: who is in it, and that a choice of bicubic says so."""

import pytest
import torch
from tiny import make_image
from tiny_pipelines import small_nano

from restoration.evaluation.measuring import bicubic
from restoration.selection.best_of_n import best_of_n
from restoration.selection.pool import (
    BICUBIC,
    SHARPER,
    TEMPERATURES,
    VARY_SHARPNESS,
    doing_nothing,
    merge_pools,
    varied_pool,
)
from zoomiqa_reward import MetricReward

LQ = make_image(0, 20, 24)


def closeness(wanted):
    """A reward that likes one image best."""
    return MetricReward(lambda image: -float((image - wanted).abs().mean()), "closeness", True, (-1, 0))


def test_the_restorer_as_it_is_and_bicubic_come_first_and_every_temperature_is_there():
    pool = varied_pool(small_nano(), steps=2)
    assert len(pool) == 8
    assert [one.name for one in pool[:2]] == ["NanoSRPipeline", BICUBIC]
    assert [one.engine.call.get("temperature") for one in pool[2:]] == [*TEMPERATURES] * 3
    assert all(one.vary_sharpness == SHARPER for one in pool[2:])
    assert pool[0].vary_sharpness == 0
    result = best_of_n(pool, LQ, closeness(0.5), n=8, keep=8, progress=False)
    assert len({one.pixels for one in result.candidates}) == 8
    assert all(one.valid for one in result.candidates)
    low, high = SHARPER
    assert all(low < one.sharpness < high for one in result.candidates[2:])


def test_bicubic_is_bicubic_and_its_choice_is_said():
    pool = varied_pool(small_nano(), steps=2)
    result = best_of_n(pool, LQ, closeness(bicubic(LQ, 4)), n=8, progress=False)
    assert result.best.restorer == BICUBIC
    assert [note for note in result.notes if "doing nothing" in note]
    [made] = doing_nothing(4).restore(LQ, [0])
    torch.testing.assert_close(made.image, bicubic(LQ, 4))
    plain = pool[0]
    [own] = plain.restore(LQ, [result.candidates[0].seed])
    other = best_of_n(pool, LQ, closeness(own.image), n=8, progress=False)
    assert other.best.index == 0
    assert not other.notes


def test_a_network_is_varied_in_sharpness_alone():
    pool = varied_pool(torch.nn.Upsample(scale_factor=2), scale=2, size=4, vary_sharpness=1.0)
    result = best_of_n(pool, LQ, closeness(0.5), n=4, progress=False)
    assert len({one.pixels for one in result.candidates}) == 4
    assert [one.sharpness != 0 for one in result.candidates] == [False, False, True, True]


def test_what_has_no_temperature_sees_its_input_softer_and_sharper():
    pool = varied_pool(torch.nn.Upsample(scale_factor=2), scale=2)
    assert {one.vary_sharpness for one in pool[2:]} == {VARY_SHARPNESS}
    drawn = [next(iter(pool[2].restore(LQ, [seed]))).sharpness for seed in range(20)]
    assert min(drawn) < -0.2 < 0.2 < max(drawn)


def test_a_temperature_that_is_given_is_every_members():
    pool = varied_pool(small_nano(), steps=2, temperature=0.3)
    assert {one.engine.call["temperature"] for one in pool if one.name != BICUBIC} == {0.3}


def test_several_restorers_take_turns_and_bicubic_stands_once():
    pools = [varied_pool(small_nano(), name=name, steps=2, size=3) for name in ("a", "b")]
    assert [one.name for one in merge_pools(pools)] == ["a", "b", BICUBIC, "a varied T 0", "b varied T 0"]


def test_what_cannot_be_a_pool_is_refused():
    with pytest.raises(ValueError, match="size=2"):
        varied_pool(small_nano(), size=2)
    with pytest.raises(ValueError, match="vary_sharpness=0"):
        varied_pool(small_nano(), vary_sharpness=0)
    with pytest.raises(ValueError, match="pass scale=4"):
        varied_pool(lambda image: image)


def test_stopping_early_needs_draws_of_one_kind(tmp_path, capsys):
    from zoomiqa_reward.cli.main import main

    arguments = ["best-of-n", "small.png", "--min-gain", "0.1", "--out", str(tmp_path / "run")]
    assert main(arguments) != 0
    assert "--min-gain needs --plain" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
