"""A 7B of random weights, and what `training.py cost` measures in a process of its own."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from memory import resident_mib
from sizes_7b import SIDES_7B, TEXT_7B, VISION_7B
from training_runs import write_data

from train_iqa import grpo, sft
from train_iqa.training.recipes import own_protocol, qwen2_5_vl_7b
from zoomiqa_reward.model.checkpoint import Checkpoint, load_checkpoint


def random_7b(device: str, text: Mapping[str, Any] = TEXT_7B, vision: Mapping[str, Any] = VISION_7B) -> Checkpoint:
    """Return Qwen2.5-VL-7B with random bfloat16 weights, made on the device; nano's tokenizer, our own prompts."""
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

    nano = load_checkpoint("nano", device="cpu")
    own = nano.model.config
    ends = {name: getattr(own.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    kinds = [f"{kind}_token_id" for kind in ("image", "video", "vision_start", "vision_end")]
    tokens = {name: getattr(own, name) for name in kinds}
    text, vision = {**text, **ends}, dict(vision)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    return replace(nano, name="Qwen2.5-VL-7B, random", model=model, protocol=own_protocol())


def child(args: argparse.Namespace, out: Path, device: str = "cuda", **sizes: Any) -> None:
    """Measure in a process of its own; rows go to stderr, the result to stdout."""
    if args.child == "idle":
        _loaded = load_checkpoint("nano", device="cpu")
        print(resident_mib())
        return
    write_data(args.images, out / "data", count=16, size=SIDES_7B)
    settings: dict[str, Any] = {"rows_per_step": 16, "micro_rows": 2}
    source: Any = sft.ConversationSource(path=out / "data" / "talks.jsonl")
    if args.stage == "grpo":
        # random weights end no answer: every one has `max_new_tokens`, and none asks for a second round
        settings = {"images_per_step": 8, "images_per_rollout": 4, "num_samples": 4, "max_new_tokens": 256}
        source = grpo.DatasetSource(family="csv", root=out / "data" / "labels.csv")
    config = replace(
        getattr(qwen2_5_vl_7b(), args.stage), data=(source,), out=out / "run", steps=4, save_every=100,
        tensorboard=False, **settings,
    )  # fmt: skip
    checkpoint = random_7b(device, **sizes)
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    on_gpu = device == "cuda"
    idle = torch.cuda.memory_allocated() if on_gpu else 0
    trainer = sft if args.stage == "sft" else grpo
    with patch.object(trainer, "load_base", lambda *_: checkpoint):  # everything else is the trainer's own
        trainer.train(config)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    result = {
        "parameters": parameters, "device": torch.cuda.get_device_name() if on_gpu else device,
        "idle_mib": round(idle / 2**20), "peak_over_idle_mib": round((peak - idle) / 2**20),
        "settings": settings, "sides_px": SIDES_7B,
    }  # fmt: skip
    print(json.dumps(result))
