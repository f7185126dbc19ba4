"""Rollouts by vLLM: the sampler's contract, against a stand-in."""

import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scripted_vllm import LLM, LORA, SHORT, install, two_image_row
from test_rl_rollout import LONG, price, zooming_folder
from tiny import ARCHS, make_image, tiny_iqa

from train_iqa.rl.rollout import roll_out
from train_iqa.rl.vllm_rollout import VllmConfig, VllmSampler, merged_weights, row_images, short_prompt
from train_iqa.training.policy import make_trainable
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.generate import end_tokens, suppressed_tokens
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.turns import round1

ONE_PROCESS = SimpleNamespace(num_processes=1, distributed_type=SimpleNamespace(value="NO"))


@pytest.fixture
def vllm(monkeypatch):
    install(monkeypatch)


def sampler_of(checkpoint, **options):
    sampler = VllmSampler(checkpoint, VllmConfig(**options), ONE_PROCESS)
    sampler.load(checkpoint.model)
    return sampler


@pytest.mark.integration
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
    rows = [make_row(checkpoint, round1(checkpoint.protocol, make_image()))] * 2 + [two_image_row(checkpoint)]
    sampler(checkpoint, rows, SHORT)
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
    hot = replace(SHORT, temperature=5.0)  # the taught model is sure of its words at 0.7
    drawn, again, other = (sampler(checkpoint, rows, replace(hot, seed=seed)) for seed in (0, 0, 1))
    assert [one.ids.tolist() for one in drawn] == [one.ids.tolist() for one in again]
    assert [one.ids.tolist() for one in drawn] != [one.ids.tolist() for one in other]


@pytest.mark.integration
def test_a_rollout_holds_both_rounds_and_the_trainers_log_probabilities(vllm):
    checkpoint = load_checkpoint(zooming_folder(), device="cpu")
    images = [make_image(0, 56, 56), make_image(1, 56, 84)]
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
    sampler(checkpoint, [make_row(checkpoint, round1(checkpoint.protocol, make_image(0, 56, 56)))], SHORT)
    assert checkpoint.model.config.tie_word_embeddings


def test_an_engine_of_another_model_stops_the_run(vllm, monkeypatch):
    checkpoint = tiny_iqa().checkpoint
    rows = [make_row(checkpoint, round1(checkpoint.protocol, make_image()))]
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
        sampler(checkpoint, [make_row(checkpoint, round1(checkpoint.protocol, make_image()))], sampling)


def test_without_vllm_or_with_several_processes_the_error_names_the_way_out(monkeypatch):
    checkpoint = tiny_iqa().checkpoint
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install 'zoomiqa-reward\[vllm\]'.*sampler transformers"):
        VllmSampler(checkpoint, VllmConfig(), ONE_PROCESS)
    several = SimpleNamespace(num_processes=2, distributed_type=SimpleNamespace(value="MULTI_GPU"))
    with pytest.raises(ValueError, match=r"one process.*accelerate launch"):
        VllmSampler(checkpoint, VllmConfig(), several)
