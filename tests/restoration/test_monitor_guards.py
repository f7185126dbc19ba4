"""Guards of the tuning monitor: images that cannot be measured, dropped signals, label metrics behind wrappers."""

import functools
import json
import math
from dataclasses import replace

import pytest
from test_tune_denoisers import nano
from test_tune_training import examples, recipe_of, reward_of, rows_of

from restoration import metrics
from restoration.metrics import niqe
from restoration.metrics.conditioned import ConditionedReward
from restoration.metrics.registry import as_reward
from restoration.restorer.restorer import Restorer
from restoration.restorer.rng import candidate_seed
from restoration.selection.best_of_n import best_of_n
from restoration.tuning import MonitorConfig, tune
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.monitor.limits import compared, count_newly_unmeasured
from restoration.tuning.recipes import RECIPES
from zoomiqa_reward import MetricReward, RobustReward, ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.rewards.base import modules_of, optimised_names


@pytest.mark.integration
@pytest.mark.parametrize("dark", [1, 4])
def test_a_run_survives_validation_images_that_cannot_be_measured_and_names_what_it_drops(tmp_path, dark):
    def fn(image):
        return image.mean() * (math.nan if float(image.mean()) < 0.15 else 1.0)

    validation = examples(5, seed=9)
    for k in range(dark):
        one = validation[k]
        validation[k] = type(one)(name=f"dark{k}", lq=one.lq * 0.1, hr=one.hr * 0.1)
    watch = MonitorConfig(every=2, crop_px=8, metrics=("psnr_y",), deviations=1e6, max_kl=1e6)
    result = tune(replace(recipe_of(SFT(), rounds=2), monitor=watch), examples(), reward_of(fn, fingerprint="dark"),
                  tmp_path, validation=validation, pipeline=nano(), device="cpu")  # fmt: skip
    assert not result.alarms
    looks = rows_of(result.folder, "monitor.jsonl")
    assert all(math.isfinite(look["reward"]) for look in looks)
    assert result.best_round == 2
    dropped = json.loads((tmp_path / "result.json").read_text())["signals_without_limit"]
    said = [row["note"] for row in rows_of(result.folder) if "note" in row]
    assert ("reward" in dropped) == (dark == 4)
    assert any("reward" in note for note in said) == (dark == 4)


def test_means_compare_the_same_images():
    assert compared([math.nan, 2.0], [1.0, 3.0]) == (2.0, 3.0)
    assert all(map(math.isnan, compared([math.nan], [1.0])))
    assert count_newly_unmeasured([math.nan, 1.0, math.nan], [1.0, 1.0, math.nan]) == 1


@pytest.fixture(scope="module")
def iqa():
    return ZoomIQA.from_pretrained("nano", device="cpu")


@pytest.mark.parametrize("name", RECIPES)
def test_label_metrics_are_seen_through_every_default_recipe(iqa, name):
    reward = RECIPES[name]().reward(iqa)
    assert {one.lower() for one in iqa.protocol.label_metrics} <= optimised_names(reward)
    assert modules_of(reward) == [iqa.checkpoint.model]


def test_a_metric_is_seen_through_wrappers(iqa):
    assert "niqe" in optimised_names(RobustReward(as_reward("niqe")))
    wrapped = ConditionedReward(RobustReward(ZoomIQAReward(iqa)))
    assert {one.lower() for one in iqa.protocol.label_metrics} <= optimised_names(wrapped)
    assert len(modules_of(wrapped)) == 1


def _through_a_closure(metric):
    return lambda image: metric(image)


@pytest.mark.parametrize(
    "fn",
    [
        niqe,
        functools.partial(niqe),
        lambda image: -2 * niqe(image),
        lambda image: metrics.niqe(image),
        _through_a_closure(niqe),
        lambda image: max(niqe(turned) for turned in (image, image.flip(2))),
    ],
    ids=["itself", "partial", "lambda", "module", "closure", "inner"],
)
def test_a_metric_is_seen_behind_the_name_that_a_user_gave_it(fn):
    reward = RobustReward(MetricReward(fn, "mine", False, (0, 100)))
    assert "niqe" in optimised_names(reward)
    assert "fsim" not in optimised_names(reward)


def test_an_equal_image_is_the_best_candidate_and_stays_json():
    from skimage import data

    hr = load_image(data.astronaut()[100:164, 100:164].copy())
    perfect = candidate_seed(1, 2)
    restorer = Restorer.from_pretrained(
        lambda image, seed: hr if seed == perfect else hr * (0.9 - seed % 7 / 50), scale=1, fingerprint="x"
    )
    result = best_of_n(restorer, hr * 0.5, as_reward("psnr_y"), n=4, seed=1, hr=hr, progress=False)
    assert (result.best.index, result.best.score) == (2, 100.0)
    assert json.loads(json.dumps(result.report, allow_nan=False))["ranking"][0]["score"] == 100.0
