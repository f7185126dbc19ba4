"""SFT: what is learned and what is not, in which order, and that a continued run is the same run."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from tiny import make_image, make_tiny_checkpoint, tiny_checkpoint

from train_iqa import sft
from train_iqa.nano.degradations import DamageRecord, Step
from train_iqa.nano.labels import LabelScale
from train_iqa.nano.synthetic import Sample
from train_iqa.rows.completions import answer_logprobs, collate_completions, complete, micro_batches
from train_iqa.rows.conversations import (
    Conversation,
    ConversationError,
    read_conversations,
    synthetic_conversations,
    write_conversations,
)
from train_iqa.rows.turn_rows import DIRECT, ROUND1, ROUND2, build_row, estimate_length, fitting_protocol, plan_rows
from train_iqa.sft import ConversationSource, SftConfig, train
from train_iqa.training.learner import ModelConfig
from train_iqa.training.policy import TuningConfig
from train_iqa.training.run_state import read_log
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.direct import trie_of
from zoomiqa_reward.model.generate import Completion, Sampling
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.reason import assess_batch
from zoomiqa_reward.model.turns import round1
from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.protocol import Protocol, level_words

ZOOM = '<think>Soft.</think><answer>{"bbox_2d": [0.1, 0.2, 0.6, 0.7], "rating": 3.25, "tool": "crop"}</answer>'
FINAL = '<think>Fine.</think><answer>{"bbox_2d": [0, 0, 0, 0], "rating": 3.25, "tool": "final"}</answer>'


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(tiny_checkpoint(), device="cpu")


def talk(seed=0, rounds=(ZOOM, FINAL), rating=3.25):
    return Conversation(image=make_image(seed, 56, 84), rounds=rounds, rating=rating)


def data_file(folder, count=5):
    folder.mkdir(exist_ok=True)
    talks = [talk(seed, (ZOOM, FINAL) if seed % 2 else (FINAL,), rating=2 + seed / 4) for seed in range(count)]
    write_conversations(folder / "data.jsonl", talks, overwrite=True)
    return folder / "data.jsonl"


def config(tmp_path, name="run", **options):
    fields = {
        "model": ModelConfig(name=str(tiny_checkpoint()), device="cpu"),
        "tuning": TuningConfig(lora_rank=4, lora_alpha=8), 
        "data": (ConversationSource(path=data_file(tmp_path / "d")),),
        "out": tmp_path / name, "steps": 4, "rows_per_step": 4, "micro_rows": 2, "learning_rate": 5e-3,
        "warmup_steps": 1, "tensorboard": False, "save_every": 2,
    }  # fmt: skip
    return SftConfig(**(fields | options))


@pytest.mark.parametrize(("kind", "text"), [(ROUND1, ZOOM), (ROUND2, FINAL)])
def test_exactly_the_answer_is_learned(checkpoint, kind, text):
    row = build_row(checkpoint, trie_of(checkpoint), talk(), kind)
    other = build_row(checkpoint, trie_of(checkpoint), talk(rounds=(FINAL,)), ROUND1)
    batch = collate_completions(checkpoint, [row, other])
    end = checkpoint.tokenizer.eos_token_id
    for place, (one, wanted) in enumerate(((row, text), (other, FINAL))):
        learned = batch.completion_ids[place][batch.targets[place]].tolist()
        assert learned == [*checkpoint.tokenizer(wanted, add_special_tokens=False)["input_ids"], end]
        # The whole sequence is prompt and answer, and nothing of the prompt is among the answer's columns.
        kept = batch.inputs["attention_mask"][place].bool()
        assert batch.inputs["input_ids"][place][kept].tolist() == [*one.prompt.input_ids.tolist(), *learned]
    assert not batch.inputs["mm_token_type_ids"][:, -batch.completion_ids.shape[1] :].any()
    assert torch.equal(batch.targets, batch.mask)


@pytest.mark.parametrize("question", [None, "Is it sharp?"])
def test_rows_ask_what_inference_asks(checkpoint, question):
    """The same tokens and pixels in both rounds, the crop of round 1's box among them."""
    example, asked = replace(talk(), question=question), []

    def respond(requests, sampling):
        asked.extend(requests)
        return [Completion(text=example.rounds[len(asked) - 1], is_truncated=False)]

    assess_batch(checkpoint.protocol, [example.image], respond, question=question, rounds=2, sampling=Sampling())
    kinds = (ROUND1, ROUND2, DIRECT)
    rows = [build_row(checkpoint, trie_of(checkpoint), example, kind).prompt for kind in kinds]
    for row, request in zip(rows, [*asked, asked[0]], strict=True):
        wanted = make_row(checkpoint, request)
        for name in ("input_ids", "pixel_values", "image_grid_thw"):
            assert torch.equal(getattr(row, name), getattr(wanted, name)), name


