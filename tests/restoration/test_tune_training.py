"""Tuning as a whole on a toy restorer: every algorithm learns, resumes and leaves a restorer."""

import contextlib
import importlib
import io
import json
import math
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_tune_denoisers import nano

from restoration.restorer.restorer import Restorer
from restoration.selection.best_of_n import best_of_n
from restoration.tuning import Example, MonitorConfig, Recipe, TuneConfig, tune
from restoration.tuning.algorithms.dpo import DPO
from restoration.tuning.algorithms.groups import NothingLearned, TooManyFailures
from restoration.tuning.algorithms.grpo import GRPO
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.pairs import pairs_from_best_of_n, read_pairs, write_pairs
from restoration.tuning.algorithms.reward_gradient import RewardGradient
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.algorithms.supervised import Supervised
from restoration.tuning.context import Tuning
from restoration.tuning.denoisers.base import denoiser_of
from restoration.tuning.denoisers.nano import NanoDenoiser
from restoration.tuning.lora import load_lora, tuners
from restoration.tuning.sampler.denoising import random_noise, truth_error
from restoration.tuning.trainer import _settings
from zoomiqa_reward.rewards.consensus import ConsensusReward
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.runs.settings import changes
from zoomiqa_reward.runs.training_folder import RunFolder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of libraries, while pipelines are saved
]


def brightness(image):
    return image.mean()


def reward_of(fn=brightness, **options):
    return MetricReward(fn, "brightness", True, (0, 1), differentiable=True, **options)


def examples(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Example(name=str(k), lq=lq, hr=torch.nn.functional.interpolate(lq[None], scale_factor=4)[0])
        for k, lq in enumerate(0.2 + 0.6 * torch.rand(count, 3, 12, 12, generator=generator))
    ]


def recipe_of(algorithm, **changes):
    settings = {
        "rounds": 3, "images_per_round": 2, "num_samples": 4, "crop_px": 8, "steps": 4, "lora_rank": 4, "lora_alpha": 8,
        "learning_rate": 3e-3, "save_every": 1, "ema_decay": 0.0, "rows_at_once": 4,
    }  # fmt: skip
    monitor = MonitorConfig(every=2, crop_px=8, metrics=("psnr_y",))
    config = TuneConfig(**(settings | changes))
    return Recipe(name="toy", source="nano", algorithm=algorithm, config=config, reward=reward_of, monitor=monitor)


def run(algorithm, out, reward=None, **changes):
    return tune(recipe_of(algorithm, **changes), examples(), reward or reward_of(), out, validation=None,
                pipeline=nano(), device="cpu")  # fmt: skip


