"""Rollouts by vLLM: an engine in this process that draws the answers, with the trainer's weights of this very step.

Round by round it is asked for the same rows as transformers, and everything around it (questions, crops, reading,
rewards) stays `roll_out`'s. What makes its answers those of the trainer's policy:

- **Pixels.** It gets no image to resize or round, but the patches that the trainer's rows hold, put together to an
  image again; its own processor is told to cut them only. The prompt is the row's, with one token per image, and what
  the engine made of it must be the row's tokens exactly.
- **Weights.** Handed over before every step, in memory, adapters merged on the way; the caches that hold something
  computed with the old ones are emptied. An output layer tied to the embeddings is kept apart in the engine, because
  reloading skips it there otherwise. The first answer of each step is priced by the trainer's model, and where the two
  disagree the run stops: an engine with other weights would be trained on silently.
- **Distribution.** Temperature alone, no top-p and no top-k; image tokens pushed out; a seed for each answer.

Its log-probabilities only measure the mismatch; the trainer recomputes the old ones.

Source of names and behaviour: vLLM's documentation (docs.vllm.ai: LLM, SamplingParams, "Multimodal Inputs",
`logprobs_mode`, and the docstrings of `reload_weights`, `reset_prefix_cache` and `reset_encoder_cache`), version 0.32.
"""

import copy
import os
import random
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from train_iqa.rl.rollout import SampledAnswer, on_cpu
from train_iqa.rows.completions import TrainingRow, answer_logprobs, collate_completions
from zoomiqa_reward.model.checkpoint import Checkpoint
from zoomiqa_reward.model.generate import Sampling, end_tokens, suppressed_tokens
from zoomiqa_reward.model.inputs import TokenRow

IMAGES = 2
"""Of one prompt, at most: round 2 shows the image and the crop."""
MIN_TEMPERATURE = 0.01
"""Below it vLLM samples at another temperature than was asked for."""
SUPPRESS = -100.0
"""Added to a forbidden token's logit; the lowest bias of the OpenAI API, which vLLM follows."""


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """Options of the engine."""

    gpu_memory_utilization: float = 0.3
    """Share of the GPU's memory that the engine takes, weights included; the trainer has the rest."""
    max_model_len: int = 8192
    """Tokens of a prompt with its answer, at most; lowered to what the model's positions reach."""
    dtype: str = "auto"
    """Of the engine; auto: bfloat16 on a GPU, else float32."""
    enforce_eager: bool = False
    """Start at once, without compiled graphs: slower answers."""
    max_mismatch: float = 0.1
    """Nats by which engine and trainer may differ, as the mean over the tokens of a step's first answer."""

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1 or self.max_model_len < 1 or not self.max_mismatch > 0:
            raise ValueError(
                f"gpu_memory_utilization={self.gpu_memory_utilization} must be in (0, 1], "
                f"max_model_len={self.max_model_len} at least 1, max_mismatch={self.max_mismatch} above 0"
            )
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype {self.dtype!r}: must be auto, float32, bfloat16 or float16")


