"""The model that learns: LoRA or all weights, vision tower frozen or not; how it is prepared, asked and saved.

SFT and RL use this alike. The loaded checkpoint is frozen; here a part of it is made trainable.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.runs.outputs import part_folder

LANGUAGE_LAYERS = r".*language_model.*\.(\w+_proj|in_proj_\w+)"
TOWER_LAYERS = r".*visual\.(blocks|merger|deepstack_merger_list).*\.(qkv|proj|\w+_proj|(linear_)?fc[12]|mlp\.[02])"
"""Linear layers that get LoRA, all but the output head; names of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5."""


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Which weights learn."""

    lora_rank: int = 64
    """Rank of the LoRA on every linear layer; 0: all weights learn."""
    lora_alpha: int = 128
    lora_dropout: float = 0.0
    """RL needs 0: recomputed log-probabilities must be the sampled ones."""
    train_tower: bool = False
    """Whether the vision tower learns too."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        if self.lora_rank < 0 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_rank={self.lora_rank} must be at least 0, lora_alpha={self.lora_alpha} above 0, "
                f"lora_dropout={self.lora_dropout} in [0, 1)"
            )

    @property
    def is_lora(self) -> bool:
        """Whether an adapter learns rather than the weights themselves."""
        return self.lora_rank > 0


def make_trainable(model: nn.Module, config: TuningConfig) -> nn.Module:
    """Return the model with the right weights trainable: a PeftModel, or the same model.

    The adapter starts as nothing (its second matrix is zero). Raises ValueError where no layer has a known name.
    """
    if config.gradient_checkpointing:
        _checkpoint_activations(model)
    if not config.is_lora:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(config.train_tower or "visual" not in name)
        return model
    from peft import LoraConfig, get_peft_model

    targets = f"({LANGUAGE_LAYERS}|{TOWER_LAYERS})" if config.train_tower else LANGUAGE_LAYERS
    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with warnings.catch_warnings():
        # peft's own use of an older name of transformers, as in zoomiqa_reward.model.checkpoint
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, lora)


def _checkpoint_activations(model: Any) -> None:
    if hasattr(model, "activation_checkpointing_enable"):  # the newer name in transformers; the older one warns
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that learn, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def plain_model(accelerator: Accelerator, model: nn.Module) -> Any:
    """Return the transformers model itself, with LoRA layers inside, free of wrappers."""
    inner = accelerator.unwrap_model(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


@contextmanager
def answering(checkpoint: Checkpoint, accelerator: Accelerator, model: nn.Module) -> Iterator[Checkpoint]:
    """Yield the checkpoint with the learning model in eval mode, each process able to call it as often as it likes.

    Processes write different numbers of second rounds, so no exchange between them may hide in a forward pass: with
    FSDP (version 2) and ZeRO-3 every process holds all weights meanwhile.
    """
    was_training = model.training
    model.eval()
    try:
        with _whole(accelerator, model):
            yield replace(checkpoint, model=plain_model(accelerator, model))
    finally:
        model.train(was_training)


@contextmanager
def _whole(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    kind = accelerator.distributed_type.value
    if kind == "DEEPSPEED":
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            yield
    elif kind == "FSDP":
        from torch.distributed.fsdp import FSDPModule

        parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
        if not parts:
            raise ValueError("RL needs FSDP version 2: set `fsdp_version: 2` as in train_iqa/configs/fsdp.yaml")
        # FSDP must first be called at its root; `generate` calls the vision tower before that, on its own.
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=accelerator.device))
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(True, recurse=False)
                part.reshard()
    else:
        yield


class TrainedWeights:
    """The weights that learn, as a part of a run's state: an adapter's, not the base model's billions."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _named(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        """Return name -> values."""
        return {name: parameter.detach() for name, parameter in self._named().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises ValueError if other weights learn here."""
        named = self._named()
        if set(named) != set(state):
            raise ValueError(
                f"the saved state holds {len(state)} trained weights, this run trains {len(named)}: the tuning "
                f"differs; continue with the same configuration or take a new folder"
            )
        for name, parameter in named.items():
            parameter.copy_(state[name])


def save_policy(
    checkpoint: Checkpoint, accelerator: Accelerator, model: nn.Module, config: TuningConfig, folder: Path
) -> None:
    """Write what has been learned, with its protocol: a LoRA adapter, or a whole checkpoint. All processes call.

    `load_checkpoint(base, adapter=folder)` or `load_checkpoint(folder)` reads it. A LoRA that was learned on top of an
    earlier one is written as a whole checkpoint: to the base model alone it does not fit.
    """
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        part_folder(folder)
        inner = accelerator.unwrap_model(model)
        if config.is_lora and checkpoint.adapter is None:
            inner.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        else:
            if config.is_lora:
                state = _merged(state, config.lora_alpha / config.lora_rank)
                for stale in folder.glob("adapter_*"):  # transformers would add it once more
                    stale.unlink()
            plain_model(accelerator, model).save_pretrained(folder, state_dict=state)
            checkpoint.tokenizer.save_pretrained(folder)
            checkpoint.image_processor.save_pretrained(folder)
        checkpoint.protocol.save(folder)
    accelerator.wait_for_everyone()


def _merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the weights of the plain model from those of the PeftModel around it, with the adapter added.

    They are computed here and not by peft, since in a sharded run only `state` is whole.
    """
    merged = {}
    for name, values in state.items():
        layer = name.removesuffix(".base_layer.weight")
        if ".lora_" in name:
            continue
        if layer != name:
            down, up = (state[f"{layer}.lora_{matrix}.default.weight"].float() for matrix in "AB")
            values = (values.float() + scale * (up @ down)).to(values.dtype).cpu()  # no second model on the GPU
        merged[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = values
    return merged
