"""Rollouts by vLLM: the contract, against a stand-in with vLLM's documented names, and vLLM itself where it is there.

The stand-in is an engine of its own: it builds a model from the folder that it is given, with random weights, cuts the
images with that folder's processor, puts the image tokens in, and samples. So weights that do not arrive, pixels that
are not the row's or a prompt that is asked in another way show in its log-probabilities, as they would in vLLM's.
"""

import math
import random
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from test_rl_rollout import LONG, price, zooming_folder
from tiny import ARCHS, picture, tiny_iqa
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2VLImageProcessor,
)

from train_iqa import grpo
from train_iqa.datasets import IqaDataset, LabelledImage, Scale
from train_iqa.grpo import Trainer
from train_iqa.rl.config import GrpoConfig
from train_iqa.rl.coverage import KlConfig
from train_iqa.rl.rewards import RewardConfig
from train_iqa.rl.rollout import roll_out
from train_iqa.rl.vllm_rollout import VllmConfig, VllmSampler, merged_weights, row_images, short_prompt
from train_iqa.rows.completions import TrainingRow
from train_iqa.training.learner import ModelConfig, make_accelerator
from train_iqa.training.metrics import read_log
from train_iqa.training.policy import TuningConfig, make_trainable
from zoomiqa_reward.checkpoint import load_checkpoint
from zoomiqa_reward.generate import Sampling, end_tokens, suppressed_tokens
from zoomiqa_reward.images import save_png
from zoomiqa_reward.rows import make_row
from zoomiqa_reward.turns import round1, round2

LORA = TuningConfig(lora_rank=4, lora_alpha=8)
SHORT = Sampling(temperature=0.7, top_p=1.0, top_k=0, max_new_tokens=6, seed=2**62)
ONE_PROCESS = SimpleNamespace(num_processes=1, distributed_type=SimpleNamespace(value="NO"))


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


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in under vLLM's name."""
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def sampler_of(checkpoint, **options):
    sampler = VllmSampler(checkpoint, VllmConfig(**options), ONE_PROCESS)
    sampler.load(checkpoint.model)
    return sampler


