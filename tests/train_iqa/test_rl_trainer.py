"""One step of GRPO and a whole small run: first laws, what the KL touches, and that a continued run is the same run."""

import functools
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from test_rl_rollout import zooming_folder
from tiny import make_image

from train_iqa import grpo
from train_iqa.data import IqaDataset, LabelledImage, Scale
from train_iqa.grpo import Trainer
from train_iqa.rl import objective
from train_iqa.rl.config import GrpoConfig
from train_iqa.rl.coverage import KlConfig
from train_iqa.rl.objective import mean_over_processes, rationale, trajectory_statistics
from train_iqa.rl.rewards import RewardConfig
from train_iqa.training.learner import ModelConfig, make_accelerator, seed_of
from train_iqa.training.policy import TuningConfig
from train_iqa.training.run_state import MetricLog, read_log
from zoomiqa_reward.images import save_png
from zoomiqa_reward.model.checkpoint import load_checkpoint

LORA = TuningConfig(lora_rank=4, lora_alpha=8)
FULL = TuningConfig(lora_rank=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    images = []
    for k in range(8):
        path = save_png(make_image(k % 2, 56, 56 + 28 * (k % 2)), root / f"{k}.png")
        images.append(
            LabelledImage(
                dataset="d", id=path.name, path=path, mos=1.2 + k / 2, std=math.nan, label=k, split="training"
            )
        )
    return IqaDataset(name="d", family="csv", root=root, scale=Scale(worst=1, best=5), images=tuple(images))


def config(out, **options):
    fields = {
        "model": ModelConfig(name=str(zooming_folder()), device="cpu"), "tuning": LORA, "out": out, "steps": 2,
        "images_per_step": 2, "images_per_rollout": 2, "num_samples": 4, "max_new_tokens": 110, "micro_rows": 4,
        "learning_rate": 1e-3, "warmup_steps": 0, "rewards": RewardConfig(rank=0.0), "save_every": 1, "page_every": 0,
        "tensorboard": False, "reference_dtype": "float32", "kl": KlConfig(share=0.05),
    }  # fmt: skip
    return GrpoConfig(**(fields | options))


def trainer_of(made, dataset):
    return Trainer(made, [dataset.images], make_accelerator(made.model))


@functools.cache
def generation(dataset_images, tuning):
    """A trainer with its first generation batch, priced and with its held tokens, and what was measured."""
    made = config("unused", tuning=tuning)
    trainer = Trainer(made, [dataset_images], make_accelerator(made.model))
    batch = trainer.generate(0)
    batch.old, _ = trainer.logprobs_and_entropies(trainer.model, batch.rows)
    return trainer, batch, trainer.hold(batch, 0)


@pytest.mark.integration
@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_before_any_update_the_ratio_is_1_and_the_kl_0(dataset, tuning):
    trainer, made, held = generation(dataset.images, tuning)
    assert len(made.rows) > 8  # of 8 trajectories, some zoomed
    for old, sampled in zip(made.old, made.sampled, strict=True):
        assert (old - sampled).abs().max() < 1e-4
    seen = {"ratio_off": 0.0, "clipped": 0.0}
    for group in trainer._batches(made.rows)[0]:
        trainer.part_loss(made, group, 1.0, seen)
    assert seen["ratio_off"] < 1e-4
    assert seen["clipped"] == 0
    assert held["held_tokens"] >= 1
    assert abs(held["held_kl"]) < 1e-7
    assert held["held_tokens"] == held["held_likely_good"]
    for old, reference, tokens in zip(made.old, made.reference, made.held, strict=True):
        assert torch.allclose(old[tokens], reference[tokens], atol=1e-5)


@pytest.mark.integration
def test_the_trainer_reads_a_prompt_once_and_finds_what_rows_of_their_own_find(dataset, monkeypatch):
    trainer, made, _ = generation(dataset.images, LORA)
    read = []

    def passes(shares):
        monkeypatch.setattr(trainer, "shares", shares)
        read.clear()
        seen = {"ratio_off": 0.0, "clipped": 0.0}
        loss = sum(trainer.part_loss(made, group, 1.0, seen) for group in trainer._batches(made.rows)[0])
        loss.backward()
        gradients = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
        trainer.model.zero_grad()
        return loss, gradients, sum(read)

    hook = trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        (loss, gradients, few), (plain, expected, many) = passes(True), passes(False)
    finally:
        hook.remove()
    assert few < 0.8 * many
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-5)
    largest = max(float(one.abs().max()) for one in expected)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * largest)