def test_the_protocols_beginning_of_an_answer_belongs_to_the_request(checkpoint):
    starts = FINAL[:6], FINAL[:4]
    begun = replace(checkpoint, protocol=replace(checkpoint.protocol, answer_starts=starts))
    plain, row = (build_row(one, trie_of(one), talk(rounds=(FINAL,)), ROUND1) for one in (checkpoint, begun))
    learned = checkpoint.tokenizer.decode(row.completion_ids[row.targets].tolist()[:-1])
    assert learned == FINAL[6:]
    assert len(row.prompt.input_ids) > len(plain.prompt.input_ids)
    with pytest.raises(ValueError, match="round 2: the answer must begin with"):
        build_row(begun, trie_of(begun), talk(rounds=(ZOOM, FINAL.replace("<think>", "<Think>"))), ROUND2)
    assert fitting_protocol(begun.protocol, [talk(rounds=(FINAL,))]) == begun.protocol
    other = [talk(rounds=(FINAL,)), talk(rounds=("<answer>" + FINAL[6:],))]
    assert fitting_protocol(begun.protocol, other) == checkpoint.protocol


@pytest.mark.integration
@pytest.mark.parametrize("start", ["<think>", "<think>The photo"])
def test_the_policys_protocol_begins_what_was_learned_to_be_begun(tmp_path, start):
    protocol = tmp_path / "begun.json"
    replace(load_checkpoint(tiny_checkpoint(), device="cpu").protocol, answer_starts=(start, "<think>")).save(protocol)
    model = ModelConfig(name=str(tiny_checkpoint()), device="cpu", protocol=str(protocol))
    policy = sft.train(config(tmp_path, model=model, steps=1))
    assert Protocol.load(policy).answer_starts == ((start, "<think>") if start == "<think>" else ())


def test_a_model_that_answers_in_level_words_is_refused(tmp_path):
    protocol = tmp_path / "levels.json"
    level_words().save(protocol)
    changed = config(tmp_path, model=ModelConfig(name=str(tiny_checkpoint()), protocol=str(protocol)))
    with pytest.raises(ValueError, match="without reasons"):
        train(changed)


def test_a_separator_inside_a_text_does_not_end_the_line(tmp_path):
    text = FINAL.replace("<think>", "<think>\u2028\u0085")
    write_conversations(tmp_path / "talks.jsonl", [talk(rounds=(text,))])
    assert [found.rounds for found in read_conversations(tmp_path / "talks.jsonl")] == [(text,)]


def test_a_wordless_row_learns_the_rating_alone(checkpoint):
    row = build_row(checkpoint, trie_of(checkpoint), talk(rating=4.5), DIRECT)
    learned = checkpoint.tokenizer.decode(row.completion_ids[row.targets].tolist())
    assert learned == "4.50"
    assert checkpoint.tokenizer.decode(row.completion_ids.tolist()) == checkpoint.protocol.direct_prefix + "4.50"
    assert checkpoint.tokenizer.eos_token_id not in row.completion_ids.tolist()


def test_log_probabilities_are_those_of_a_plain_forward_pass(checkpoint):
    row = build_row(checkpoint, trie_of(checkpoint), talk(), ROUND2)
    batch = collate_completions(checkpoint, [row, build_row(checkpoint, trie_of(checkpoint), talk(), ROUND1)])
    alone = collate_completions(checkpoint, [row])
    with torch.no_grad():
        found, entropy = answer_logprobs(checkpoint.model, batch, entropy=True)
        logits = checkpoint.model(**alone.inputs).logits[0]
    start = row.prompt.input_ids.shape[0]
    for place, token in enumerate(row.completion_ids.tolist()):
        distribution = torch.distributions.Categorical(logits=logits[start + place - 1])
        assert float(found[0, place]) == pytest.approx(float(distribution.log_prob(torch.tensor(token))), abs=1e-4)
        assert float(entropy[0, place]) == pytest.approx(float(distribution.entropy()), abs=1e-4)