def two_image_row(checkpoint):
    return make_row(
        checkpoint, round2(checkpoint.protocol, picture(0, 96, 128), picture(1, 64, 64), "<think>x</think>")
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_images_come_back_from_their_patches_bit_by_bit(arch):
    checkpoint = tiny_iqa(arch).checkpoint
    row = two_image_row(checkpoint)
    images, side = row_images(checkpoint, row), checkpoint.image_processor.patch_size
    assert [tuple(image.shape[1:]) for image in images] == [(h * side, w * side) for _, h, w in row.image_grid_thw]
    cut = checkpoint.image_processor(
        images=images, do_resize=False, do_rescale=False, do_normalize=False, do_convert_rgb=False, return_tensors="pt"
    )
    assert torch.equal(cut["pixel_values"], row.pixel_values)
    assert torch.equal(cut["image_grid_thw"], row.image_grid_thw)


@pytest.mark.parametrize("arch", ARCHS)
def test_what_the_engine_is_asked(arch, vllm):
    checkpoint = tiny_iqa(arch).checkpoint
    sampler = sampler_of(checkpoint, gpu_memory_utilization=0.4, max_model_len=100_000)
    llm = sampler._llm
    assert llm.options == {
        "load_format": "dummy", "dtype": "float32", "max_model_len": 4096, "gpu_memory_utilization": 0.4,
        "enforce_eager": False, "limit_mm_per_prompt": {"image": 2, "video": 0}, "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
    }  # fmt: skip
    rows = [make_row(checkpoint, round1(checkpoint.protocol, picture()))] * 2 + [two_image_row(checkpoint)]
    drawn = sampler(checkpoint, rows, SHORT)
    assert llm.calls[:3] == ["reload_weights", "reset_prefix_cache", "reset_encoder_cache"]
    prompts, params = llm.calls[3]
    image = checkpoint.image_token_id
    assert [prompt["prompt_token_ids"].count(image) for prompt in prompts] == [1, 1, 2]
    for row, prompt in zip(rows, prompts, strict=True):
        cut = llm.processor(images=prompt["multi_modal_data"]["image"], return_tensors="pt")
        assert torch.equal(cut["pixel_values"], row.pixel_values)  # with the processor that the engine was given
        kept = [token for token in row.input_ids.tolist() if token != image]
        assert [token for token in prompt["prompt_token_ids"] if token != image] == kept
    for one in params:
        fields = (one.temperature, one.top_p, one.top_k, one.min_p, one.repetition_penalty, one.n)
        assert fields == (0.7, 1.0, -1, 0.0, 1.0, 1)
        assert (one.max_tokens, one.logprobs, one.stop_token_ids) == (6, 0, end_tokens(checkpoint))
        assert one.logit_bias == dict.fromkeys(suppressed_tokens(checkpoint), -100.0)
    assert len({one.seed for one in params}) == 3
    assert all(0 <= one.seed < 2**63 for one in params)
    again = sampler(checkpoint, rows, SHORT)
    other = sampler(checkpoint, rows, replace(SHORT, seed=1))
    assert [one.ids.tolist() for one in drawn] == [one.ids.tolist() for one in again]
    assert [one.ids.tolist() for one in drawn] != [one.ids.tolist() for one in other]


def test_a_rollout_holds_both_rounds_and_the_trainers_log_probabilities(vllm):
    checkpoint = load_checkpoint(zooming_folder(), device="cpu")
    images = [picture(0, 56, 56), picture(1, 56, 84)]
    groups = roll_out(checkpoint, images, num_samples=2, sampling=LONG, draw=sampler_of(checkpoint))
    turns = [turn for group in groups for one in group for turn in one.turns]
    assert [len(group) for group in groups] == [2, 2]
    assert any(len(one.turns) == 2 for group in groups for one in group)
    end = checkpoint.tokenizer.eos_token_id
    for turn, again in zip(turns, price(checkpoint, turns), strict=True):
        assert torch.allclose(again, turn.logprobs, atol=1e-4)
        assert (int(turn.row.completion_ids[-1]) == end) != turn.is_truncated
    wrong = price(checkpoint, turns, 1.5)  # the test can fail
    assert max(float((a - turn.logprobs).abs().max()) for a, turn in zip(wrong, turns, strict=True)) > 0.01
    for group in groups:
        for one in group:
            assert [t.text for t in one.assessment.turns] == [
                checkpoint.tokenizer.decode(t.row.completion_ids.tolist(), skip_special_tokens=True) for t in one.turns
            ]


def test_merged_weights_are_those_of_the_merged_model_and_the_model_stays_as_it_was():
    model = load_checkpoint(zooming_folder(), device="cpu").model
    plain = {name: values.clone() for name, values in model.state_dict().items()}
    tuned = make_trainable(model, LORA)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    found = {name: values.clone() for name, values in merged_weights(tuned.get_base_model())}
    still = tuned.get_base_model().state_dict()
    wanted = tuned.merge_and_unload().state_dict()
    assert set(found) == set(wanted)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)
    changed = {name for name in found if not torch.equal(found[name], plain[name])}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)
    assert all("lora_" in name or ".base_layer." in name or torch.equal(still[name], plain[name]) for name in still)


def test_a_tied_output_layer_is_handed_over_and_kept_apart_in_the_engine(nano, vllm):
    checkpoint = load_checkpoint(nano, device="cpu")
    assert checkpoint.model.config.tie_word_embeddings
    sampler = sampler_of(checkpoint)
    (given,) = sampler._llm.weights
    assert torch.equal(given["lm_head.weight"], given["model.language_model.embed_tokens.weight"])
    assert sampler._llm.model.lm_head.weight is not sampler._llm.model.get_input_embeddings().weight
    sampler(checkpoint, [make_row(checkpoint, round1(checkpoint.protocol, picture(0, 56, 56)))], SHORT)
    assert checkpoint.model.config.tie_word_embeddings


