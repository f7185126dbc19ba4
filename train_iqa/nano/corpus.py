"""The tokenizer of nano, from the words of the protocol: prompts and answers about drawn damage."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from train_iqa.nano.build import build_tokenizer
from train_iqa.nano.degradations import degrade, sample_box, sample_steps
from train_iqa.nano.rationale import answer1, answer2
from zoomiqa_reward.model.turns import round1, round2
from zoomiqa_reward.protocol import Protocol

RECORDS = 4000
UNTOUCHED_EVERY = 20


def answers_about_damage(protocol: Protocol, count: int, seed: int) -> list[str]:
    """Return prompts and answers of both rounds for `count` drawn records; the image behind them is noise."""
    rng, none, texts = np.random.default_rng(seed), torch.empty(0), []
    image = rng.random((48, 48, 3), dtype=np.float32)
    for number in range(count):
        steps = () if number % UNTOUCHED_EVERY == 0 else sample_steps(rng)
        _, record = degrade(image, steps, rng, sample_box(rng) if number % 2 else None)
        label, guess = (float(value) for value in rng.uniform(1, 5, 2))
        box = tuple(f"{edge:.2f}" for edge in record.box) if record.box else None
        first = answer1(record, guess, f"{guess:.2f}", box)
        question = protocol.questions[int(rng.integers(0, len(protocol.questions)))]
        for asked in (round1(protocol, none, question), round2(protocol, none, none, first, question)):
            for message in asked.messages:
                texts.append(str(message["role"]) + "\n" + "".join(item.get("text", "") for item in message["content"]))
        texts += [first, answer2(record, label, f"{label:.2f}", guess)]
    return texts


def make_tokenizer(protocol: Protocol, seed: int, count: int = RECORDS) -> PreTrainedTokenizerFast:
    """Return the tokenizer trained on answers about `count` drawn records."""
    return build_tokenizer(answers_about_damage(protocol, count, seed))
