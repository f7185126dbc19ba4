"""The hacking monitor: silent on the base model, loud on planted failures; stop and roll back."""

import json
import math
from dataclasses import replace

import pytest
import torch
from test_tune_denoisers import disturb, nano
from test_tune_training import examples, recipe_of, reward_of, rows_of

from restoration.metrics.fidelity import lr_consistency
from restoration.tuning import MonitorConfig, tune
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.context import Tuning
from restoration.tuning.denoisers.base import denoiser_of
from restoration.tuning.lora import add_lora
from restoration.tuning.monitor.limits import LEAST_FRAGILITY, LEAST_ROOM, Limit, bootstrap_deviation, limits_of
from restoration.tuning.monitor.monitor import Monitor
from restoration.tuning.offload import Offloader
from restoration.tuning.sampler.rollout import raw_range
from zoomiqa_reward.images import load_image
from zoomiqa_reward.images.filters import gaussian_blur
from zoomiqa_reward.rewards.base import optimised_names
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.rewards.metric import MetricReward

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
CONFIG = MonitorConfig(crop_px=12, num_seeds=3, metrics=("psnr_y",))


def smooth_examples(count=6):
    found = []
    for k, one in enumerate(examples(count)):
        hr = torch.nn.functional.interpolate(one.lq[None, :, :6, :6], size=(48, 48), mode="bicubic").clamp(0, 1)
        lq = torch.nn.functional.interpolate(hr, size=(12, 12), mode="bicubic", antialias=True).clamp(0, 1)[0]
        found.append(replace(one, name=f"v{k}", lq=lq, hr=hr[0]))
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    pipeline = nano()
    pipeline.register_to_config(residual_std=0.03)
    denoiser = denoiser_of(pipeline)
    add_lora(denoiser, 4, 8)
    config = recipe_of(SFT()).config
    tuning = Tuning(
        denoiser=denoiser, reward=reward_of(), examples=examples(), config=config, device=torch.device("cpu"),
        folder=tmp_path_factory.mktemp("run"), autocast=torch.no_grad,
        share=Offloader(pipeline, reward_of(), torch.device("cpu"), enabled=False),
    )  # fmt: skip
    monitor = Monitor(tuning, smooth_examples(), CONFIG)
    return monitor, monitor.start()


def names(reading):
    return {why.split()[0] for why in reading.alarms}


def test_the_base_model_raises_no_alarm(watched):
    monitor, base = watched
    again = monitor.look()
    assert again.alarms == ()
    assert again.values == pytest.approx(base.values)
    assert again.values["kl"] == 0
    for seed in range(2, 6):  # nor do its other candidates
        assert monitor.examine(monitor.draw(seed=seed)).alarms == ()


def test_planted_failures_are_told_apart(watched):
    monitor, base = watched

    def sharpened(own):
        return (own + 6 * (own - gaussian_blur(own, 1.0))).clamp(0, 1)

    def gridded(own):
        grid = torch.zeros_like(own)
        grid[..., ::4] += 0.08
        grid[..., ::4, :] += 0.08
        return (own + grid).clamp(0, 1)

    def tinted(own):
        return (own * torch.tensor([1.0, 0.4, 0.2]).view(1, 3, 1, 1)).clamp(0, 1)

    planted = {
        "fine_energy": sharpened,
        "grid_peak": gridded,
        "diversity": lambda own: own[:1].expand(3, -1, -1, -1),
        "gram": tinted,
        "lr_consistency": lambda own: own.flip(3),
        "psnr_y": lambda own: own.flip(3),
        "reward": lambda own: own * 0.3,
    }
    for name, damage in planted.items():
        assert name in names(monitor.examine([damage(own) for own in base.images])), name
    smoothed = names(monitor.examine([gaussian_blur(own, 3.0) for own in base.images]))
    assert "fine_energy" in smoothed
    assert names(monitor.examine([own[:1].expand(3, -1, -1, -1) for own in base.images])) == {"diversity"}


