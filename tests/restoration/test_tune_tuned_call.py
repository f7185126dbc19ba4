"""The tuned pipeline is called as it was tuned, a pipeline of one's own can be tuned, and a caller sees each round."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from own_pipeline import OwnDenoiser, OwnPipeline, own_pipeline
from test_tune_denoisers import PIPELINES
from test_tune_training import examples, nano, recipe_of, reward_of, rows_of, run

from restoration.restorer.restorer import Restorer
from restoration.tuning import tune
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.config import TuneConfig
from restoration.tuning.denoisers.base import denoiser_of, restorer_options_of
from restoration.tuning.recipes import find_recipe
from restoration.tuning.sampler.transitions import sample

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of libraries, while pipelines are saved
]

OPTIONS = {
    "nano": {"steps": 5, "eta": 0.5, "temperature": 1.0},
    "ldm": {"steps": 5, "eta": 0.5},
    "sd_x4": {"steps": 5, "eta": 0.5, "noise_level": 20, "guidance_scale": 1.0},
    "sd_x4_guided": {"steps": 5, "eta": 0.5, "noise_level": 20, "guidance_scale": 3.0},
    "controlnet": {"steps": 5, "eta": 0.5, "scale": 2, "strength": 0.7, "guidance_scale": 1.0,
                   "controlnet_conditioning_scale": 0.8},
    "controlnet_guided": {"steps": 5, "eta": 0.5, "scale": 2, "strength": 0.7, "guidance_scale": 2.0,
                          "controlnet_conditioning_scale": 0.8},
    "controlnet_from_noise": {"steps": 5, "eta": 0.5, "scale": 2, "guidance_scale": 1.0,
                              "controlnet_conditioning_scale": 1.0},
    "sd3": {"steps": 5, "scale": 2, "strength": 0.7, "guidance_scale": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_a_restorer_runs_the_network_as_often_as_the_denoiser_did(name):
    """Same steps, and no second text for a guidance that was not tuned with."""
    build, options, _ = PIPELINES[name]
    pipeline = build()
    denoiser = denoiser_of(pipeline, **options)
    told = restorer_options_of(denoiser, TuneConfig(steps=5, eta=0.5))
    assert told == OPTIONS[name]
    assert json.loads(json.dumps(told)) == told
    rows = []
    denoiser.module.register_forward_pre_hook(lambda module, args, kwargs: rows.append(
        len(args[0] if args else kwargs.get("sample", kwargs.get("hidden_states")))), with_kwargs=True)  # fmt: skip
    lq = torch.rand(1, 3, 16, 16)
    generators = [torch.Generator().manual_seed(0)]
    with torch.no_grad():
        condition = denoiser.encode(lq, [""], generators)
        sample(denoiser, condition, denoiser.path(5), generators, eta=0.5)
    tuned, rows[:] = list(rows), []
    list(Restorer.from_pretrained(pipeline, **told).restore(lq[0], [0]))
    assert rows == tuned


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "nano"])
def test_a_restorer_makes_what_was_scored_of_any_size(name, monkeypatch):
    """Also where the image has to be padded: the same noise is the same image, to rounding."""
    build, options, _ = PIPELINES[name]
    pipeline = build()
    denoiser = denoiser_of(pipeline, **options)
    lq = torch.rand(1, 3, 17, 21, generator=torch.Generator().manual_seed(1))
    condition = denoiser.encode(lq, [""], [torch.Generator().manual_seed(3)])
    drawn = sample(denoiser, condition, denoiser.path(4), [torch.Generator().manual_seed(7)], eta=0.0)
    scored = denoiser.decode(drawn.x0, condition)[0]
    shapes = [(7, denoiser.noise_shape(condition))]
    if "noised" in condition.given:  # SD-x4 noises its image first
        shapes.insert(0, (3, condition.given["noised"].shape[1:]))
    noises = iter([torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)) for seed, shape in shapes])
    module = sys.modules[type(pipeline).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(noises))
    if hasattr(module, "retrieve_latents"):
        monkeypatch.setattr(module, "retrieve_latents", lambda found, *_, **__: found.latent_dist.mode())
    told = restorer_options_of(denoiser, TuneConfig(steps=4, eta=0.0))
    [restored] = Restorer.from_pretrained(pipeline, **told).restore(lq[0], [0])
    assert restored.image.shape == scored.shape
    torch.testing.assert_close(restored.image, scored, atol=1e-4, rtol=0)


def test_the_result_restores_with_the_settings_of_its_run(tmp_path):
    recipe = recipe_of(SFT(), rounds=1, steps=3, eta=0.5, crop_px=None)
    build, options, _ = PIPELINES["sd_x4_guided"]
    lq = [replace(example, hr=None) for example in examples(2)]
    result = tune(replace(recipe, denoiser_options=options | {"noise_level": 5, "negative_prompt": "a blur"}), lq,
                  reward_of(), tmp_path, validation=None, pipeline=build(), device="cpu")  # fmt: skip
    wanted = {"steps": 3, "eta": 0.5, "noise_level": 5, "guidance_scale": 3.0, "negative_prompt": "a blur"}
    assert result.restorer_options == wanted
    assert json.loads((tmp_path / "result.json").read_text())["restorer"] == wanted
    engine = result.restorer(device="cpu").engine
    assert engine.call == {"num_inference_steps": 3, "eta": 0.5, "noise_level": 5, "guidance_scale": 3.0}
    assert result.restorer(device="cpu").negative_prompt == "a blur"
    assert result.restorer(device="cpu", steps=7, eta=0.0).engine.call["num_inference_steps"] == 7


def test_a_temperature_that_the_pipeline_cannot_take_is_refused(tmp_path):
    recipe = find_recipe("nano_grpo", rounds=1, images_per_round=1, num_samples=2)
    with pytest.raises(ValueError, match=r"temperature=0.5: LDM.*take the sdx4_\* recipe of that algorithm"):
        tune(recipe, examples(), reward_of(), tmp_path / "a", validation=None, pipeline=PIPELINES["ldm"][0]())
    assert not (tmp_path / "a").exists()


# A pipeline of one's own


def own_examples():
    return [replace(example, lq=example.lq[:, :8, :8], hr=None) for example in examples()]


def test_a_pipeline_of_ones_own_is_tuned_by_one_file(tmp_path):
    result = tune(recipe_of(SFT(), rounds=2), own_examples(), reward_of(), tmp_path, validation=None,
                  denoiser=OwnDenoiser(own_pipeline()), device="cpu")  # fmt: skip
    assert result.restorer_options == {"steps": 4, "scale": 2}  # its call takes no eta
    restorer = result.restorer(device="cpu")
    assert type(restorer.engine.pipeline) is OwnPipeline
    [tuned] = restorer.restore(own_examples()[0].lq, [0])
    [base] = Restorer.from_pretrained(own_pipeline(), scale=2, steps=4).restore(own_examples()[0].lq, [0])
    assert tuned.image.shape == (3, 16, 16)
    assert not torch.equal(tuned.image, base.image)
    result.restorer(device="cpu", steps=2)


def test_a_denoiser_that_is_not_whole_is_refused(tmp_path):
    part = SimpleNamespace(**{name: None for name in ("pipeline", "module", "schedule", "scale", "patch_px")})
    recipe = recipe_of(SFT())
    with pytest.raises(ValueError, match=r"denoiser=SimpleNamespace lacks module_name, lora_targets, .*features"):
        tune(recipe, own_examples(), reward_of(), tmp_path, validation=None, denoiser=part)
    given = {"validation": None, "denoiser": OwnDenoiser(own_pipeline())}
    with pytest.raises(ValueError, match="leave pipeline= and denoiser_options out"):
        tune(recipe, own_examples(), reward_of(), tmp_path, pipeline=nano(), **given)
    with pytest.raises(ValueError, match="leave pipeline= and denoiser_options out"):
        tune(replace(recipe, denoiser_options={"scale": 2}), own_examples(), reward_of(), tmp_path, **given)
    given["denoiser"].pipeline = object()
    with pytest.raises(ValueError, match="must be a diffusers pipeline"):
        tune(recipe, own_examples(), reward_of(), tmp_path, **given)


# What a caller sees, and a run that goes on


def test_a_caller_gets_each_row_of_the_log(tmp_path):
    rows = []
    tune(recipe_of(NFT(), rounds=2), examples(), reward_of(), tmp_path, validation=None, pipeline=nano(), device="cpu",
         on_round=rows.append)  # fmt: skip
    assert [row["round"] for row in rows] == [1, 2]
    logged = rows_of(tmp_path)
    assert [list(row) for row in rows] == [list(row) for row in logged]
    assert rows[1]["loss"] == pytest.approx(logged[1]["loss"], rel=1e-4)


def test_a_finished_run_goes_on_with_more_rounds(tmp_path):
    run(NFT(), tmp_path / "halves", rounds=2)
    more = run(NFT(), tmp_path / "halves", rounds=3)
    whole = run(NFT(), tmp_path / "whole", rounds=3)
    assert more.rounds == more.best_round == 3
    assert rows_of(tmp_path / "halves") == rows_of(tmp_path / "whole")
    files = [result.lora / "pytorch_lora_weights.safetensors" for result in (more, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
    run(NFT(), tmp_path / "halves", rounds=3)  # its settings are those of the longer run now
    with pytest.raises(ValueError, match="rounds was 3, now 2"):
        run(NFT(), tmp_path / "halves", rounds=2)
    with pytest.raises(ValueError, match="learning_rate was"):
        run(NFT(), tmp_path / "halves", rounds=4, learning_rate=1.0)