@pytest.mark.integration
def test_the_loss_is_the_mean_over_the_answers_tokens_whatever_the_micro_batches(tmp_path):
    logs = []
    for size in (1, 2, 4):
        sft.train(config(tmp_path, f"micro{size}", micro_rows=size, steps=2))
        logs.append(read_log(tmp_path / f"micro{size}"))
    for other in logs[1:]:
        for a, b in zip(logs[0], other, strict=True):
            assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-4)


@pytest.mark.integration
def test_a_continued_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    tuning = TuningConfig(lora_rank=4, lora_alpha=8, lora_dropout=0.1)
    sft.train(config(tmp_path, "whole", tuning=tuning))
    planned, killed = sft._Plan.step, []

    def dies_once(plan, step, micro_rows):
        if step == 3 and not killed:
            killed.append(step)
            raise KeyboardInterrupt
        return planned(plan, step, micro_rows)

    monkeypatch.setattr(sft._Plan, "step", dies_once)
    with pytest.raises(KeyboardInterrupt):
        sft.train(config(tmp_path, "parts", tuning=tuning))
    assert len(read_log(tmp_path / "parts")) == 3  # one row more than is saved: it must not stand there twice
    sft.train(config(tmp_path, "parts", tuning=tuning))
    losses = [[row["loss"] for row in read_log(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    # one step of warm-up, then a cosine from 1 to 0.02: at a third and at two thirds 0.02 + 0.98 x 0.75 and x 0.25
    rates = [5e-3 * share for share in (1, 1, 0.755, 0.265)]
    assert [row["learning_rate"] for row in read_log(tmp_path / "parts")] == pytest.approx(rates)
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts")]
    for name, values in states[0]["weights"].items():
        assert torch.equal(values, states[1]["weights"][name]), name
    with pytest.raises(ValueError, match="learning_rate was"):
        sft.train(config(tmp_path, "parts", tuning=tuning, learning_rate=1e-3))
    again = config(tmp_path, "parts", tuning=tuning)
    file = again.data[0].path
    image = next(file.parent.rglob("*.png"))
    pixels = image.read_bytes()
    image.write_bytes(pixels + b"more")  # the same JSONL about another image
    with pytest.raises(ValueError, match=r"contents\.data was"):
        sft.train(again)
    image.write_bytes(pixels)
    file.write_bytes(b"".join(reversed(file.read_bytes().splitlines(keepends=True))))  # other bytes, the same name
    with pytest.raises(ValueError, match=r"contents\.data was"):
        sft.train(again)


@pytest.mark.integration
@pytest.mark.parametrize("train_tower", [False, True])
def test_full_tuning_learns_leaves_a_frozen_tower_alone_and_loads(tmp_path, train_tower):
    tuning = TuningConfig(lora_rank=0, train_tower=train_tower, gradient_checkpointing=True)
    folder = sft.train(config(tmp_path, tuning=tuning, steps=12, direct_share=0.0, save_every=12))
    log = read_log(tmp_path / "run")
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    before, after = load_checkpoint(tiny_checkpoint(), device="cpu"), load_checkpoint(folder, device="cpu")
    changed = {
        name for (name, a), (_, b) in zip(before.model.named_parameters(), after.model.named_parameters(), strict=True)
        if not torch.equal(a, b)
    }  # fmt: skip
    assert any("language_model" in name for name in changed)
    assert any("visual" in name for name in changed) == train_tower
    assert after.protocol == before.protocol


@pytest.mark.integration
@pytest.mark.parametrize("train_tower", [False, True])
def test_lora_is_saved_as_an_adapter_that_inference_loads(tmp_path, train_tower):
    tuning = TuningConfig(lora_rank=2, lora_alpha=4, train_tower=train_tower)
    folder = sft.train(config(tmp_path, tuning=tuning, steps=1, save_every=1))
    names = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["weights"]
    assert all("lora_" in name for name in names)
    assert any("visual" in name for name in names) == train_tower
    plain = ZoomIQA.from_pretrained(tiny_checkpoint(), device="cpu")
    tuned = ZoomIQA.from_pretrained(tiny_checkpoint(), device="cpu", adapter=folder)
    assert tuned.rate(make_image()).mean != plain.rate(make_image()).mean


def test_data_sets_are_mixed_by_weight_in_shuffled_epochs():
    """Sizes 2 and 4 at weights 1 and 0.5: equal shares. In 8 draws the first comes round twice, the second once."""
    plan = plan_rows([2, 4], [1.0, 0.5], 8, seed=1)
    assert plan[:, 0].tolist() == [0, 1] * 4
    assert sorted(plan[plan[:, 0] == 1, 1].tolist()) == [0, 1, 2, 3]
    assert [sorted(plan[plan[:, 0] == 0, 1].tolist()[k : k + 2]) for k in (0, 2)] == [[0, 1], [0, 1]]
    assert len({tuple(plan_rows([9], [1.0], 27, seed=0)[k : k + 9, 1]) for k in (0, 9, 18)}) == 3  # no order twice
    counts = np.bincount(plan_rows([30, 30], [3.0, 1.0], 100, seed=0)[:, 0])
    assert counts.tolist() == [75, 25]
    with pytest.raises(ValueError, match="not all 0"):
        plan_rows([3], [0.0], 4, seed=0)


def test_wordless_rows_are_a_share_of_all(tmp_path, checkpoint):
    made = config(tmp_path, direct_share=0.25, steps=None, epochs=4)
    plan = sft._Plan(made, [read_conversations(made.data[0].path)], checkpoint)
    kinds = [row.kind for step in range(plan.steps) for group in plan.step(step, 2) for row in group]
    # 5 images of which 2 zoom: 7 rows with words, 4 times, are three quarters of 37.3.
    assert plan.steps == 10
    assert kinds.count(DIRECT) == 10
    assert 8 <= kinds.count(ROUND2) <= 10  # 4 epochs of 2, and 2 rows of a fifth epoch


def test_rows_of_like_length_go_together(checkpoint):
    assert micro_batches([9, 1, 8, 2], 2) == [[1, 3], [2, 0]]
    one = talk()
    lengths = [estimate_length(checkpoint, one, kind) for kind in (DIRECT, ROUND1, ROUND2)]
    assert lengths == sorted(lengths)


def test_conversations_come_back_from_their_file(tmp_path):
    path = data_file(tmp_path / "data")
    found = read_conversations(path)
    assert [one.rating for one in found] == [2.0, 2.25, 2.5, 2.75, 3.0]
    assert [len(one.rounds) for one in found] == [1, 2, 1, 2, 1]
    with Image.open(found[1].image) as image:
        assert image.size == (84, 56)


def test_a_mark_before_utf8_is_no_part_of_the_first_line(tmp_path):
    path = data_file(tmp_path / "data", count=2)
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as Windows' editors write it
    assert len(read_conversations(path)) == 2


def test_all_problems_of_a_file_come_in_one_error(tmp_path):
    path = data_file(tmp_path / "data", count=1)
    good = json.loads(path.read_text())
    rows = [
        good, good | {"image": "../a.png"}, good | {"image": "none.png"}, good | {"rating": 7}, good | {"rounds": []},
        good | {"rounds": ["It is soft."]},
        good | {"rounds": [FINAL, FINAL]}, good | {"mood": 1}, good | {"rating": "3"},
        good | {"rating": 10**400}, good | {"image": "a" * 5000}, good | {"rounds": [f"\ud83d{FINAL}"]},
    ]  # fmt: skip
    path.write_text("\n".join([*map(json.dumps, rows), "[" * 200_000, "1" * 5000, "{"]) + "\n")
    with pytest.raises(ConversationError) as caught:
        read_conversations(path)
    lines = str(caught.value).splitlines()
    assert "14 problems" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == [f"line {k}" for k in range(2, 16)]


@pytest.mark.parametrize(
    ("rounds", "why"),
    [
        ([FINAL.replace("3.25", "72")], "round 1 holds the rating 72: must be a number in 1..5"),
        ([ZOOM, FINAL.replace("3.25", "-1")], "round 2 holds the rating -1"),
        ([ZOOM.replace("<think>", "<think><|image_pad|>"), FINAL], r"round 1 cannot be read.*spells <\|image_pad\|>"),
        ([FINAL + FINAL.replace("3.25", "2")], "round 1 holds 2 answers: leave one"),
    ],
)
def test_what_inference_would_refuse_is_not_taught(rounds, why):
    assert "3.25" in FINAL
    with pytest.raises(ConversationError, match=why):
        Conversation(image=make_image(), rounds=tuple(rounds), rating=3.0)


def test_an_answer_may_hold_no_image_token(checkpoint):
    with pytest.raises(ValueError, match="image_pad"):
        complete(checkpoint, round1(checkpoint.protocol, make_image()), "look: <|image_pad|>")


def test_synthetic_samples_become_conversations():
    def sample(box, score):
        return Sample(
            image=np.full((56, 84, 3), 99, dtype=np.uint8), scores=np.full(3, score, dtype=np.float32),
            local=np.zeros((2, 3), dtype=np.float32), bands=np.zeros((2, 3, 6), dtype=np.float16),
            record=DamageRecord(steps=(Step(kind="gaussian_blur", severity=0.8, params={}),), box=box),
        )  # fmt: skip

    knots = tuple(np.linspace(0, 1, 5).tolist())
    scale = LabelScale(knots=dict.fromkeys(("haarpsi", "mdsi", "vsi"), knots))
    even, local = synthetic_conversations([sample(None, 0.25), sample((0.1, 0.2, 0.5, 0.6), 0.75)], scale)
    assert (even.rating, local.rating) == pytest.approx((2.0, 4.0))
    assert (len(even.rounds), len(local.rounds)) == (1, 2)
    assert "[0.10, 0.20, 0.50, 0.60]" in local.rounds[0]
    assert "soft blur" in even.rounds[0]


def test_the_command_line_reads_a_file_and_names_what_is_wrong(tmp_path, capsys):
    made = config(tmp_path)
    text = {
        "model": {"name": str(make_tiny_checkpoint(tmp_path / "m")), "device": "cpu"}, "out": str(tmp_path / "cli"),
        "tuning": {"lora_rank": 2, "lora_alpha": 4}, "data": [{"path": str(made.data[0].path)}], "steps": 1,
        "rows_per_step": 2, "micro_rows": 2, "learning_rate": "1e-3", "tensorboard": False,
    }  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(text))
    assert sft.main([str(file)]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "cli" / "policy")
    assert '"loss"' in err
    file.write_text(json.dumps(text | {"tuning": {"rank": 3}}))
    assert sft.main([str(file)]) == 1
    assert "unknown field tuning.rank" in capsys.readouterr().err


@pytest.mark.integration
def test_weight_decay_and_seed_reach_the_learner(tmp_path, monkeypatch):
    asked = []

    def stop(checkpoint, accelerator, tuning, **options):
        asked.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "make_learner", stop)
    with pytest.raises(KeyboardInterrupt):
        sft.train(config(tmp_path, weight_decay=0.3, seed=4))
    assert asked == [{"weight_decay": 0.3, "seed": 4}]


@pytest.mark.slow
def test_two_processes_are_one_process_with_twice_the_micro_batches(tmp_path):
    made = config(tmp_path)
    for processes in (1, 2):
        text = {
            "model": {"name": str(tiny_checkpoint()), "device": "cpu"}, "out": str(tmp_path / str(processes)),
            "tuning": {"lora_rank": 4, "lora_alpha": 8}, "data": [{"path": str(made.data[0].path)}], "steps": 4,
            "rows_per_step": 4, "micro_rows": 1, "learning_rate": 5e-3, "tensorboard": False,
        }  # fmt: skip
        (tmp_path / "run.json").write_text(json.dumps(text))
        # with --cpu accelerate starts one process, whatever the number; the configuration keeps them on the CPU
        kind = ["--cpu"] if processes == 1 else ["--multi_gpu", "--main_process_port", "0"]
        launch = [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes", str(processes)]
        command = [*launch, "-m", "train_iqa.sft", str(tmp_path / "run.json")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads((tmp_path / str(processes) / "run.json").read_text())["processes"] == processes
    for a, b in zip(*(read_log(tmp_path / name) for name in ("1", "2")), strict=True):
        assert a["target_tokens"] == b["target_tokens"]
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-3)