def test_a_gain_that_does_not_outlive_a_jpeg_is_told_apart(watched, tmp_path):
    """JPEG stores colour at half the resolution: a checkerboard of it, a pixel wide, is gone; a tint is not."""
    board = (torch.arange(48)[:, None] + torch.arange(48)) % 2 * 2.0 - 1
    redness = reward_of(lambda image: 0.5 + ((image[0] - image[2]) * (1 + board)).mean())
    monitor = Monitor(replace(watched[0].tuning, reward=redness, folder=tmp_path), smooth_examples(), CONFIG)
    base = monitor.start()

    def redder(pattern):
        change = 0.04 * torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1) * pattern
        return monitor.examine([(own + change).clamp(0, 1) for own in base.images])

    assert raw_range(CompositeReward([Term(redness, 1.0, "z")])) == (0, 1)  # what is read of a sum is its first term
    for pattern, is_fragile in ((board, True), (torch.ones(48, 48), False)):
        seen = redder(pattern)
        assert seen.values["reward"] > base.values["reward"] + 0.05
        assert ("fragility" in names(seen)) == is_fragile


def test_a_disturbed_network_raises_the_kl(watched):
    monitor, _ = watched
    from restoration.tuning.lora import POLICY, AdapterState

    held = AdapterState(monitor.tuning.denoiser.module, POLICY).state_dict()
    disturb(monitor.tuning.denoiser, size=0.3)
    kl = monitor.kl()
    AdapterState(monitor.tuning.denoiser.module, POLICY).load_state_dict(held)
    assert kl > 0.01
    assert "kl" in names(monitor.examine(monitor.draw(), kl=CONFIG.max_kl + 1))


def test_limits_are_four_deviations_of_the_base(watched):
    monitor, base = watched
    saved = json.loads((monitor.tuning.folder / "monitor_limits.json").read_text())["limits"]
    rows = monitor.signals(base.images)
    again = monitor.signals(monitor.draw(seed=1)) | {"gram": None}
    for name, limit in saved.items():
        if name == "kl":
            continue
        assert limit["base"] == pytest.approx(sum(rows[name]) / len(rows[name]))
        least = LEAST_FRAGILITY if name == "fragility" else LEAST_ROOM.get(name, 0)
        room = max(4 * bootstrap_deviation(rows[name], again[name]), least)
        for side, sign in (("low", -1), ("high", 1)):
            if limit[side] is not None:
                assert limit[side] == pytest.approx(limit["base"] + sign * room)
    assert saved["psnr_y"]["high"] is None
    assert saved["fine_energy"]["low"] is not None
    values = [0.0, 1.0] * 8
    assert bootstrap_deviation(values) == pytest.approx(0.5 / 4, rel=0.05)  # standard error of the mean
    assert bootstrap_deviation([0.0] * 16, [1.0] * 16) == pytest.approx(0.5 / 4, rel=0.05)  # of candidates alone


def test_a_signal_without_spread_gets_room():
    """LR-consistency at its cap of 50 may fall to 49; the Gram distance may grow to the truth's, but no lower limit."""
    rows = {"lr_consistency": [50.0] * 6, "gram": [0.03] * 6}
    found, _ = limits_of(rows, {"lr_consistency": [50.0] * 6}, MonitorConfig(), {"gram": 0.4})
    assert (found["lr_consistency"].low, found["gram"].high) == (49.0, 0.4)
    found, _ = limits_of(rows, {}, MonitorConfig(), {"gram": 0.01, "lr_consistency": 46.0})
    assert (found["gram"].high, found["lr_consistency"].low) == (pytest.approx(0.03), 46.0)


