"""`compute_score` as verl-omni calls it, found by verl's own loader where verl is installed."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from photographs import photograph
from tiny import tiny_checkpoint, tiny_iqa

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.images.loading import ImageError, to_pil
from zoomiqa_reward.integrations.batches import stored_image
from zoomiqa_reward.integrations.named import named_reward
from zoomiqa_reward.integrations.verl_omni import compute_score
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

PIXELS = (photograph(0, 96, 96) * 255).round().to(torch.uint8)


def call(**options):
    """As `VisualRewardManager.run_single` calls it; `reward_kwargs` of the configuration come by keyword."""
    given = {
        "data_source": "sr",
        "solution_image": PIXELS,
        "ground_truth": "restore",
        "extra_info": {"num_turns": None},
    }
    return compute_score(**(given | {"device": "cpu", "model": str(tiny_checkpoint())} | options))


def test_the_rating_of_one_image():
    expected = ZoomIQAReward(tiny_iqa())(PIXELS.float() / 255)
    found = call()
    assert found == {"score": expected.value.item(), "std": expected.std.item()}
    assert call(solution_image=PIXELS[None]) == found
    assert call(solution_image=PIXELS.numpy()) == found
    assert call(reward_router_address="host:1", sampling_params={}) == found  # what else it may pass


def test_a_reward_that_needs_the_source():
    name, low = "mean_of_source:with_source", photograph(0, 24, 24)
    value = call(model=name, extra_info={"source_img": low})["score"]
    assert value == pytest.approx(float(PIXELS.float().mean() / 255 + low.mean()), rel=1e-5)
    with pytest.raises(ValueError, match=r"needs metadata\[0\]\['source_img'\]"):
        call(model=name)


def test_failures_are_errors_or_nan_and_never_zero():
    blank = torch.zeros_like(PIXELS)
    with pytest.raises(RuntimeError, match=r"could not measure image 0.*no content"):
        call(solution_image=blank)
    assert math.isnan(call(solution_image=blank, on_invalid="nan")["score"])
    with pytest.raises(ValueError, match="uint8 CHW"):
        call(solution_image=PIXELS.float())
    with pytest.raises(ValueError, match="no video"):
        call(solution_image=torch.stack([PIXELS, PIXELS]))
    with pytest.raises(ValueError, match="on_invalid='zero'"):
        call(on_invalid="zero")


@pytest.mark.parametrize("wrong", ["togther", "modle", "on_invald", "lqkey"])
def test_a_misspelt_option_is_refused(wrong):
    """It was ignored, as verl-omni's own are: a run asked for the input and was rewarded without it."""
    with pytest.raises(ValueError, match=f"option '{wrong}' .* must be one of model, mode, "):
        call(**{wrong: "conditioned"})
    assert call(model_name="theirs", reward_model_tokenizer=None) == call()


def test_a_named_reward_is_loaded_once():
    assert named_reward(str(tiny_checkpoint()), device="cpu") is named_reward(str(tiny_checkpoint()), device="cpu")
    with pytest.raises(ValueError, match="only for a Zoom-IQA model"):
        named_reward("niqe", mode="reason")


def test_images_of_data_sets(tmp_path):
    to_pil(photograph(0, 24, 24)).save(tmp_path / "low.png")
    data = (tmp_path / "low.png").read_bytes()
    assert stored_image({"bytes": data, "path": None}).size == (24, 24)
    assert stored_image({"bytes": None, "path": "low.png"}) == "low.png"
    assert stored_image("low.png") == "low.png"
    with pytest.raises(ImageError, match=r"bytes of low\.png are no image"):
        stored_image({"bytes": b"text", "path": "low.png"})
    assert issubclass(ImageError, ZoomIQAError)


@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="verl is not installed")
def test_its_own_loader_finds_it(tmp_path):
    torch.save(PIXELS, tmp_path / "image.pt")
    code = """
import json, os, torch
from omegaconf import OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn
config = OmegaConf.create({"reward": {"custom_reward_function": {
    "path": "pkg://zoomiqa_reward.integrations.verl_omni", "name": "compute_score",
    "reward_kwargs": {"model": os.environ["MODEL"], "device": "cpu"}}}})
compute_score = get_custom_reward_fn(config)
print(json.dumps(compute_score(data_source="sr", solution_image=torch.load("image.pt"), ground_truth="restore",
                               extra_info={"num_turns": None, "rollout_reward_scores": {}})))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MODEL": str(tiny_checkpoint())}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == call()