def test_an_engine_of_another_model_stops_the_run(vllm, monkeypatch):
    checkpoint = tiny_iqa().checkpoint
    rows = [make_row(checkpoint, round1(checkpoint.protocol, picture()))]
    sampler = sampler_of(checkpoint)
    with torch.no_grad():
        sampler._llm.model.lm_head.weight.neg_()
    with pytest.raises(RuntimeError, match="does not compute the same model"):
        sampler(checkpoint, rows, SHORT)
    sampler.load(checkpoint.model)  # heals it
    sampler(checkpoint, rows, SHORT)
    real = LLM._answer

    def spoil(**changes):
        def spoiled(llm, prompt, params):
            output = real(llm, prompt, params)
            output.prompt_token_ids = changes.get("prompt", output.prompt_token_ids)
            answer = replace(output.outputs[0], **{k: v for k, v in changes.items() if k != "prompt"})
            output.outputs = [answer]
            return output

        monkeypatch.setattr(LLM, "_answer", spoiled)

    for changes, match in (
        ({"prompt": short_prompt(checkpoint, rows[0])}, "another way"),
        ({"finish_reason": "abort"}, "'abort'"),
        ({"token_ids": [checkpoint.image_token_id]}, "forbidden tokens"),
    ):
        spoil(**changes)
        with pytest.raises(RuntimeError, match=match):
            sampler(checkpoint, rows, SHORT)
    monkeypatch.setattr(LLM, "_answer", real)
    monkeypatch.setattr(LLM, "reset_prefix_cache", lambda llm: False)
    with pytest.raises(RuntimeError, match="prefix cache"):
        sampler.load(checkpoint.model)


def test_starting_the_engine_leaves_the_random_states_and_no_folder_behind(vllm, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    sampler = sampler_of(tiny_iqa().checkpoint)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert len(list(tmp_path.iterdir())) == 1
    del sampler
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sampling", "match"),
    [(replace(SHORT, temperature=0.001), "0.01 or more"), (replace(SHORT, max_new_tokens=300), "vllm.max_model_len")],
)
def test_requests_that_vllm_would_change_are_refused(vllm, sampling, match):
    checkpoint = tiny_iqa().checkpoint
    sampler = sampler_of(checkpoint, max_model_len=200)
    with pytest.raises(ValueError, match=match):
        sampler(checkpoint, [make_row(checkpoint, round1(checkpoint.protocol, picture()))], sampling)


def test_without_vllm_or_with_several_processes_the_error_names_the_way_out(monkeypatch):
    checkpoint = tiny_iqa().checkpoint
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install 'zoomiqa-reward\[vllm\]'.*sampler transformers"):
        VllmSampler(checkpoint, VllmConfig(), ONE_PROCESS)
    several = SimpleNamespace(num_processes=2, distributed_type=SimpleNamespace(value="MULTI_GPU"))
    with pytest.raises(ValueError, match=r"one process.*accelerate launch"):
        VllmSampler(checkpoint, VllmConfig(), several)


@pytest.fixture
def dataset(tmp_path):
    paths = [save_png(picture(k % 2, 56, 56 + 28 * (k % 2)), tmp_path / f"{k}.png") for k in range(4)]
    images = [
        LabelledImage(dataset="d", id=path.name, path=path, mos=1.2 + k, std=math.nan, label=k, split="training")
        for k, path in enumerate(paths)
    ]
    return IqaDataset(name="d", family="csv", root=tmp_path, scale=Scale(worst=1, best=5), images=tuple(images))


def config(out, name, **options):
    fields = {
        "model": ModelConfig(name=name, device="cpu"), "tuning": LORA, "out": out, "steps": 2, "images_per_step": 2,
        "images_per_rollout": 2, "num_samples": 3, "max_new_tokens": 110, "micro_rows": 4, "learning_rate": 1e-2,
        "warmup_steps": 0, "rewards": RewardConfig(rank=0.0), "page_every": 0, "tensorboard": False,
        "kl": KlConfig(share=0.05), "sampler": "vllm", "vllm": VllmConfig(enforce_eager=True),
    }  # fmt: skip
    return GrpoConfig(**(fields | options))


