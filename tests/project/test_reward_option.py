"""One `--reward` for all commands: the same names mean the same in each of them."""

import importlib
import inspect
import json

import pytest
from tiny import make_image, tiny_checkpoint

from zoomiqa_reward.cli import main as cli
from zoomiqa_reward.cli.reward_option import NAMES, load_reward
from zoomiqa_reward.images import save_png
from zoomiqa_reward.rewards.find import model_of
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

LAPLACIAN = "zoomiqa_reward.check.baselines:laplacian"
COMMANDS = (
    "zoomiqa_reward.cli.check:check", "zoomiqa_reward.cli.serve:serve", "restoration.cli.evaluate:evaluate",
    "restoration.cli.best_of_n:best_of_n", "restoration.cli.refine:refine", "restoration.cli.tune:tune",
    "restoration.cli.search:search",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_takes_a_reward_names_it_alike(command):
    module, _, function = command.partition(":")
    option = inspect.signature(getattr(importlib.import_module(module), function)).parameters["reward"]
    [declared] = option.annotation.__metadata__
    assert NAMES in declared.help


def test_a_name_is_a_model_or_it_is_not(tmp_path, monkeypatch):
    assert model_of("zoomiqa", "owner/large") == "owner/large"
    assert [model_of(name) for name in ("zoomiqa", "nano", "owner/large", str(tmp_path))] == [
        "nano", "nano", "owner/large", str(tmp_path),
    ]  # fmt: skip
    assert [model_of(name) for name in ("niqe", "no_such_name", LAPLACIAN)] == [None, None, None]
    monkeypatch.chdir(tmp_path)
    for name in ("niqe", "conditioned", "mine"):  # folders named after what wrote them
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert [model_of(name) for name in ("niqe", "conditioned", "mine")] == [None, None, "mine"]
    with pytest.raises(ValueError, match="two models"):
        model_of("nano", "owner/large")


@pytest.mark.integration
def test_each_kind_of_name_gives_its_reward():
    folder = str(tiny_checkpoint())
    for given in ({"name": folder}, {"name": "zoomiqa", "model": folder}):
        reward = load_reward(**given, mode="reason", num_samples=2, device="cpu")
        assert isinstance(reward, ZoomIQAReward)
        assert not reward.deterministic  # without a seed: each call samples anew
    conditioned = load_reward("conditioned", model=folder, device="cpu")
    assert conditioned.needs == {"lq"}
    assert conditioned.quality.iqa.name == load_reward(folder, device="cpu").iqa.name
    assert load_reward("referenced", model=folder, device="cpu").needs == {"hr"}
    assert load_reward("niqe").name == "niqe"
    assert load_reward(LAPLACIAN).name == "laplacian"


@pytest.mark.parametrize(("name", "options", "reason"), [
    ("none", {}, "needs a reward"), ("nique", {}, "neither a Zoom-IQA model"),
    ("niqe", {"mode": "reason"}, "--mode: only for a Zoom-IQA model"),
    ("niqe", {"adapter": "a", "num_samples": 2}, "--num-samples, --adapter: only for a Zoom-IQA model"),
    ("nano", {"model": "owner/large"}, "two models"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(name, options, reason):
    with pytest.raises(ValueError, match=reason):
        load_reward(name, **options)


@pytest.mark.integration
def test_best_of_n_chooses_by_any_reward(tmp_path, capsys):
    save_png(make_image(3, 24, 24), tmp_path / "lq.png")
    arguments = [str(tmp_path / "lq.png"), "--n", "2", "--plain", "--vary-sharpness", "0.5", "--json"]
    assert cli.main(["best-of-n", *arguments, "--out", str(tmp_path / "run"), "--reward", LAPLACIAN]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["score"] > rows[1]["score"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["reward"]["name"] == "laplacian"
