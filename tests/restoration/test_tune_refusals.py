"""Settings with which a run would learn nothing, or something else than it says, are refused before the work."""

import json
import math
import warnings
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_pipelines
import torch
from test_tune_denoisers import nano
from test_tune_training import examples, recipe_of, reward_of, rows_of, run

from restoration.tuning import MonitorConfig, TuneConfig, load_examples, tune
from restoration.tuning.algorithms.dpo import DPO
from restoration.tuning.algorithms.grpo import GRPO
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.reward_gradient import RewardGradient
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.algorithms.supervised import Supervised
from restoration.tuning.denoisers.base import denoiser_of, pad_to
from restoration.tuning.lora import add_lora, tuners
from restoration.tuning.monitor.monitor import Monitor, Reading
from restoration.tuning.progress import Mean, merged
from restoration.tuning.requirements import warn_unsaved
from restoration.tuning.trainer import _settings
from zoomiqa_reward.errors import NoReward
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.runs.folder import locked
from zoomiqa_reward.runs.settings import changes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries, while pipelines are saved


@pytest.mark.parametrize("algorithm", [GRPO(), NFT()])
def test_what_compares_candidates_needs_two(algorithm):
    with pytest.raises(ValueError, match=r"num_samples=1: (grpo|nft) compares the candidates of an image"):
        algorithm.prepare(SimpleNamespace(config=TuneConfig(num_samples=1)))


@pytest.mark.parametrize(("rows", "samples"), [(1, 4), (4, 1), (3, 4)])
def test_a_gradient_of_a_comparison_needs_two_in_each_pass(rows, samples):
    compared = CompositeReward([Term(reward_of(), 1.0, "z")])
    tuning = SimpleNamespace(reward=compared, config=TuneConfig(rows_at_once=rows, num_samples=samples))
    with pytest.raises(ValueError, match=f"num_samples={samples} by rows_at_once={rows} one would be alone"):
        RewardGradient(tau=3.0).prepare(tuning)
    tuning.config = TuneConfig(rows_at_once=2, num_samples=4)
    RewardGradient(tau=3.0).prepare(tuning)
    alone = CompositeReward([Term(reward_of(), 1.0, "raw")])
    RewardGradient(tau=3.0).prepare(SimpleNamespace(reward=alone, config=TuneConfig(rows_at_once=1)))


@pytest.mark.parametrize(
    ("kind", "field"),
    [(TuneConfig, "learning_rate"), (TuneConfig, "truth_weight"), (TuneConfig, "eta"), (MonitorConfig, "deviations"),
     (MonitorConfig, "max_kl"), (GRPO, "kl"), (NFT, "beta"), (DPO, "winner_weight"), (RewardGradient, "tau")],
)  # fmt: skip
def test_a_number_that_is_none_or_endless_is_named(kind, field):
    """It would pass each comparison with a bound: a monitor with such a limit never alarms."""
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"{field}={value}: must be finite"):
            kind(**{field: value})
    for value in ("0.5", True):
        with pytest.raises(ValueError, match=rf"{field}={value!r}: must be a number"):
            kind(**{field: value})


@pytest.mark.parametrize(
    ("kind", "field"),
    [(TuneConfig, "rounds"), (TuneConfig, "crop_px"), (MonitorConfig, "every"), (GRPO, "loss_steps"),
     (DPO, "pairs_per_image"), (SFT, "top"), (RewardGradient, "grad_steps")],
)  # fmt: skip
def test_a_count_is_a_whole_number_of_any_library(kind, field):
    for value in (9.5, math.nan, True, "9"):
        with pytest.raises(ValueError, match=rf"{field}={value!r}: must be a whole number"):
            kind(**{field: value})
    assert type(getattr(kind(**{field: np.int64(9)}), field)) is int