@pytest.mark.integration
def test_only_readable_trajectories_earn_and_every_row_knows_its_own(dataset):
    _, made, _ = generation(dataset.images, LORA)
    flat = [one for group in made.groups for one in group]
    owners = [k for k, one in enumerate(flat) for _ in one.turns]
    assert made.row_advantages.tolist() == [made.advantages.flatten()[k] for k in owners]
    assert made.row_weights.tolist() == [1 / len(flat[k].turns) for k in owners]
    for k, one in enumerate(flat):
        if not one.assessment.valid:
            assert made.rewards["total"].flatten()[k] == 0
    assert made.advantages.abs().max() > 0.5  # something is to be learned


@pytest.mark.integration
@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_the_kl_has_no_gradient_outside_its_mask(dataset, tuning):
    """With all advantages 0 the loss is the KL alone: nothing held, no gradient; one token held, that token's.

    For the token: beta x weight / (tokens x total) x d k3 / d theta, with d k3 / d logp = 1 - exp(ref - logp).
    """
    trainer, made, _ = generation(dataset.images, tuning)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    quiet = replace(
        made, row_advantages=torch.zeros(len(made.rows)), reference=[old + 0.3 for old in made.old],
        held=[torch.zeros(len(old), dtype=torch.bool) for old in made.old],
    )  # fmt: skip
    seen = {"ratio_off": 0.0, "clipped": 0.0}

    def gradients(loss):
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    found = gradients(trainer.part_loss(quiet, [0, 1], 5.0, seen))
    assert all(g is None or not g.any() for g in found)
    place = int(made.old[1].argmin())  # an unlikely token has a gradient worth looking at
    quiet.held[1][place] = True
    found = gradients(trainer.part_loss(quiet, [0, 1], 0.05, seen))
    batch, logprobs, _ = trainer._logprobs(trainer.model, [made.rows[0], made.rows[1]])
    factor = float(made.row_weights[1]) / (int(batch.mask[1].sum()) * 0.05) * (1 - math.exp(0.3))
    wanted = gradients(factor * logprobs[1, place])
    assert any(g is not None and g.abs().max() > 1e-4 for g in wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize(("tuning", "rate"), [(LORA, 1e-2), (FULL, 1e-3)], ids=["lora", "full"])
def test_an_update_makes_good_trajectories_likelier_and_leaves_the_reference_where_it_was(
    dataset, tmp_path, tuning, rate
):
    trainer = trainer_of(config(tmp_path, tuning=tuning, kl=KlConfig(share=1.0, beta=1e-6), updates=6), dataset)
    made = trainer.generate(0)
    made.old, _ = trainer.logprobs_and_entropies(trainer.model, made.rows)
    still = trainer.hold(made, 0)["held_kl"]
    trainer.update(made, rate)
    after, _ = trainer.logprobs_and_entropies(trainer.model, made.rows)
    gains = torch.stack([(new - old).mean() for new, old in zip(after, made.old, strict=True)])
    assert float((gains * made.row_advantages * made.row_weights).sum()) > 0
    with trainer.reference.active() as model:
        initial, _ = trainer.logprobs_and_entropies(model, made.rows)
    for first, old in zip(initial, made.old, strict=True):
        assert torch.allclose(first, old, atol=1e-5)
    moved = trainer.hold(replace(made, old=after), 0)["held_kl"]
    assert moved > 1e-6 > 100 * still  # the policy has moved away from it


@pytest.mark.integration
def test_every_token_counts_where_that_is_asked_for(dataset, tmp_path):
    made = trainer_of(config(tmp_path, count_tokens=True, images_per_step=2), dataset).generate(0)
    assert made.row_weights.tolist() == [len(row.completion_ids) for row in made.rows]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kl", "has_reference"),
    [
        (KlConfig(kind="none", clip_cov=True), False),
        (KlConfig(kind="all", beta=0.04), True),
        (KlConfig(quadrant="all", reference="old"), False),
    ],
    ids=["clip-cov", "all", "kl-cov"],
)
def test_ablations_run_a_step_and_log_what_shows_collapse(dataset, tmp_path, kl, has_reference):
    trainer = trainer_of(config(tmp_path, kl=kl, tuning=FULL, updates=2), dataset)
    assert (trainer.reference is not None) == has_reference
    _, values = trainer.step(0)
    held = {"none": 0, "all": values["tokens"], "coverage": max(1, int(2e-3 * values["tokens"]))}
    assert values["held_tokens"] == held[kl.kind]
    assert math.isfinite(values["loss"])
    assert values["ratio_off"] > 1e-4  # of the second update
    for name in ("entropy", "rating_std", "distinct_rationales", "zooms", "covariance", "unreadable", "reward_total"):
        assert math.isfinite(values[name]), name
    assert 0 < values["zooms"] <= 1
    assert values["entropy"] > 0