class VllmSampler:
    """The `draw` of `roll_out` by vLLM. `load` the policy's weights before every step; then call it."""

    def __init__(self, checkpoint: Checkpoint, config: VllmConfig, accelerator: Accelerator) -> None:
        """Start the engine for a checkpoint's architecture, without weights.

        Raises ValueError where vLLM cannot be imported, and for several processes or sharded weights. Torch's, numpy's
        and Python's random states are left as they were.
        """
        if accelerator.num_processes > 1 or accelerator.distributed_type.value in ("FSDP", "DEEPSPEED"):
            raise ValueError(
                f"the sampler vllm works in a run of one process with whole weights; this one has "
                f"{accelerator.num_processes} ({accelerator.distributed_type.value}): start it without `accelerate "
                f"launch`, or take the sampler transformers"
            )
        vllm = _vllm()
        positions = int(checkpoint.model.config.get_text_config().max_position_embeddings)
        self.config, self.max_tokens = config, min(config.max_model_len, positions)
        dtype = config.dtype
        if dtype == "auto":
            dtype = "bfloat16" if checkpoint.device.type == "cuda" else "float32"
        folder = tempfile.mkdtemp(prefix="zoomiqa-vllm-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        write_engine_folder(checkpoint, folder)
        self._params = vllm.SamplingParams
        self._is_checked = True
        with _random_states_kept():
            self._llm = vllm.LLM(
                model=folder, load_format="dummy", dtype=dtype, max_model_len=self.max_tokens,
                gpu_memory_utilization=config.gpu_memory_utilization, enforce_eager=config.enforce_eager,
                limit_mm_per_prompt={"image": IMAGES, "video": 0}, logprobs_mode="processed_logprobs",
                generation_config="vllm",
            )  # fmt: skip

    @torch.no_grad()
    def load(self, model: nn.Module) -> None:
        """Give the engine a transformers model's weights, with the LoRA layers inside it merged on the way."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": merged_weights(model)})
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache, which was computed with older weights")
        self._llm.llm_engine.reset_encoder_cache()
        self._is_checked = False

    def __call__(self, checkpoint: Checkpoint, rows: Sequence[TokenRow], sampling: Sampling) -> list[SampledAnswer]:
        """Return one answer for each row; with seeds it depends on its own, the weights and the row.

        Raises ValueError for rows longer than `max_model_len` and temperatures that vLLM changes; RuntimeError where
        the engine read another prompt, wrote a forbidden token, failed, or is not the checkpoint's model.
        """
        self._check_request(rows, sampling)
        rows = on_cpu(rows)
        forbidden = suppressed_tokens(checkpoint)
        prompts: list[dict[str, Any]] = []
        for index, row in enumerate(rows):
            is_shared = index > 0 and row.pixel_values is rows[index - 1].pixel_values
            images = prompts[-1]["multi_modal_data"]["image"] if is_shared else row_images(checkpoint, row)
            prompts.append({"prompt_token_ids": short_prompt(checkpoint, row), "multi_modal_data": {"image": images}})
        seeds = [None] * len(rows) if sampling.seed is None else sampling.row_seeds(len(rows))
        params = [
            self._params(
                temperature=sampling.temperature, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0,
                max_tokens=sampling.max_new_tokens, logprobs=0, detokenize=False,
                seed=seed,
                stop_token_ids=end_tokens(checkpoint), logit_bias=dict.fromkeys(forbidden, SUPPRESS),
            )
            for seed in seeds
        ]  # fmt: skip
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        drawn = [read_output(row, output, forbidden) for row, output in zip(rows, outputs, strict=True)]
        if not self._is_checked:
            self._check_weights(checkpoint, rows[0], drawn[0], sampling.temperature)
            self._is_checked = True
        return drawn

    def _check_request(self, rows: Sequence[TokenRow], sampling: Sampling) -> None:
        if sampling.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature={sampling.temperature}: vLLM samples at {MIN_TEMPERATURE} or more")
        longest = max(row.input_ids.shape[0] for row in rows)
        if longest + sampling.max_new_tokens > self.max_tokens:
            raise ValueError(
                f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones exceed the engine's "
                f"{self.max_tokens}: raise vllm.max_model_len (as far as the model's positions reach), or lower "
                f"max_new_tokens or the protocol's max_pixels"
            )

    @torch.no_grad()
    def _check_weights(self, checkpoint: Checkpoint, row: TokenRow, drawn: SampledAnswer, temperature: float) -> None:
        answered = TrainingRow(
            prompt=row, completion_ids=drawn.ids, targets=torch.ones_like(drawn.ids, dtype=torch.bool)
        )
        logprobs, _ = answer_logprobs(
            checkpoint.model, collate_completions(checkpoint, [answered]), temperature=temperature,
            suppressed=suppressed_tokens(checkpoint),
        )  # fmt: skip
        apart = float((logprobs[0].cpu() - drawn.logprobs).abs().mean())
        if not apart <= self.config.max_mismatch:
            raise RuntimeError(
                f"vLLM's log-probabilities differ from the trainer's by {apart:.3f} nats per token (vllm.max_mismatch="
                f"{self.config.max_mismatch}): it does not compute the same model. Nothing was trained on this step; "
                f"take the sampler transformers, or another version of vLLM"
            )


def write_engine_folder(checkpoint: Checkpoint, folder: str) -> None:
    """Write configuration, tokenizer and processor, from which vLLM builds the architecture; no weights.

    The processor only cuts patches, since it is fed with pixels that are already resized and normalised. Its sizes are
    the protocol's pixel budget, from which vLLM knows the largest image.
    """
    config = copy.deepcopy(checkpoint.model.config)
    for section in (config, config.get_text_config()):
        section.tie_word_embeddings = False
    config.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    processor, protocol = copy.deepcopy(checkpoint.image_processor), checkpoint.protocol
    processor.do_resize = processor.do_rescale = processor.do_normalize = processor.do_convert_rgb = False
    processor.size = {"shortest_edge": protocol.min_pixels, "longest_edge": protocol.max_pixels}
    processor.save_pretrained(folder)


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, values) of every weight, tied ones under each of their names, as if there were no adapter.

    An adapted layer's weight comes with its active adapters added, in a new tensor: the model is not touched.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parts = name.split(".")
        if any(part.startswith("lora_") for part in parts):
            continue
        values = parameter.detach()
        if parts[-2:] == ["base_layer", "weight"]:
            layer: Any = model.get_submodule(".".join(parts[:-2]))
            total = values.float()
            for adapter in layer.active_adapters:
                total = total + layer.get_delta_weight(adapter).detach().float()
            values = total.to(values.dtype)
        yield name.replace(".base_layer.", "."), values


def row_images(checkpoint: Checkpoint, row: TokenRow) -> list[Tensor]:
    """Return the float32 CHW images, normalised as the model sees them, whose patches the row holds, bit by bit.

    The layout is that of Qwen-VL's processor: blocks of merge x merge patches, each patch as (channel, frame, side,
    side); an image's frames are copies of each other.
    """
    processor = checkpoint.image_processor
    side, merge, frames = int(processor.patch_size), int(processor.merge_size), int(processor.temporal_patch_size)
    images, start = [], 0
    for _, high, wide in row.image_grid_thw.tolist():
        patches = row.pixel_values[start : start + high * wide]
        start += high * wide
        blocks = patches.reshape(high // merge, wide // merge, merge, merge, -1, frames, side, side)[..., 0, :, :]
        images.append(blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, high * side, wide * side).contiguous())
    return images


def short_prompt(checkpoint: Checkpoint, row: TokenRow) -> list[int]:
    """Return the row's tokens with one image token per image, as vLLM expects a prompt before it puts images in."""
    features = iter((row.image_grid_thw.prod(dim=-1) // int(checkpoint.image_processor.merge_size) ** 2).tolist())
    ids, index, short = row.input_ids.tolist(), 0, []
    while index < len(ids):
        short.append(ids[index])
        index += next(features) if ids[index] == checkpoint.image_token_id else 1
    return short


def read_output(row: TokenRow, output: Any, forbidden: Sequence[int]) -> SampledAnswer:
    """Return the tokens of vLLM's RequestOutput with their log-probabilities.

    Raises RuntimeError where it belongs to another prompt, holds a forbidden token or did not end by itself.
    """
    if list(output.prompt_token_ids) != row.input_ids.tolist():
        raise RuntimeError(
            f"vLLM read a prompt of {len(output.prompt_token_ids)} tokens where the row has {row.input_ids.shape[0]}, "
            f"or other tokens: its processor treats images in another way"
        )
    (answer,) = output.outputs
    ids = list(answer.token_ids)
    if answer.finish_reason not in ("stop", "length") or not ids:
        raise RuntimeError(f"vLLM ended an answer of {len(ids)} tokens by {answer.finish_reason!r}")
    if held := sorted(set(ids) & set(forbidden)):
        raise RuntimeError(f"vLLM wrote the forbidden tokens {held}: their logits are above the others' by 100")
    logprobs = [index[token].logprob for index, token in zip(answer.logprobs, ids, strict=True)]
    return SampledAnswer(ids=torch.tensor(ids, dtype=torch.long), logprobs=torch.tensor(logprobs, dtype=torch.float32))


def _vllm() -> Any:
    # in this process, so that weights are handed over as they are and need no copy on their way
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        import vllm

        _ = vllm.LLM, vllm.SamplingParams  # loaded when first asked for
    except (ImportError, OSError, RuntimeError) as error:  # a build for another torch raises the latter two
        raise ValueError(
            f"the sampler vllm needs vLLM, which cannot be imported ({error}): pip install 'zoomiqa-reward[vllm]' "
            f"beside a torch that fits it, or take the sampler transformers"
        ) from error
    return vllm


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """An engine in this process seeds the global generators."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