def rows_of(folder, name="log.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


ALGORITHMS = {
    "grpo": (GRPO(loss_steps=1), {"learning_rate": 1e-2}),
    "nft": (NFT(), {}),
    "sft": (SFT(), {}),
    "dpo": (DPO(), {"learning_rate": 1e-3}),
    "reward_gradient": (RewardGradient(grad_steps=2, low_frequency=0.1), {"num_samples": 2, "truth_weight": 0.1}),
}  # `supervised` has no reward to raise


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_leaves_a_restorer_with_a_better_reward(name, tmp_path):
    algorithm, changes = ALGORITHMS[name]
    result = run(algorithm, tmp_path, rounds=5, **changes)
    assert result.rounds == result.best_round == 5
    lq = examples()[0].lq
    base = Restorer.from_pretrained(nano(), device="cpu", **result.restorer_options)
    tuned = result.restorer(device="cpu")
    means = [
        float(torch.stack([one.image for one in restorer.restore(lq, range(6))]).mean()) for restorer in (base, tuned)
    ]
    assert means[1] > means[0] + 1e-4
    rows = rows_of(tmp_path)
    assert all(math.isfinite(row["loss"]) for row in rows)
    if name == "grpo":  # one update a round: each loss is at the policy that drew it
        assert {row["ratio_error"] for row in rows} == {0}
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["updates"] == 5
    assert saved["seconds"] > 0


def test_a_terminal_shows_how_far_a_run_is(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    run(DPO(), tmp_path / "a", rounds=2)
    shown = sys.stderr.getvalue()
    assert re.search(r"toy, rounds .* 2/2", shown)
    assert "2/2" in shown
    assert re.search(r"pairs .* 3/3", shown)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    run(DPO(), tmp_path / "b", rounds=2)
    assert "\x1b[" not in sys.stderr.getvalue()


@pytest.mark.parametrize("name", ["nft", "dpo", "sft"])
def test_a_loss_noises_candidates_as_the_sampler_did(name, tmp_path, monkeypatch):
    algorithm, changes = ALGORITHMS[name]
    module, seen = importlib.import_module(f"restoration.tuning.algorithms.{name}"), []

    def seen_noise(like, generator, temperature=1.0):
        noise = random_noise(like, generator, temperature)
        seen.append(float(noise.std()))
        return noise

    monkeypatch.setattr(module, "random_noise", seen_noise)
    run(algorithm, tmp_path, **(changes | {"temperature": 0.25, "rounds": 1}))
    assert seen
    assert seen == pytest.approx([0.25] * len(seen), rel=0.1)


def test_the_truths_error_is_zero_for_a_network_that_knows_them(monkeypatch, tmp_path):
    """v = alpha noise - sigma x0 and x_t = alpha x0 + sigma noise, so v = (alpha x_t - x0) / sigma."""
    run(SFT(), tmp_path / "a", truth_weight=0.5, rounds=1)
    assert rows_of(tmp_path / "a")[0]["truth"] > 0.01

    def knowing(self, x_t, time, condition):
        bars = self.pipeline.scheduler.alphas_cumprod[time].view(-1, 1, 1, 1)
        truth = torch.nn.functional.interpolate(condition.lq, scale_factor=4)
        return (bars.sqrt() * x_t - self.encode_target(truth, condition)) / (1 - bars).sqrt()

    monkeypatch.setattr(NanoDenoiser, "predict", knowing)
    denoiser, one = denoiser_of(nano()), examples(1)[0]
    tuning = Tuning(
        denoiser=denoiser, reward=reward_of(), examples=[one], config=TuneConfig(temperature=0.5), folder=tmp_path,
        share=None, device=torch.device("cpu"), autocast=contextlib.nullcontext,
    )  # fmt: skip
    assert float(truth_error(tuning, one, 8, torch.Generator().manual_seed(0))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("algorithm", "weight"), [(Supervised(), 0.0), (NFT(), 100.0)])
def test_truths_at_the_samplers_own_states_bring_restorations_nearer_to_them(algorithm, weight, tmp_path):
    result = run(algorithm, tmp_path, truth_states="sampled", truth_weight=weight, rounds=12, learning_rate=1e-2)
    base = Restorer.from_pretrained(nano(), device="cpu", **result.restorer_options)
    errors = []
    for restorer in (base, result.restorer(device="cpu")):
        pairs = [(made.image, one.hr) for one in examples() for made in restorer.restore(one.lq, range(4))]
        errors.append(float(torch.stack([(image - hr).square().mean() for image, hr in pairs]).mean()))
    assert errors[1] < 0.97 * errors[0]
    assert all(row["truth"] > 0 for row in rows_of(tmp_path))


def test_truths_that_are_missing_are_named(tmp_path):
    blind = [Example(name="blind", lq=examples(1)[0].lq, hr=None)]
    with pytest.raises(ValueError, match="blind has no ground truth"):
        tune(recipe_of(NFT(), truth_weight=1.0), blind, reward_of(), tmp_path, validation=None, pipeline=nano())


def test_only_the_layers_that_are_named_are_tuned(tmp_path):
    result = run(NFT(), tmp_path / "a", lora_targets=("conv_in",), rounds=1)
    names = load_file(result.folder / "lora/pytorch_lora_weights.safetensors")
    assert {name.split(".lora_")[0] for name in names} == {"unet.conv_in"}
    fresh = denoiser_of(nano())
    load_lora(fresh, result.folder / "lora")
    assert len(tuners(fresh.module)) == 1
    with pytest.raises(ValueError, match=r"no layer whose name ends with conv_inn"):
        run(NFT(), tmp_path / "b", lora_targets=("conv_inn",))


@pytest.mark.parametrize("name", ["grpo", "nft", "dpo"])
def test_killed_and_resumed_is_the_same_curve(name, tmp_path):
    algorithm, changes = ALGORITHMS[name]
    changes = changes | {"save_every": 2, "ema_decay": 0.9}
    whole = run(algorithm, tmp_path / "whole", **changes)

    log = RunFolder.log

    def log_until_killed(self, row):
        if row["round"] == 3:
            raise KeyboardInterrupt
        log(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "log", log_until_killed)
        with pytest.raises(KeyboardInterrupt):
            run(algorithm, tmp_path / "halves", **changes)
    halves = run(algorithm, tmp_path / "halves", **changes)
    assert (halves.folder / "log.jsonl").read_text() == (whole.folder / "log.jsonl").read_text()
    files = [folder / "lora/pytorch_lora_weights.safetensors" for folder in (whole.folder, halves.folder)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [row["round"] for row in rows_of(halves.folder)] == [1, 2, 3]
    with pytest.raises(ValueError, match="holds another run"):
        run(algorithm, tmp_path / "halves", **(changes | {"learning_rate": 1.0}))


def test_another_scheduler_and_other_pairs_under_the_same_name_are_another_run(tmp_path):
    pairs = tmp_path / "pairs.parquet"

    def settings(steps=100, content=b"a"):
        pairs.write_bytes(content)
        pipeline = nano()
        pipeline.scheduler.register_to_config(num_train_timesteps=steps)
        made = _settings(recipe_of(DPO(pairs_file=pairs)), pipeline, pipeline.unet, reward_of(), examples(), None)
        return json.loads(json.dumps(made))

    assert changes(settings(), settings()) == []
    assert [line.split()[0] for line in changes(settings(), settings(steps=50))] == ["beside.scheduler"]
    assert [line.split()[0] for line in changes(settings(), settings(content=b"b"))] == ["pairs"]


def test_dpo_may_mind_the_winners_own_error_too(tmp_path):
    """Before the first update the comparison is the same, and the losses differ by the weight times that error."""
    losses = [rows_of(run(DPO(winner_weight=weight), tmp_path / str(weight), rounds=1).folder)[0]["loss"]
              for weight in (0.0, 2.0, 4.0)]  # fmt: skip
    assert losses[1] > losses[0]
    assert losses[2] - losses[0] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-4)
    with pytest.raises(ValueError, match="winner_weight at least 0"):
        DPO(winner_weight=-1.0)


def test_reward_gradient_refuses_a_reward_without_one(tmp_path):
    plain = MetricReward(lambda image: float(image.mean()), "plain", True, (0, 1))
    with pytest.raises(ValueError, match="'plain' is not differentiable"):
        run(RewardGradient(), tmp_path / "a", plain)
    cut = reward_of(lambda image: image.detach().mean())
    with pytest.raises(ValueError, match="cut the graph"):
        run(RewardGradient(), tmp_path / "b", cut)
    endless = MetricReward(brightness, "endless", True, (0, math.inf), differentiable=True)
    with pytest.raises(ValueError, match="give tau"):
        run(RewardGradient(), tmp_path / "c", endless)


def test_failed_scores_are_dropped_and_too_many_stop_the_run(tmp_path):
    calls = []

    def sometimes(image):
        calls.append(1)
        return image.mean() * (math.nan if len(calls) % 8 == 0 else 1.0)

    result = run(SFT(), tmp_path / "a", reward_of(sometimes, fingerprint="sometimes"), max_failure_rate=0.2)
    assert [row["failed"] for row in rows_of(result.folder)] == [1, 1, 1]
    with pytest.raises(RuntimeError, match="could not be scored"):
        run(SFT(), tmp_path / "b", reward_of(lambda image: image.mean() * math.nan, fingerprint="never"))


def test_scores_that_fail_inside_the_loss_stop_the_run_too(tmp_path):
    """The reward gradient asks for its scores in the loss, so no round collects them."""

    def failing(every):
        calls = []

        def measured(image):
            calls.append(1)
            return image.mean() * (math.nan if len(calls) % every == 0 else 1.0)

        return MetricReward(measured, "failing", True, (0, 1), differentiable=True, fingerprint=f"failing {every}")

    result = run(RewardGradient(), tmp_path / "a", failing(8), max_failure_rate=0.2)
    assert [(row["failed"], row["empty"]) for row in rows_of(result.folder)] == [(1, 0)] * 3
    for every in (1, 2):
        with pytest.raises(TooManyFailures, match="of 8 candidates could not be scored"):
            run(RewardGradient(), tmp_path / str(every), failing(every), max_failure_rate=0.2)


def test_a_ground_truth_of_another_size_is_named_before_the_work(tmp_path):
    halved = [replace(one, hr=one.hr[:, ::2, ::2]) for one in examples()]
    with pytest.raises(ValueError, match=r"has 24 x 24 px, and the pipeline makes 48 x 48, 4 times"):
        tune(recipe_of(SFT()), halved, reward_of(), tmp_path / "a", validation=None, pipeline=nano(), device="cpu")
    assert not (tmp_path / "a").exists()


def test_a_reward_without_the_text_that_it_needs_is_refused_before_the_work(tmp_path):
    texts = MetricReward(lambda image, prompts: image.mean(), "texts", True, (0, 1), needs=("prompts",))
    with pytest.raises(ValueError, match=r"reward 'texts' needs prompts, and .* has none: give load_examples"):
        tune(recipe_of(SFT()), examples(), texts, tmp_path / "a", validation=None, pipeline=nano(), device="cpu")
    assert not (tmp_path / "a").exists()


def test_a_run_that_made_no_update_is_no_success(tmp_path):
    constant = reward_of(lambda image: image.mean() * 0 + 0.5, fingerprint="constant")
    for _ in range(2):  # nor is the finished one that is asked for again
        with pytest.raises(NothingLearned, match="3 rounds and no update"):
            run(GRPO(), tmp_path, constant)
    assert [row["tied_groups"] for row in rows_of(tmp_path)] == [2, 2, 2]
    assert not (tmp_path / "result.json").exists()


def test_checkpointing_offload_and_bf16_run(tmp_path):
    class Network(torch.nn.Module):
        name, higher_is_better, score_range = "network", True, (0.0, 1.0)
        differentiable, deterministic, fingerprint, needs = False, True, "network", frozenset()

        def forward(self, images, lq=None, hr=None, prompts=None):
            return reward_of()(images)

    result = run(
        NFT(), tmp_path, Network(), offload=True, gradient_checkpointing=True, mixed_precision="bf16", rounds=1
    )
    assert math.isfinite(rows_of(result.folder)[0]["loss"])
    with pytest.raises(ValueError, match="no network was found"):
        run(NFT(), tmp_path / "b", offload=True)


def test_pairs_from_a_best_of_n_folder_are_learned(tmp_path):
    one = examples(1)[0]
    best_of_n(Restorer.from_pretrained(nano(), device="cpu", steps=4), one.lq, reward_of(), n=8, out=tmp_path / "bon",
              progress=False)  # fmt: skip
    pairs = pairs_from_best_of_n(tmp_path / "bon", one.lq)
    assert len(pairs) == 4
    assert min(p.score_winner for p in pairs) > max(p.score_loser for p in pairs)
    best_of_n(Restorer.from_pretrained(nano(), device="cpu", steps=4), one.lq, ConsensusReward(reward_of(), 1e-3), n=8,
              out=tmp_path / "agreed", progress=False)  # fmt: skip
    assert len(pairs_from_best_of_n(tmp_path / "agreed", one.lq)) == 4  # its scores come after the last candidate
    with pytest.raises(ValueError, match="another image"):
        pairs_from_best_of_n(tmp_path / "bon", one.lq.flip(2))
    file = write_pairs(tmp_path / "pairs.parquet", pairs)
    recipe = recipe_of(DPO(pairs_file=file), rounds=1)
    result = tune(recipe, [one], reward_of(), tmp_path / "run", validation=None, pipeline=nano(), device="cpu")
    assert rows_of(result.folder)[0]["pairs"] == 4
    assert rows_of(result.folder)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # no update yet: no margin
    with pytest.raises(ValueError, match="no training image has the hash"):
        tune(
            recipe, examples(2, seed=5), reward_of(), tmp_path / "other", validation=None, pipeline=nano(), device="cpu"
        )


def test_mined_pairs_lie_in_the_run_folder(tmp_path):
    run(DPO(), tmp_path, rounds=1, num_samples=8)
    pairs, header = read_pairs(tmp_path / "pairs.parquet")
    assert len(pairs) == 3 * 4
    assert header["reward"] == "brightness"
    assert all(one.score_winner > one.score_loser for one in pairs)
    assert len({one.lr_hash for one in pairs}) == 3


TWO_PROCESSES = """
import os, pathlib, sys
import torch
from restoration.tuning.trainer import _Run
from test_tune_training import NFT, run
out, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
kept = []
finish = _Run._finish
_Run._finish = lambda self, *given: (kept.append(self.policy.state_dict()), finish(self, *given))[1]
run(NFT(), out, rounds=2, images_per_round=2)
torch.save(kept[0], out.parent / f"{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_hold_one_model(tmp_path):
    """Each process draws its own images; the gradients are summed, so both end with the same weights."""
    program = tmp_path / "program.py"
    program.write_text(TWO_PROCESSES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [ROOT, ROOT / "tests", ROOT / "tests" / "support", ROOT / "tests" / "restoration"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, program, tmp_path / "run"], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                         stdout=subprocess.DEVNULL, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    rows = rows_of(tmp_path / "run")
    assert [row["round"] for row in rows] == [1, 2]
    assert json.loads((tmp_path / "run/result.json").read_text())["updates"] == 2
    assert rows[0]["kept"] == 8  # of both processes
    [one, other] = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert all(torch.equal(one[name], other[name]) for name in one)