def test_settings_of_numpy_are_pythons_and_seeds_are_torchs():
    config = TuneConfig(seed=np.uint32(7), learning_rate=np.float32(0.5), eta=1)
    assert json.loads(json.dumps(asdict(config)))["seed"] == 7
    assert config.learning_rate == 0.5
    assert TuneConfig(seed=2**64 - 1).seed == 2**64 - 1
    with pytest.raises(ValueError, match=r"seed=18446744073709551616: must be below 2\^64"):
        TuneConfig(seed=2**64)
    with pytest.raises(ValueError, match="crop_px=7: must be at least 8"):
        MonitorConfig(crop_px=7)


needs_truth = MetricReward(lambda image, hr: float((image - hr).abs().mean()), "far", False, (0, 1), needs=("hr",))


def degraded_otherwise(example):
    return replace(example, lq=example.lq * 0.9)


@pytest.mark.parametrize(
    ("algorithm", "changes", "options", "words"),
    [
        (NFT(), {"num_samples": 1}, {}, "num_samples=1: nft compares"),
        (SFT(top=4), {}, {}, "top=4 of 4 candidates"),
        (SFT(), {"eta": 1.5}, {}, r"eta=1\.5: step \d would add more noise"),
        (GRPO(), {"eta": 0.0}, {}, r"grpo with eta=0\.0: no step is random"),
        (GRPO(), {"steps": 1}, {}, r"grpo with eta=1\.0: no step is random"),
        (SFT(), {"lora_targets": ("conv_inn",)}, {}, "no layer whose name ends with conv_inn"),
        (SFT(), {}, {"validation": examples(3, seed=1)}, "3 validation images: at least 4"),
        (SFT(), {}, {"validation": [*examples(4, seed=1), examples()[2]]}, "validation image 2 is one of those to"),
        (SFT(), {}, {"validation": [*examples(4, seed=1), degraded_otherwise(examples()[2])]}, "image 2 is one of"),
        (Supervised(), {}, {"examples": [replace(one, hr=None) for one in examples()]}, "0 has no ground truth"),
        (SFT(), {}, {"examples": [replace(one, hr=None) for one in examples()], "reward": needs_truth}, "needs hr"),
    ],
)
def test_a_refused_call_leaves_no_run_and_no_adapters(tmp_path, algorithm, changes, options, words):
    """Else the corrected call would be another run than the one that its folder holds."""
    given = {"examples": examples(), "reward": reward_of(), "validation": None} | options
    pipeline = nano()
    with pytest.raises(ValueError, match=words):
        tune(recipe_of(algorithm, **changes), out=tmp_path / "run", pipeline=pipeline, device="cpu", **given)
    assert not (tmp_path / "run").exists()
    assert not tuners(pipeline.unet)


def test_examples_hold_pixels_without_a_graph():
    """A sharpened image is made by scipy, which takes no tensor with a graph."""
    lq = torch.rand(3, 8, 8, requires_grad=True)
    [one] = load_examples([(lq, torch.rand(3, 32, 32, requires_grad=True))])
    assert not one.lq.requires_grad
    assert not one.hr.requires_grad


