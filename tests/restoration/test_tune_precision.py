"""Which numbers are in half precision: the denoiser's pass at most, never the adapter or the autoencoder."""

import contextlib
from types import SimpleNamespace

import pytest
import tiny_pipelines
import torch
from safetensors.torch import load_file
from test_tune_denoisers import nano
from test_tune_monitor import smooth_examples
from test_tune_training import examples, recipe_of, reward_of

from restoration.restorer.loading import load_pipeline
from restoration.tuning import Example, TuneConfig, tune
from restoration.tuning.algorithms.grpo import GRPO
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.context import Tuning
from restoration.tuning.denoisers.base import denoiser_of, with_autocast
from restoration.tuning.denoisers.nano import NanoDenoiser
from restoration.tuning.lora import add_lora, merge_adapter, weights_of
from restoration.tuning.sampler.rollout import draw_candidates, eight_bit

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of libraries, while pipelines are saved
]


def plain_examples():
    return [Example(name=example.name, lq=example.lq) for example in examples(2)]


@pytest.mark.parametrize("algorithm", [SFT(), GRPO()])
def test_the_adapter_of_a_bfloat16_network_is_trained_in_float32(algorithm, tmp_path):
    """At this rate most updates are smaller than a step of bfloat16: such weights would stay where they are."""
    weights = {}
    for rate in (0.0, 1e-4):
        recipe = recipe_of(algorithm, rounds=1, crop_px=None, learning_rate=rate)
        result = tune(recipe, plain_examples(), reward_of(), tmp_path / str(rate), validation=None, device="cpu",
                      pipeline=tiny_pipelines.sd_x4().to(torch.bfloat16))  # fmt: skip
        weights[rate] = load_file(result.lora / "pytorch_lora_weights.safetensors")
    assert {tensor.dtype for tensor in weights[1e-4].values()} == {torch.float32}
    moved = [float((weights[0.0][name] != tensor).float().mean())
             for name, tensor in weights[1e-4].items() if "lora_B" in name]  # fmt: skip
    assert min(moved) > 0.9
    saved = load_pipeline(result.pipeline, dtype=torch.float32).unet
    base = tiny_pipelines.sd_x4().to(torch.bfloat16).unet.float()
    assert any(not torch.equal(tensor, base.state_dict()[name]) for name, tensor in saved.state_dict().items())


def test_a_merged_copy_keeps_changes_that_bfloat16_would_round_away():
    pipeline = tiny_pipelines.sd_x4().to(torch.bfloat16)
    denoiser = denoiser_of(pipeline)
    add_lora(denoiser, 4, 4)
    for parameter in weights_of(denoiser.module).values():
        parameter.data = torch.full_like(parameter, 1e-3)
    merged = dict(merge_adapter(denoiser.module).named_parameters())
    name = next(name for name in weights_of(denoiser.module)).split(".lora_")[0]
    change = merged[f"{name}.weight"] - denoiser.module.get_submodule(name).base_layer.weight.float()
    assert torch.allclose(change, torch.full_like(change, 4e-6), rtol=0.05)  # four times 1e-3 * 1e-3


def test_a_float16_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"float16, whose gradients vanish .* mixed_precision='bf16'"):
        tune(recipe_of(SFT()), plain_examples(), reward_of(), tmp_path / "a", validation=None, device="cpu",
             pipeline=tiny_pipelines.sd_x4().to(torch.float16))  # fmt: skip
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("build", [tiny_pipelines.sd_x4, tiny_pipelines.ldm])
def test_images_of_a_bf16_run_are_decoded_in_float32(build):
    tuning = Tuning(
        denoiser=denoiser_of(build()), reward=reward_of(), examples=[], folder=None, device=torch.device("cpu"),
        config=TuneConfig(num_samples=2, steps=3, mixed_precision="bf16"),
        share=SimpleNamespace(scoring=contextlib.nullcontext), autocast=lambda: torch.autocast("cpu", torch.bfloat16),
    )  # fmt: skip
    drawn = draw_candidates(tuning, [Example(name="a", lq=torch.rand(3, 16, 16))], [1])
    piece = drawn.pieces[0]
    with torch.no_grad():
        whole = eight_bit(tuning.denoiser.decode(piece.trajectory.x0, piece.condition))
    assert torch.equal(torch.stack(drawn.images), whole)


def test_only_the_network_runs_under_autocast(tmp_path, monkeypatch):
    """In drawing, losses and the monitor's looks alike."""
    seen = set()

    def spy(name, method):
        def watched(self, *args):
            seen.add((name, torch.is_autocast_enabled("cpu")))
            return method(self, *args)

        return watched

    for name in ("encode", "decode", "encode_target", "predict"):
        monkeypatch.setattr(NanoDenoiser, name, spy(name, getattr(NanoDenoiser, name)))
    monkeypatch.setattr(NanoDenoiser, "features", lambda self, images, condition: [images])  # asks `predict` itself
    recipe = recipe_of(NFT(), rounds=1, mixed_precision="bf16", vary_sharpness=1.0, expected_targets=True,
                       truth_weight=0.1)  # fmt: skip
    tune(recipe, examples(), reward_of(), tmp_path, validation=smooth_examples(4), pipeline=nano(), device="cpu")
    assert seen == {("encode", False), ("decode", False), ("encode_target", False), ("predict", True)}


def test_a_denoiser_under_autocast_is_the_denoiser_in_all_else():
    denoiser = denoiser_of(nano())
    wrapped = with_autocast(denoiser, contextlib.nullcontext)
    assert wrapped.module is denoiser.module
    assert with_autocast(wrapped, contextlib.nullcontext).denoiser is denoiser
