"""A stand-in with vLLM's documented names, and what its tests ask.

It is an engine of its own: it builds a model from the folder that it is given, with random weights, cuts the
images with that folder's processor, puts the image tokens in, and samples. So weights that do not arrive, pixels that
are not the row's or a prompt that is asked in another way show in its log-probabilities, as they would in vLLM's.
"""

import random
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from tiny import make_image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2VLImageProcessor,
)

from train_iqa.training.policy import TuningConfig
from zoomiqa_reward.model.generate import Sampling
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.turns import round2

LORA = TuningConfig(lora_rank=4, lora_alpha=8)
SHORT = Sampling(temperature=0.7, top_p=1.0, top_k=0, max_new_tokens=6, seed=2**62)


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


@dataclass
class SamplingParams:
    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    logit_bias: dict[int, float] = field(default_factory=dict)


class _Bias(LogitsProcessor):
    def __init__(self, biases):
        self.biases = biases

    def __call__(self, input_ids, scores):
        for token, bias in self.biases.items():
            scores[:, token] += bias
        return scores


class LLM:
    """`calls` is the whole session: what was asked for, in order."""

    def __init__(self, model, **options):
        self.options, self.calls, self.weights = options, [], []
        torch.manual_seed(options.get("seed", 0))  # as the engine does that lives in the caller's process
        random.seed(0)
        np.random.seed(0)
        self.model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model)).eval()
        self.processor = Qwen2VLImageProcessor.from_pretrained(model)
        self.llm_engine = SimpleNamespace(reset_encoder_cache=lambda: self.calls.append("reset_encoder_cache"))

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        assert method == "reload_weights"
        self.calls.append(method)
        weights = dict(kwargs["weights_iterator"])
        self.weights.append({name: values.clone() for name, values in weights.items()})
        self.model.load_state_dict(weights, strict=True)
        return [None]

    def reset_prefix_cache(self, reset_running_requests=False, reset_connector=False):
        self.calls.append("reset_prefix_cache")
        return True

    def generate(self, prompts, sampling_params, *, use_tqdm=True):
        assert len(prompts) == len(sampling_params)
        self.calls.append((prompts, sampling_params))
        return [self._answer(prompt, params) for prompt, params in zip(prompts, sampling_params, strict=True)]

    @torch.no_grad()
    def _answer(self, prompt, params):
        assert params.logprobs is not None
        assert self.options["logprobs_mode"] == "processed_logprobs"
        cut = self.processor(images=prompt["multi_modal_data"]["image"], return_tensors="pt")
        image_id = self.model.config.image_token_id
        ids = torch.tensor(prompt["prompt_token_ids"])
        counts = torch.ones_like(ids)
        counts[ids == image_id] = cut["image_grid_thw"].prod(-1) // self.processor.merge_size**2
        ids = ids.repeat_interleave(counts)[None]
        config = GenerationConfig(
            do_sample=True, temperature=params.temperature, top_p=params.top_p, top_k=max(0, params.top_k),
            max_new_tokens=params.max_tokens, eos_token_id=params.stop_token_ids, pad_token_id=0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        torch.manual_seed(params.seed)
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == image_id).long(),
            pixel_values=cut["pixel_values"], image_grid_thw=cut["image_grid_thw"], generation_config=config,
            logits_processor=LogitsProcessorList([_Bias(params.logit_bias)]),
        )  # fmt: skip
        new = out.sequences[0, ids.shape[1] :].tolist()
        logprobs = [{t: Logprob(float(s[0].log_softmax(-1)[t]))} for t, s in zip(new, out.scores, strict=True)]
        has_stopped = new[-1] in params.stop_token_ids
        answer = CompletionOutput(0, "", new, None, logprobs, "stop" if has_stopped else "length")
        return RequestOutput(prompt_token_ids=ids[0].tolist(), outputs=[answer])


def install(monkeypatch):
    """Put the stand-in under vLLM's name."""
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def two_image_row(checkpoint):
    return make_row(
        checkpoint, round2(checkpoint.protocol, make_image(0, 96, 128), make_image(1, 64, 64), "<think>x</think>")
    )