def test_a_run_hands_its_weights_over_before_every_step(dataset, tmp_path, vllm, monkeypatch):
    engines = []
    real = Trainer.__init__

    def watched(trainer, *args):
        real(trainer, *args)
        engines.append(trainer.engine._llm)

    monkeypatch.setattr(Trainer, "__init__", watched)
    name = str(zooming_folder())
    grpo.train(config(tmp_path / "run", name), [dataset])
    (llm,) = engines
    first, second = llm.weights
    start = load_checkpoint(name, device="cpu").model.state_dict()
    assert all(torch.equal(first[key], start[key]) for key in start)
    moved = [key for key in start if not torch.allclose(second[key], start[key], atol=1e-6)]
    assert moved
    assert all("_proj" in key for key in moved)
    log = read_log(tmp_path / "run")
    assert [row["step"] for row in log] == [1, 2]
    assert log[0]["grad_norm"] > 0
    assert 0 < log[0]["zooms"] <= 1
    assert all(row["mismatch"] < 1e-4 and row["ratio_off"] < 1e-4 for row in log)


def test_the_sampler_is_checked_and_part_of_what_a_run_is(dataset, tmp_path):
    name = str(zooming_folder())
    for options in ({"sampler": "sglang", "vllm": None}, {"sampler": "transformers"}):
        with pytest.raises(ValueError, match="sampler"):
            config(tmp_path, name, **options)
    for options in ({"gpu_memory_utilization": 0.0}, {"dtype": "int8"}):
        with pytest.raises(ValueError, match="must be"):
            VllmConfig(**options)
    made = config(tmp_path / "run", name, sampler="transformers", vllm=None, steps=1, max_new_tokens=4)
    grpo.train(made, [dataset])
    with pytest.raises(ValueError, match="another sampler"):
        grpo.train(replace(made, sampler="vllm"), [dataset])


@pytest.mark.filterwarnings("ignore")  # vLLM's own
def test_vllm_itself_samples_what_the_trainer_prices(dataset, tmp_path, nano, monkeypatch):
    """Two steps on the embedded model; the tiny ones' heads are too narrow for vLLM's kernels."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    module = pytest.importorskip("vllm", reason="pip install 'zoomiqa-reward[vllm]'")
    assert module.LLM
    made = config(
        tmp_path / "run", nano, max_new_tokens=300, num_samples=4, temperature=0.8,
        vllm=VllmConfig(enforce_eager=True, dtype="float32"),
    )  # fmt: skip
    trainer = Trainer(made, [dataset.images], make_accelerator(made.model))
    batch, values = trainer.step(0)
    assert values["mismatch"] < 1e-3
    assert values["grad_norm"] > 0
    assert len({tuple(row.completion_ids.tolist()) for row in batch.rows}) > 2
    old = [one.clone() for one in batch.old]
    batch, values = trainer.step(1)  # with the weights of after the update
    assert values["mismatch"] < 1e-3
    assert any(one.shape != two.shape or not torch.equal(one, two) for one, two in zip(old, batch.old, strict=False))
    trainer.engine.load(trainer.checkpoint.model)
    row = two_image_row(trainer.checkpoint)
    (drawn,) = trainer.engine(trainer.checkpoint, [row], replace(SHORT, max_new_tokens=40))
    answered = TrainingRow(prompt=row, completion_ids=drawn.ids, targets=torch.ones_like(drawn.ids, dtype=torch.bool))
    (again,) = price(trainer.checkpoint, [SimpleNamespace(row=answered)], SHORT.temperature)
    assert torch.allclose(again, drawn.logprobs, atol=1e-3)
    other = load_checkpoint(nano, device="cpu").model
    other.get_input_embeddings().weight.neg_()
    trainer.engine.load(other)
    with pytest.raises(RuntimeError, match="does not compute the same model"):
        trainer.engine(trainer.checkpoint, [batch.rows[0].prompt], SHORT)
