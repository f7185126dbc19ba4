"""Recipes, the images of a run, and the command `zoomiqa tune`."""

import json
from dataclasses import replace

import pytest
import torch
from test_tune_denoisers import nano
from test_tune_training import examples, recipe_of, rows_of

from restoration.restorer.restorer import Restorer
from restoration.tuning import Example, MonitorConfig, TuneConfig, load_examples
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.data import crop, pick_crops
from restoration.tuning.recipes import RECIPES, find_recipe
from zoomiqa_reward.errors import ImageError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_crops_of_pair_show_the_same_place():
    big = Example(name="x", lq=torch.rand(3, 20, 30))
    big = replace(big, hr=torch.nn.functional.interpolate(big.lq[None], scale_factor=4)[0])
    for one in [crop(big, 8), *pick_crops([big] * 3, 5, 8, (1,))]:
        assert one.lq.shape == (3, 8, 8)
        assert torch.equal(torch.nn.functional.interpolate(one.lq[None], scale_factor=4)[0], one.hr)
    first, again = (pick_crops(examples(5), 4, 8, (3, 1)) for _ in range(2))
    assert all(torch.equal(a.lq, b.lq) for a, b in zip(first, again, strict=True))
    assert len({one.name for one in first}) == 4
    with pytest.raises(ValueError, match="whole number"):
        Example(name="x", lq=torch.rand(3, 8, 8), hr=torch.rand(3, 17, 16))
    with pytest.raises(ImageError, match=r"^photos: no such file"):  # it took every letter
        load_examples("photos")
    assert [one.prompt for one in load_examples([big.lq, (big.lq, big.hr)], prompts=["a", "b"])] == ["a", "b"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds(name):
    recipe = find_recipe(name, seed=3, learning_rate=1e-3)
    assert recipe.name == name
    assert (recipe.config.seed, recipe.config.learning_rate) == (3, 1e-3)
    assert json.loads(json.dumps(recipe.settings()))["algorithm"]["name"] in name
    assert recipe.source == ("nano" if name.startswith("nano") else "stabilityai/stable-diffusion-x4-upscaler")
    if "reward_gradient" in name:
        assert not recipe.config.offload


def test_recipes_make_rewards(tmp_path):
    from tiny import tiny_iqa

    iqa = tiny_iqa()
    for name in RECIPES:
        reward = find_recipe(name).reward(iqa)
        assert reward.differentiable is ("reward_gradient" in name)
        scores = reward([torch.rand(3, 64, 64) for _ in range(2)], lq=[torch.rand(3, 16, 16)] * 2)
        assert bool(scores.valid.all())


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="recipe 'nano': must be among nano_grpo"):
        find_recipe("nano")
    for changes, words in (
        ({"rounds": 0}, "rounds=0"),
        ({"mixed_precision": "fp16"}, "float16"),
        ({"crop_px": 4}, "crop_px=4"),
    ):
        with pytest.raises(ValueError, match=words):
            TuneConfig(**changes)
    with pytest.raises(ValueError, match="nothing would be rejected"):
        SFT(top=4).prepare(type("T", (), {"config": TuneConfig(num_samples=4)}))


@pytest.mark.integration
def test_the_command_tunes_and_tells(tmp_path, monkeypatch, capsys):
    import typer
    from tiny import make_image, tiny_checkpoint

    from restoration.cli.tune import tune as command
    from zoomiqa_reward.images import save_png

    (tmp_path / "photos").mkdir()
    for k in range(16):
        save_png(make_image(k, 96, 96), tmp_path / "photos" / f"{k:02d}.png")
    nano().save_pretrained(tmp_path / "pipe")
    small = {"steps": 2, "crop_px": 12, "num_samples": 2, "images_per_round": 1}
    monkeypatch.setitem(RECIPES, "nano_sft", lambda **c: replace(
        recipe_of(SFT(), **(small | c)), reward=find_recipe("nano_nft").reward,
        monitor=MonitorConfig(metrics=("psnr_y",), crop_px=16, stop=False),
    ))  # fmt: skip
    app = typer.Typer()
    app.command()(command)
    arguments = ["nano_sft", "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--source",
                 str(tmp_path / "pipe"), "--model", str(tiny_checkpoint()), "--rounds", "1", "--device", "cpu",
                 "--degradation", "bicubic", "--json"]  # fmt: skip
    assert app(args=arguments, standalone_mode=False) == 0
    [line] = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["rounds"] == 1
    assert Restorer.from_pretrained(told["pipeline"], device="cpu").scale == 4
    assert rows_of(tmp_path / "out", "monitor.jsonl")[0]["round"] == 0
    with pytest.raises(ValueError, match="--pairs goes with the dpo recipes"):
        app(args=[*arguments, "--pairs", "x.parquet"], standalone_mode=False)


def test_tune_is_a_public_function(tmp_path):
    import restoration
    from restoration import tune

    assert "tune" in restoration.__all__
    with pytest.raises(ValueError, match="must be a diffusers pipeline"):
        tune(recipe_of(SFT()), examples(), None, tmp_path, validation=None, pipeline=object())
    assert tune.__module__ == "restoration.tuning.trainer"


def test_pairs_of_a_file_are_learned_as_they_are():
    """They may be images: nobody knows then what was seen, and so what to expect."""
    assert find_recipe("nano_dpo").config.expected_targets
    recipe = find_recipe("nano_dpo", pairs_file="pairs.parquet")
    assert not recipe.config.expected_targets
    assert recipe.algorithm.pairs_file == "pairs.parquet"