@pytest.mark.integration
def test_a_continued_run_is_the_uninterrupted_one_bit_for_bit(dataset, tmp_path, monkeypatch):
    folder = grpo.train(config(tmp_path / "whole", page_every=1), [dataset])
    real = Trainer.step

    def dies_at_1(trainer, step):
        if step == 1:
            raise KeyboardInterrupt
        return real(trainer, step)

    monkeypatch.setattr(Trainer, "step", dies_at_1)
    with pytest.raises(KeyboardInterrupt):
        grpo.train(config(tmp_path / "parts"), [dataset])
    monkeypatch.setattr(Trainer, "step", real)
    grpo.train(config(tmp_path / "parts"), [dataset])
    rows = [read_log(tmp_path / name) for name in ("whole", "parts")]
    timed = ("generate_s", "train_s", "tokens_per_s")
    for a, b in zip(*rows, strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {k: v for k, v in b.items() if k not in timed}
    assert [row["step"] for row in rows[0]] == [1, 2]
    assert rows[0][0]["grad_norm"] > 0
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts")]
    for name, values in states[0]["weights"].items():
        assert torch.equal(values, states[1]["weights"][name]), name
    assert any(values.any() for name, values in states[0]["weights"].items() if "lora_B" in name)
    tuned = load_checkpoint(zooming_folder(), device="cpu", adapter=folder)
    assert tuned.protocol == load_checkpoint(zooming_folder(), device="cpu").protocol
    page = (tmp_path / "whole" / "pages" / "000001.html").read_text()
    assert page.count("<article>") == 8
    assert page.count("alt='crop'") == page.count("round 2 looked at") > 0
    assert "&lt;think&gt;" in page
    assert "<think>" not in page


def test_images_follow_step_and_schedule_alone(dataset, tmp_path):
    made = config(tmp_path, steps=5, images_per_step=8, rewards=RewardConfig())
    first, second = trainer_of(made, dataset), trainer_of(made, dataset)
    for step in (0, 4):
        assert first.draw(step) == second.draw(step)
        assert len({image.id for image in first.draw(step)}) == 8
    assert seed_of(1, 2) != seed_of(2, 1)


def test_statistics_show_a_collapse(dataset):
    _, made, _ = generation(dataset.images, LORA)
    group = list(made.groups[0])
    valid = next(one for one in group if one.assessment.valid)
    found = trajectory_statistics([[valid] * 4])
    assert found["rating_std"] == [0]
    assert found["distinct_rationales"] == [0.25]
    assert found["zooms"] == [float(len(valid.turns) == 2)] * 4
    other = replace(valid, assessment=replace(valid.assessment, rating=valid.assessment.rating - 2, turns=()))
    found = trajectory_statistics([[valid, other]])
    assert found["rating_std"] == pytest.approx([math.sqrt(2)])
    assert found["distinct_rationales"] == [1]
    assert rationale(valid.assessment)[0] in valid.assessment.turns[0].text


def test_means_weigh_every_value_alike_wherever_it_was_measured(monkeypatch):
    """Process 1 measured 3 values and process 2 one: (1 + 1 + 1 + 5) / 4, not the processes' means' (1 + 5) / 2."""
    monkeypatch.setattr(objective, "gather_object", lambda own: [*own, {"spread": [5.0], "none": []}])
    found = mean_over_processes({"spread": [1.0, 1.0, 1.0], "none": []})
    assert found["spread"] == 2
    assert math.isnan(found["none"])


def test_the_log_is_cut_where_a_run_continues_and_keeps_small_numbers(tmp_path, capsys):
    with MetricLog(tmp_path, resumed_at=0, tensorboard=False) as log:
        for step in (1, 2, 3):
            log.write(step, {"rate": 1.23456789e-6, "std": math.nan})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 4, "ra')  # killed here
    with MetricLog(tmp_path, resumed_at=2, tensorboard=False) as log:
        log.write(3, {"rate": 2.0})
    assert read_log(tmp_path) == [
        {"step": 1, "rate": 1.23457e-6, "std": None}, {"step": 2, "rate": 1.23457e-6, "std": None},
        {"step": 3, "rate": 2.0},
    ]  # fmt: skip
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 4
    with MetricLog(tmp_path / "other", resumed_at=0, is_main=False) as log:
        log.write(1, {"rate": 1.0})
    assert not (tmp_path / "other").exists()


def test_tensorboard_events_are_written(tmp_path):
    pytest.importorskip("tensorboard", reason="comes with basicsr-fixed of [restoration]")
    with MetricLog(tmp_path, resumed_at=0) as log:
        log.write(1, {"rate": 1.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.stat().st_size > 50


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_samples": 1}, "at least 2"),
        ({"rewards": RewardConfig()}, "at least 8 images"),
        ({"tuning": TuningConfig(lora_dropout=0.1)}, "lora_dropout"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_break_the_method_are_refused(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        config(tmp_path, **options)


def test_the_command_line_says_what_is_missing(tmp_path, capsys):
    assert grpo.main(["--recipe", "nano", "--out", str(tmp_path / "a"), "--device", "cpu"]) == 1
    assert "koniq=DIR" in capsys.readouterr().err
    assert grpo.main(["--recipe", "nano", "--data", "photos", "--out", str(tmp_path / "a")]) == 1
    assert "FAMILY=PATH" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_are_one_process(dataset, tmp_path):
    """The same images, samples, rewards and losses; sums in another order."""
    table = "\n".join(["image,mos", *(f"{image.id},{image.mos}" for image in dataset.images)])
    (dataset.root / "all.csv").write_text(table + "\n")
    for processes in (1, 2):
        text = {
            "model": {"name": str(zooming_folder()), "device": "cpu"}, "tuning": {"lora_rank": 4, "lora_alpha": 8},
            "out": str(tmp_path / str(processes)), "steps": 2, "images_per_step": 2, "images_per_rollout": 1,
            "num_samples": 4, "max_new_tokens": 110, "micro_rows": 4, "learning_rate": 1e-3,
            "rewards": {"rank": 0.0}, "tensorboard": False, "kl": {"share": 0.05}, "part": "all",
            "data": [{"family": "csv", "root": str(dataset.root / "all.csv")}],
        }  # fmt: skip
        (tmp_path / "run.json").write_text(json.dumps(text))
        # with --cpu accelerate starts one process, whatever the number; the configuration keeps them on the CPU
        kind = ["--cpu"] if processes == 1 else ["--multi_gpu", "--main_process_port", "0"]
        launch = [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes", str(processes)]
        command = [*launch, "-m", "train_iqa.grpo", str(tmp_path / "run.json")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads((tmp_path / str(processes) / "run.json").read_text())["processes"] == processes
    rows = [read_log(tmp_path / name) for name in ("1", "2")]
    for a, b in zip(*rows, strict=True):
        for name in set(a) - {"generate_s", "train_s", "tokens_per_s"}:
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name
