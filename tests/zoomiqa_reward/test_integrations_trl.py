"""Zoom-IQA as a reward function of TRL: its call form, and two steps of its own GRPOTrainer where it is installed."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from mean_reward import mean_reward
from tiny import make_image, tiny_checkpoint

from zoomiqa_reward.integrations.trl import TRLReward
from zoomiqa_reward.rewards.base import GroupwiseError
from zoomiqa_reward.rewards.composite import CompositeReward, Term


def grey(completion, row):
    """A completion that is a number stands for a grey image; others for none, as an unreadable plan does."""
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    try:
        return torch.full((3, 8, 8), float(text))
    except ValueError:
        return None


def call(fn, completions, **columns):
    """As `GRPOTrainer._calculate_rewards` calls it."""
    logged = {}
    columns |= {"trainer_state": object(), "log_extra": print, "log_metric": logged.__setitem__}
    prompts = columns.pop("prompts", ["restore"] * len(completions))
    return fn(prompts=prompts, completions=completions, completion_ids=[[1]] * len(completions), **columns), logged


def test_values_none_and_what_is_logged():
    fn = TRLReward(mean_reward(), grey)
    values, logged = call(fn, ["0.5", "7", "what?", "0.25"])
    assert values == [0.5, None, None, 0.25]  # 7 is outside [0, 1]: an image, but not measurable
    assert logged == {"mean/failed": 0.25, "mean/no_image": 0.25}
    assert fn.__name__ == "mean"
    assert call(TRLReward(mean_reward(), grey, no_image=-1.0), ["what?", "0.5"])[0] == [-1.0, 0.5]
    assert call(fn, [[{"role": "assistant", "content": "0.5"}]])[0] == [0.5]
    assert call(fn, ["what?"])[0] == [None]


def test_columns_of_the_row_reach_the_image_and_the_reward(tmp_path):
    make = TRLReward(mean_reward(needs=("lq",)), lambda completion, row: row["start"] + float(completion), lq_key="low")
    low = [torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.25)]
    values, _ = call(make, ["0.25", "0.5"], start=[torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.5)], low=low)
    assert values == pytest.approx([0.75, 1.25])
    with pytest.raises(ValueError, match=r"needs metadata\[0\]\['low'\]"):
        call(make, ["0.25"], start=[torch.zeros(3, 8, 8)])
    in_environment = TRLReward(mean_reward(), lambda completion, row: row["environment"].image)
    world = type("World", (), {"image": torch.full((3, 8, 8), 0.75)})()
    assert call(in_environment, ["done"], environments=[world])[0] == [0.75]


def test_prompts_of_conversations_and_groups():
    counts = TRLReward(mean_reward(fn=lambda image, prompt: float(len(prompt)), needs=("prompts",)), grey)
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "abcd"}]}]
    turns = [{"role": "user", "content": "abc"}]
    assert call(counts, ["0.5"] * 3, prompts=["ab", turns, parts])[0] == [2, 3, 4]
    with pytest.raises(GroupwiseError, match="within its own groups"):
        TRLReward(CompositeReward([Term(mean_reward(), 1.0, "z")]), grey)


def test_it_can_be_pickled():
    """TRL may hand its reward functions to other processes."""
    remade = pickle.loads(pickle.dumps(TRLReward(Bare(), grey, no_image=0.0)))
    assert remade.__name__ == "bare"
    assert call(remade, ["what?"])[0] == [0.0]


class Bare:
    name, score_range, differentiable, deterministic, needs = "bare", (0, 1), False, True, frozenset()

    def __call__(self, images, lq=None, hr=None, prompts=None):
        raise AssertionError("there is no image")


@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_two_steps_of_its_own_trainer(tmp_path):
    """A tiny language model writes; how many different letters it uses sets the blur of the image that is rated."""
    torch.save(make_image(3, 64, 64), tmp_path / "image.pt")
    code = """
import json, os, torch
from datasets import Dataset
from tiny import make_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from zoomiqa_reward.images.filters import gaussian_blur
from zoomiqa_reward.integrations.trl import TRLReward
from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

tokenizer = make_tokenizer()
tokenizer.padding_side = "left"
torch.manual_seed(0)
model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, head_dim=8,
    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
    eos_token_id=tokenizer.eos_token_id, bos_token_id=None, tie_word_embeddings=True))
before = model.lm_head.weight.detach().clone()
image, seen = torch.load("image.pt"), []

def image_of(completion, row):
    if len(completion) < 4:
        return None
    return gaussian_blur(image[None], 0.1 + 0.05 * (len(set(completion)) % 8))[0].clamp(0, 1)

class Watched(TRLReward):
    def __call__(self, *args, **kwargs):
        seen.append(super().__call__(*args, **kwargs))
        return seen[-1]

reward = Watched(ZoomIQAReward(ZoomIQA.from_pretrained(os.environ["MODEL"], device="cpu")), image_of, no_image=1.0)
reward.__name__ = "zoomiqa"
settings = GRPOConfig(output_dir="run", max_steps=2, per_device_train_batch_size=4, num_generations=4, use_cpu=True,
    max_completion_length=12, learning_rate=1e-2, logging_steps=1, report_to=[], bf16=False, save_strategy="no", seed=0)
trainer = GRPOTrainer(model=model, reward_funcs=reward, args=settings, processing_class=tokenizer,
    train_dataset=Dataset.from_list([{"prompt": "restore"}] * 4))
trainer.train()
log = [entry for entry in trainer.state.log_history if "rewards/zoomiqa/mean" in entry]
print(json.dumps({"logged": [entry["rewards/zoomiqa/mean"] for entry in log],
    "failed": [entry["zoomiqa/failed"] for entry in log], "seen": seen,
    "moved": float((trainer.model.lm_head.weight - before).abs().max())}))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MODEL": str(tiny_checkpoint())}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["seen"]) == 2
    assert found["logged"] == pytest.approx([sum(values) / 4 for values in found["seen"]], rel=1e-5)
    assert all(1 <= value <= 5 for values in found["seen"] for value in values)
    assert found["failed"] == [0, 0]
    assert found["moved"] > 0