def test_what_the_ground_truths_do_is_no_alarm(watched, tmp_path):
    """Truths that hold what their LR images lost cost LR-consistency, and are no invention."""
    tuning = replace(watched[0].tuning, folder=tmp_path)
    darkened = [replace(one, hr=0.8 * one.hr) for one in smooth_examples()]
    truth = sum(lr_consistency(one.hr, one.lq) for one in darkened) / len(darkened)
    monitor = Monitor(tuning, darkened, CONFIG)
    monitor.start()
    limit = monitor.limits["lr_consistency"]
    assert truth < limit.base - 1
    assert limit.low == pytest.approx(truth)


def test_what_can_no_longer_be_measured_is_an_alarm():
    limit = Limit(base=1.0, deviation=0.1, low=0.6, high=None)
    assert [limit.crossed(v) for v in (0.7, 0.5, 99.0, math.nan)] == [False, True, False, True]
    assert "no longer" in limit.words("x", math.nan)
    assert limit.words("x", 0.5) == "x 0.5 is below 0.6 (the base model has 1)"


def test_metrics_of_the_reward_may_not_judge_it(watched):
    tuning = watched[0].tuning
    psnr = MetricReward(lambda image, hr: 1.0, "psnr_y", True, (0, 50), needs=("hr",))
    mixed = CompositeReward([Term(reward_of()), Term(psnr)])
    assert {"psnr_y", "brightness"} <= optimised_names(mixed)
    with pytest.raises(ValueError, match="'psnr_y' is part of the reward"):
        Monitor(replace(tuning, reward=mixed), smooth_examples(), CONFIG)
    with pytest.raises(ValueError, match="at least 4"):
        Monitor(tuning, smooth_examples(3), CONFIG)
    with pytest.raises(ValueError, match="needs ground truths"):
        Monitor(tuning, [replace(one, hr=None) for one in smooth_examples()], CONFIG)


def test_an_alarm_stops_the_run_and_rolls_back(tmp_path):
    """A reward for darkness with a huge step destroys the model; the result is the base again, and says so."""
    dark = MetricReward(lambda image: -image.mean(), "dark", True, (-1, 0))
    recipe = replace(recipe_of(SFT(), rounds=6, learning_rate=0.5, max_grad_norm=1e3, save_every=2),
                     monitor=MonitorConfig(every=1, crop_px=12, metrics=("psnr_y",)))  # fmt: skip

    def go():
        return tune(recipe, examples(), dark, tmp_path, validation=smooth_examples(), pipeline=nano(), device="cpu")

    result = go()
    assert result.alarms
    assert result.rounds < 6
    assert result.best_round < result.rounds
    looks = rows_of(tmp_path, "monitor.jsonl")
    assert [row["round"] for row in looks] == list(range(result.rounds + 1))
    assert looks[-1]["alarms"] == len(result.alarms)
    if result.best_round == 0:
        lq = examples(1)[0].lq
        base = nano()(lq, generator=torch.Generator().manual_seed(1), output_type="pt").images[0]
        tuned = result.restorer(device="cpu").engine.pipeline
        tuned.set_progress_bar_config(disable=True)
        again = tuned(lq, generator=torch.Generator().manual_seed(1), output_type="pt").images[0]
        assert torch.allclose(base, again, atol=1e-5)
    assert load_image(tmp_path / "reward_vs_held_out.png").shape == (3, 504, 760)
    assert load_image(tmp_path / "strip.png").shape[1] == 128 * len(looks)
    again = go()  # nothing is trained on after an alarm
    assert again.alarms == result.alarms
    assert rows_of(tmp_path, "monitor.jsonl") == looks
    recorded = replace(recipe, monitor=replace(recipe.monitor, stop=False), config=replace(recipe.config, rounds=3))
    told = tune(
        recorded, examples(), dark, tmp_path / "on", validation=smooth_examples(), pipeline=nano(), device="cpu"
    )
    assert told.rounds == told.best_round == 3
    assert json.loads((tmp_path / "on" / "result.json").read_text())["first_alarm_round"] is not None
