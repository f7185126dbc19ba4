"""Recipes: full configurations of SFT and RL as functions, ready to be varied with `dataclasses.replace`.

The data sets' places are the only thing left open: `--data`, or `replace(recipe.sft, data=...)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from train_iqa.nano.rationale import DIRECT_PREFIX, nano_protocol
from train_iqa.rl.config import GrpoConfig
from train_iqa.rl.coverage import KlConfig
from train_iqa.training.learner import ModelConfig
from train_iqa.training.policy import TuningConfig
from train_iqa.training.sft_config import SftConfig
from zoomiqa_reward.protocol import Decoding, Prompt, Protocol, ViewPolicy

KONIQ_TRAINING = 7058
"""Images of KonIQ-10k's official training split, which the paper trains on."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """The two stages; RL starts from what SFT learned (`--adapter`, or `--model` after full tuning)."""

    sft: SftConfig
    grpo: GrpoConfig


def own_protocol() -> Protocol:
    """Return our own prompts for models that we train; the official model was trained on others."""
    form = (
        "First think inside <think>, in four labelled parts: {parts}. Tie every claim to a region. Then answer inside "
        '<answer> with {{{{"bbox_2d": [x1, y1, x2, y2], "rating": r, "tool": t}}}}, coordinates as shares 0..1 of the '
        "image's sides. "
    )
    parts1 = "Image Quality Summary, Directions for Improvement, Issues to Avoid, Decision & Rationale"
    parts2 = "Crop Inspection Summary, Directions for Improvement, Issues to Avoid, Final Decision & Rationale"
    zoom = 'If you are not sure, name the region that you want to see enlarged and set t to "crop"; otherwise write '
    return Protocol(
        name="zoomiqa-own",
        round1=Prompt(text="{question} " + form.format(parts=parts1) + zoom + 'four zeros and set t to "final".'),
        round2=Prompt(
            text="You asked to look closer: here are the image and the enlarged region. {question} "
            + form.format(parts=parts2)
            + 'Write four zeros and set t to "final".'
        ),
        questions=nano_protocol().questions,
        direct_prefix=DIRECT_PREFIX,
        views=ViewPolicy.whole(),
        decoding=Decoding(max_new_tokens=1024),
    )


def nano() -> TrainingRecipe:
    """The embedded model on a CPU: all weights of the language side, a frozen copy as the reference."""
    tuning = TuningConfig(lora_rank=0)
    model = ModelConfig(name="nano")
    return TrainingRecipe(
        sft=SftConfig(
            model=model, tuning=tuning, out=Path("runs/nano-sft"), steps=400, rows_per_step=32, micro_rows=8,
            learning_rate=2e-4, save_every=50,
        ),
        grpo=GrpoConfig(
            model=model, tuning=tuning, out=Path("runs/nano-grpo"), steps=200, images_per_step=8, images_per_rollout=8,
            num_samples=6, max_new_tokens=256, micro_rows=8, learning_rate=2e-5, reference_dtype="float32",
            save_every=10, page_every=20,
        ),
    )  # fmt: skip


def qwen2_5_vl_7b() -> TrainingRecipe:
    """The paper's scale: Qwen2.5-VL-7B on 8 GPUs of 80 GB, 10 epochs of RL over KonIQ's training split.

    LoRA of rank 64. For all weights: `TuningConfig(lora_rank=0, gradient_checkpointing=True)` under
    `train_iqa/configs/fsdp.yaml` or `deepspeed_zero3.yaml`.
    """
    model = ModelConfig(name="Qwen/Qwen2.5-VL-7B-Instruct", protocol=own_protocol())
    tuning = TuningConfig(lora_rank=64, lora_alpha=128, gradient_checkpointing=True)
    images_per_step = 64
    return TrainingRecipe(
        sft=SftConfig(
            model=model, tuning=tuning, out=Path("runs/qwen2_5_vl_7b-sft"), epochs=3, rows_per_step=64, micro_rows=2,
            learning_rate=1e-4,
        ),
        grpo=GrpoConfig(
            model=model, tuning=tuning, out=Path("runs/qwen2_5_vl_7b-grpo"),
            steps=10 * KONIQ_TRAINING // images_per_step, images_per_step=images_per_step, images_per_rollout=4,
            num_samples=8, max_new_tokens=1024, micro_rows=8, learning_rate=1e-6, kl=KlConfig(share=2e-3, beta=1.0),
        ),
    )  # fmt: skip


def qwen3_vl_2b() -> TrainingRecipe:
    """Qwen3-VL-2B on one GPU of 24 GB: LoRA, one epoch of RL."""
    return _one_gpu("Qwen/Qwen3-VL-2B-Instruct", "qwen3_vl_2b", micro_rows=2, images_per_rollout=2)


def qwen3_vl_4b() -> TrainingRecipe:
    """Qwen3-VL-4B on one GPU of 24 GB: LoRA, one epoch of RL."""
    return _one_gpu("Qwen/Qwen3-VL-4B-Instruct", "qwen3_vl_4b", micro_rows=1, images_per_rollout=1)


def _one_gpu(name: str, short: str, *, micro_rows: int, images_per_rollout: int) -> TrainingRecipe:
    # 1024 x 768 px, KonIQ's size, is 768 tokens of 32 px
    model = ModelConfig(name=name, protocol=replace(own_protocol(), max_pixels=1024 * 768))
    tuning = TuningConfig(lora_rank=64, lora_alpha=128, gradient_checkpointing=True)
    return TrainingRecipe(
        sft=SftConfig(
            model=model, tuning=tuning, out=Path(f"runs/{short}-sft"), epochs=2, rows_per_step=32,
            micro_rows=micro_rows, learning_rate=1e-4,
        ),
        grpo=GrpoConfig(
            model=model, tuning=tuning, out=Path(f"runs/{short}-grpo"), steps=KONIQ_TRAINING // 8, images_per_step=8,
            images_per_rollout=images_per_rollout, num_samples=6, max_new_tokens=768, micro_rows=micro_rows,
            learning_rate=1e-5,
        ),
    )  # fmt: skip


RECIPES: dict[str, Callable[[], TrainingRecipe]] = {
    "nano": nano,
    "qwen2_5_vl_7b": qwen2_5_vl_7b,
    "qwen3_vl_2b": qwen3_vl_2b,
    "qwen3_vl_4b": qwen3_vl_4b,
}
