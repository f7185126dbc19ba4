"""Every recipe and every shipped configuration: it builds, its file form is itself, and a step of each trainer runs."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from conftest import ROOT
from tiny import make_image, make_tiny_checkpoint, tiny_protocol

from train_iqa import grpo, sft
from train_iqa.data import DatasetSource, IqaDataset, LabelledImage, Scale
from train_iqa.rl.config import GrpoConfig
from train_iqa.rows.conversations import Conversation, write_conversations
from train_iqa.sft import ConversationSource, SftConfig
from train_iqa.training.config import read_config
from train_iqa.training.recipes import RECIPES, own_protocol
from train_iqa.training.run_state import read_log
from zoomiqa_reward.images import save_png
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.protocol import Protocol

ARCH = {"nano": "qwen2_5_vl", "qwen2_5_vl_7b": "qwen2_5_vl", "qwen3_vl_2b": "qwen3_vl", "qwen3_vl_4b": "qwen3_vl"}
FINAL = '<think>Fine.</think><answer>{"bbox_2d": [0, 0, 0, 0], "rating": 3.25, "tool": "final"}</answer>'
CONFIGS = sorted((ROOT / "train_iqa" / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of conversations and a data set of the same images."""
    root = tmp_path_factory.mktemp("data")
    talks = [Conversation(image=make_image(k, 56, 64), rounds=(FINAL,), rating=1 + k / 2) for k in range(8)]
    write_conversations(root / "data.jsonl", talks, overwrite=True)
    images = tuple(
        LabelledImage(
            dataset="d", id=f"{k}.png", path=save_png(make_image(k, 56, 64), root / f"{k}.png"), mos=1 + k / 2,
            std=math.nan, label=k, split="training",
        )
        for k in range(8)
    )  # fmt: skip
    return root / "data.jsonl", IqaDataset(
        name="d", family="csv", root=root, scale=Scale(worst=1, best=5), images=images
    )


def test_a_recipe_for_each_model():
    assert set(RECIPES) == set(ARCH)


@pytest.mark.parametrize("name", sorted(ARCH))
def test_a_recipe_runs_one_step_of_each_trainer_on_a_tiny_model_of_its_architecture(name, data, tmp_path):
    recipe, (path, dataset) = RECIPES[name](), data
    folder = make_tiny_checkpoint(tmp_path / "model", ARCH[name])
    model = replace(recipe.sft.model, name=str(folder), device="cpu", protocol=tiny_protocol())
    sources = (ConversationSource(path=path),)
    small = {"model": model, "steps": 1, "tensorboard": False}
    tuned = sft.train(replace(recipe.sft, data=sources, out=tmp_path / "sft", rows_per_step=8, micro_rows=4, **small))
    (row,) = read_log(tmp_path / "sft")
    assert row["loss"] > 0
    assert row["grad_norm"] > 0
    # RL starts from what SFT learned
    model = replace(model, **{"adapter" if recipe.sft.tuning.is_lora else "name": str(tuned)})
    made = replace(
        recipe.grpo, out=tmp_path / "grpo", images_per_step=8, images_per_rollout=4, num_samples=2, max_new_tokens=4,
        micro_rows=8, **(small | {"model": model}),
    )  # fmt: skip
    final = grpo.train(made, [dataset])
    (row,) = read_log(tmp_path / "grpo")
    assert row["ratio_off"] < 1e-4
    assert row["mismatch"] < 1e-4
    assert row["tokens"] > 0
    assert (tmp_path / "grpo" / "pages" / "000001.html").exists()
    loaded = load_checkpoint(final, device="cpu")
    assert loaded.protocol == tiny_protocol()
    assert all(torch.isfinite(parameter).all() for parameter in loaded.model.parameters())


@pytest.mark.parametrize("name", sorted(ARCH))
def test_a_recipe_written_to_a_file_is_read_back_as_itself(name, tmp_path):
    recipe = RECIPES[name]()
    source = DatasetSource(family="csv", root=tmp_path / "a.csv", scale=Scale(worst=0, best=100))
    stages = (
        (SftConfig, replace(recipe.sft, data=(ConversationSource(path=tmp_path / "a.jsonl", weight=2.0),))),
        (GrpoConfig, replace(recipe.grpo, data=(source,))),
    )
    for kind, made in stages:
        file = tmp_path / f"{kind.__name__}.json"
        file.write_text(json.dumps(asdict(made), default=str))
        assert read_config(kind, file) == made


def test_a_file_that_breaks_a_rule_is_refused_by_name(tmp_path):
    file = tmp_path / "a.yaml"
    for text, match in (
        ("steps: many", "steps: must be of type int"),
        ("kl: {betta: 1}", "unknown field kl.betta"),
        ("data: none", "data: must be a list"),
        ("num_samples: 1", "at least 2"),
        ("learning_rate: fast", "learning_rate: must be a finite number, not 'fast'"),
        ("kl: {beta: .nan}", "kl.beta: must be a finite number, not nan"),
        ("temperature: .inf", "temperature: must be a finite number"),
        ("clip: true", "clip: must be a finite number, not True"),
        ("steps: 3\nseed: 1\nsteps: 5", "steps stands twice"),
        ("kl: {beta: 1, beta: 2}", "beta stands twice"),
        ("seed: -1", "seed=-1 must be 0 or more"),
        ("reference_dtype: int8", "reference_dtype='int8' one of float32, bfloat16, float16"),
        ("[", "not a readable"),
        ("3", "must be a mapping"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=match) as caught:
            read_config(GrpoConfig, file)
        assert str(file) in str(caught.value)
    file.write_text("learning_rate: 1e-6\nkl: {kind: none}\nout: runs/x\n")
    made = read_config(GrpoConfig, file)
    assert (made.learning_rate, made.kl.kind, made.out.name) == (1e-6, "none", "x")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("data: [{path: a.jsonl, weight: -1}]", "weight=-1.0 must be at least 0"),
        ("data: [{path: a.jsonl, weight: 0}]", "not every weight of the data 0"),
        ("seed: -1", "seed=-1 must be 0 or more"),
    ],
)
def test_sft_is_told_before_its_folder_belongs_to_a_run_that_cannot_be(tmp_path, text, match):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=match):
        read_config(SftConfig, file)


def test_our_prompts_render_and_travel(tmp_path):
    protocol = own_protocol()
    for prompt, labels in ((protocol.round1, protocol.sections1), (protocol.round2, protocol.sections2)):
        text = prompt.render("How good is it?")
        assert "How good is it?" in text
        assert '{"bbox_2d": [x1, y1, x2, y2], "rating": r, "tool": t}' in text
        assert all(label in text for label in labels)
    assert Protocol.load(protocol.save(tmp_path)) == protocol


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_shipped_configuration(path):
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(path))
    wanted = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED"}
    assert found.distributed_type.value == wanted[path.stem]
    if path.stem == "fsdp":
        from train_iqa.training.policy import LANGUAGE_LAYERS  # its layers are those of models that we know

        assert found.fsdp_config["fsdp_version"] == 2
        assert "Qwen2_5_VLDecoderLayer" in found.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
        assert "language_model" in LANGUAGE_LAYERS


def test_all_configurations_are_shipped():
    assert [path.stem for path in CONFIGS] == ["ddp", "deepspeed_zero2", "deepspeed_zero3", "fsdp"]
