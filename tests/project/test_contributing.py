"""CONTRIBUTING.md adds a reward, a metric and a tuning algorithm in one file each: its files are taken out and used."""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from zoomiqa_reward.cli import main as cli

pytestmark = pytest.mark.integration

FILE = re.compile(r"^```python\n# file: (\w+)\.py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def added(desk, monkeypatch):
    """Write the page's files into the working folder and return a function that imports one."""
    files = dict(FILE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert set(files) == {"my_reward", "my_metric", "my_algorithm"}
    for name, code in files.items():
        (desk / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(desk)
    importlib.invalidate_caches()
    yield importlib.import_module
    for name in files:
        sys.modules.pop(name, None)


def test_the_reward_scores_and_is_checked(added, capsys):
    reward = added("my_reward").make()
    sharp, soft = "candidates/from256.png", "candidates/from032.png"
    scores = reward([sharp, soft, "no-such-file.png"])
    assert scores.valid.tolist() == [True, True, False]
    assert scores.value[0] > scores.value[1]

    steps = torch.arange(8.0).expand(3, 8, 8) / 7  # neighbours differ by 1/7 across and by nothing down
    assert reward([steps]).value.item() == pytest.approx(1 / 14)

    code = cli.main(["check", "photo.png", "--crop-px", "96", "--reward", "my_reward:make"])
    assert code == 2  # one photograph is too few for a verdict, but all of it was measured
    assert '"fine_detail"' in capsys.readouterr().out


def test_the_metric_is_measured_rewards_and_evaluates(added):
    from restoration.evaluation.datasets import degraded_folder
    from restoration.evaluation.evaluate import BicubicRestorer, evaluate
    from restoration.metrics import METRICS, as_reward, measure

    added("my_metric")
    try:
        image = torch.full((3, 16, 16), 0.5)
        red = image.clone()
        red[0] += 0.25  # R - G is off by 0.25, B - G by nothing
        assert measure(["colour_error"], red, hr=image)["colour_error"].value == pytest.approx(0.125)
        assert "needs hr" in measure(["colour_error"], red)["colour_error"].reason
        assert as_reward("colour_error")([red, image], hr=[image, image]).value.tolist() == pytest.approx([-0.125, 0])

        evaluation = evaluate(
            BicubicRestorer(), degraded_folder("candidates", "mild"), ["colour_error"], n=1, out="run"
        )
        assert evaluation.report()["headline"] == "colour_error"
    finally:
        del METRICS["colour_error"]


def test_the_algorithm_tunes(added, nano):
    from restoration import Restorer, tune
    from restoration.evaluation.datasets import degraded_folder
    from restoration.tuning import load_examples
    from restoration.tuning.recipes import find_recipe

    algorithm = added("my_algorithm").WeightedRegression(sharpness=2.0)
    small = find_recipe("nano_sft", rounds=1, images_per_round=2, num_samples=3, updates_per_round=1, epochs=1,
                        crop_px=16, vary_sharpness=0.0, expected_targets=False)  # fmt: skip
    recipe = replace(small, name="my_run", algorithm=algorithm)
    examples = load_examples(degraded_folder("candidates", "mild", scale=4, seed=0))
    result = tune(recipe, examples, added("my_reward").make(), "runs/mine", validation=None)
    assert result.rounds == 1

    [tuned] = result.restorer().restore("photo_small.png", seeds=[0])
    [base] = Restorer.from_pretrained("nano").restore("photo_small.png", seeds=[0])
    assert not torch.equal(tuned.image, base.image)
    assert Path("runs/mine/lora/pytorch_lora_weights.safetensors").stat().st_size > 0
    with pytest.raises(ValueError, match="sharpness=0"):
        tune(replace(recipe, algorithm=replace(algorithm, sharpness=0.0)), examples, added("my_reward").make(),
             "runs/other", validation=None)  # fmt: skip