def test_a_folder_in_which_another_run_works_is_refused(tmp_path):
    pytest.importorskip("fcntl")
    with locked(tmp_path), pytest.raises(ValueError, match="another process works in it"):
        run(SFT(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".zoomiqa"]


def test_what_is_no_reward_is_named_before_the_work(tmp_path):
    with pytest.raises(NoReward, match="float is no reward"):
        tune(recipe_of(SFT()), examples(), 0.5, tmp_path / "a", validation=None, pipeline=nano(), device="cpu")
    assert not (tmp_path / "a").exists()


def test_loss_steps_of_0_are_not_all_steps():
    with pytest.raises(ValueError, match="loss_steps=0: must be at least 1, or None"):
        GRPO(loss_steps=0)
    assert GRPO(loss_steps=None).loss_steps is None


def test_endings_that_fit_no_layer_are_named():
    with pytest.raises(ValueError, match=r"no layer whose name ends with conv_inn, conv3: give"):
        add_lora(denoiser_of(nano()), 2, 2, targets=("conv1", "conv_inn", "conv3"))


def test_networks_that_adapters_do_not_reach_are_refused(tmp_path):
    compiled, fused = tiny_pipelines.sd_x4(), tiny_pipelines.sd_x4()
    compiled.unet = torch.compile(compiled.unet, backend="eager")
    fused.unet.fuse_qkv_projections()
    for pipeline, words in ((compiled, "unet is compiled"), (fused, "unet computes with fused projections")):
        with pytest.raises(ValueError, match=words):
            tune(recipe_of(SFT(top=1)), examples(), reward_of(), tmp_path / "run", validation=None, pipeline=pipeline)
        assert not (tmp_path / "run").exists()


def test_what_no_saved_pipeline_holds_is_named():
    pipeline = tiny_pipelines.sd_x4()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unsaved(pipeline)
        pipeline.enable_attention_slicing(1)  # other last bits, the same images
        warn_unsaved(pipeline)
    pipeline.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    with pytest.warns(UserWarning, match=r"unet has up_blocks\.0\.b1, .* the saved pipeline makes other images"):
        warn_unsaved(pipeline)


def test_padding_never_cuts():
    assert pad_to(torch.rand(1, 3, 4, 5), 6, 5).shape == (1, 3, 6, 5)
    for size in ((3, 8), (8, 4)):
        with pytest.raises(ValueError, match=rf"5 x 4 px cannot be padded to {size[1]} x {size[0]}"):
            pad_to(torch.rand(1, 3, 4, 5), *size)


# Several processes


def two_processes(monkeypatch):
    state = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True, device=torch.device("cpu"))
    monkeypatch.setattr("restoration.tuning.trainer.processes", lambda device: state)


def test_a_round_that_cannot_be_shared_out_is_refused(monkeypatch, tmp_path):
    two_processes(monkeypatch)
    with pytest.raises(ValueError, match=r"images_per_round=3: must be a multiple of the 2 processes"):
        tune(recipe_of(SFT(), images_per_round=3), examples(), reward_of(), tmp_path, validation=None)


def test_another_number_of_processes_is_another_run():
    pipeline = nano()

    def settings(count):
        made = _settings(recipe_of(SFT()), pipeline, pipeline.unet, reward_of(), examples(), None, count)
        return json.loads(json.dumps(made))

    assert changes(settings(2), settings(2)) == []
    assert changes(settings(2), settings(4)) == ["processes was 2, now 4"]
    assert changes(settings(1), settings(2)) == ["processes was not set, now 2"]


def test_a_rounds_report_is_of_all_processes():
    reports = [
        {"kept": 3, "score": Mean(1.0, 1), "kl": 0.5},
        {"kept": 1, "score": Mean(2.0, 3), "kl": 1.5},
        {"kept": 0},
    ]
    assert merged(reports) == {"kept": 4, "score": 1.75, "kl": 1.0}
    assert merged(reports[:1]) == reports[0]


@pytest.mark.integration
def test_the_reward_in_the_result_is_that_of_its_weights(monkeypatch, tmp_path):
    """An alarm that is only recorded leaves the last round, whatever look was the best."""
    rewards = iter([0.9, 0.5])

    def look(self):
        return Reading(values={"reward": next(rewards)}, alarms=(), images=self.draw())

    monkeypatch.setattr(Monitor, "look", look)
    for stop, wanted in ((False, (2, 0.5)), (True, (1, 0.9))):
        rewards = iter([0.9, 0.5])
        recipe = recipe_of(SFT(), rounds=2)
        recipe = replace(recipe, monitor=replace(recipe.monitor, every=1, stop=stop))
        out = tmp_path / str(stop)
        tune(recipe, examples(), reward_of(), out, validation=examples(4, seed=1), pipeline=nano(), device="cpu")
        result = json.loads((out / "result.json").read_text())
        assert (result["best_round"], result["best_reward"]) == wanted
        assert rows_of(out, "monitor.jsonl")[wanted[0]]["reward"] == wanted[1]
