"""Training the embedded restorer: pairs, the loss by hand, going on after a kill, and that it learns."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from restoration.nano import train as train_module
from restoration.nano.crops import Pairs, Photographs, clean_crop, held_out_pairs, split
from restoration.nano.learning import GROUPS, Optimizers, mean_residual, start_straight, x0_loss
from restoration.nano.pipeline import NanoSRPipeline, build_scheduler, build_unet, to_residual
from restoration.nano.train import NanoSRConfig, RestorerLearner, train
from zoomiqa_reward.runs.settings import AnotherRun
from zoomiqa_reward.runs.training_folder import TimeBudget

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for k in range(10):
        small = Image.fromarray(rng.integers(0, 256, (14, 16, 3), dtype=np.uint8))
        small.resize((160, 140), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    return folder


def tiny(photos, out, **changes):
    settings = {
        "photos": (photos,), "out": out, "steps": 6, "channels": (16, 16), "layers": 1, "crop_px": 96, "small_px": 64,
        "batch_px": 8 * 256, "shards": 2, "shard_size": 4, "workers": 1, "validation_crops": 4, "save_seconds": 0.0,
    }  # fmt: skip
    return NanoSRConfig(**(settings | changes))


def test_a_tenth_of_each_folder_is_never_learned_from(photos, tmp_path):
    training, held_out = split([photos, photos])
    assert [path.name for path in held_out] == ["7.png", "7.png"]
    assert len(training) == 18
    with pytest.raises(ValueError, match="0 photographs"):
        split([tmp_path])


def test_a_run_goes_on_with_its_own_photographs_and_settings_alone(photos, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def pairs(*_, **__):
        raise Reached

    monkeypatch.setattr(train_module, "Pairs", pairs)
    moved, others = tmp_path / "moved", tmp_path / "others"
    shutil.copytree(photos, moved)
    shutil.copytree(photos, others)
    shutil.copy(photos / "0.png", others / "10.png")
    config = tiny(photos, tmp_path / "run")
    for same in (config, replace(config, steps=9, workers=2, shards=3), replace(config, photos=(moved,))):
        with pytest.raises(Reached):
            train(same)
    for other in (replace(config, photos=(others,)), replace(config, seed=7), replace(config, rate=1e-4)):
        with pytest.raises(AnotherRun):
            train(other)


@pytest.fixture(scope="module")
def pairs(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    found = Pairs(folder, split([photos])[0], shards=2, shard_size=4, px=96, seed=1, workers=1,
                  device=torch.device("cpu"))  # fmt: skip
    while not found.complete:
        found.take()
    found.close()
    return found


@pytest.mark.integration
def test_lr_and_hr_windows_show_the_same_place_in_the_same_pose(pairs):
    assert pairs.count == 8
    told = Pairs(pairs.folder, [], shards=2, shard_size=4, px=96, seed=1, workers=1, device=torch.device("cpu"))
    told.take()
    assert torch.equal(told.hr, pairs.hr)  # no worker is needed for what is there
    told.lq = torch.nn.functional.avg_pool2d(told.hr.float(), 4).round().to(torch.uint8)
    large, small = told.batch(16, 16, np.random.default_rng(0))
    assert large.shape == (16, 3, 64, 64)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(large, 4), small, atol=0.003, rtol=0)
    assert not torch.equal(large[0], large[8])


def test_crops_hold_what_their_degraded_copies_hold(photos, pairs):
    """The copy of a crop is nearer to that crop, reduced, than to any other."""
    reduced = torch.nn.functional.interpolate(pairs.hr.float(), scale_factor=0.25, mode="area")
    distance = (reduced[:, None] - pairs.lq[None].float()).abs().mean(dim=(2, 3, 4))
    assert distance.argmin(dim=0).tolist() == list(range(8))
    crop = clean_crop(Photographs([photos / "1.png"], filtered=True), 96, np.random.default_rng(5))
    again = clean_crop(Photographs([photos / "1.png"], filtered=True), 96, np.random.default_rng(5))
    assert crop.shape == (3, 96, 96)
    np.testing.assert_array_equal(crop, again)
    hr, lq = held_out_pairs([photos / "7.png"], 4, 96)
    assert (hr.shape, lq.shape) == ((4, 3, 96, 96), (4, 3, 24, 24))


def test_a_network_that_starts_straight_says_nearly_x0_where_there_is_little_noise():
    torch.manual_seed(0)
    unet = build_unet((GROUPS * 5, GROUPS * 5), layers=1).eval()
    start_straight(unet)
    x0, lq = torch.randn(2, 48, 8, 8), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        found = unet(torch.cat([x0, lq * 2 - 1], dim=1), 30).sample
    assert float((found - x0).square().mean()) < 0.3
    assert float(torch.corrcoef(torch.stack([found.flatten(), x0.flatten()]))[0, 1]) > 0.9
    small = build_unet((16, 16), layers=1)
    start_straight(small)
    assert float(small(torch.randn(1, 51, 8, 8), 30).sample.abs().max()) == 0


def test_the_loss_of_a_network_that_says_nothing_is_the_targets_own_size():
    """x0 = 0 has the error mean(clean^2); weighed, each row's over sigma^2, which is 1 in the rows of pure noise."""
    unet = build_unet((16, 16), layers=1)
    start_straight(unet)
    pipe = NanoSRPipeline(unet, build_scheduler(), residual_std=0.1, predicts="x0")
    hr, lq = torch.rand(16, 3, 32, 32), torch.rand(16, 3, 8, 8)
    clean = to_residual(hr, lq, 0.1)
    found = x0_loss(pipe, None, hr, lq, torch.Generator().manual_seed(0))
    sizes = clean.square().mean(dim=(1, 2, 3))
    total = 2 * float(found["x0_first"]) + 14 * float(found["x0_rest"])
    assert total == pytest.approx(float(sizes.sum()), rel=1e-4)
    assert float(found["loss"]) > float(sizes.mean())
    # Tempered rows lie between the mean, which is nothing here, and the truth.
    assert float(mean_residual(pipe, lq).abs().max()) == 0
    with_mean = x0_loss(pipe, pipe, hr, lq, torch.Generator().manual_seed(0))
    assert float(with_mean["loss"]) < float(found["loss"])


def test_both_optimizers_move_the_network_itself_and_come_back_from_their_state():
    unet = build_unet((16, 16), layers=1)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    optimizers = Optimizers(unet, 1e-2)
    unet(torch.randn(2, 51, 8, 8), 100).sample.square().mean().backward()
    optimizers.step(1.0)
    after = unet.state_dict()
    assert not torch.equal(after["mid_block.resnets.0.conv1.weight"], before["mid_block.resnets.0.conv1.weight"])
    assert not torch.equal(after["conv_in.weight"], before["conv_in.weight"])
    assert all(one.grad is None for one in unet.parameters())
    again = Optimizers(unet, 1e-2)
    again.load_state_dict(optimizers.state_dict())
    assert again.muon.state_dict()["state"].keys() == optimizers.muon.state_dict()["state"].keys()


@pytest.mark.integration
def test_training_goes_on_where_it_was_stopped(photos, tmp_path):
    whole = NanoSRPipeline.from_pretrained(train(tiny(photos, tmp_path / "whole")))
    halves = tiny(photos, tmp_path / "halves")
    with pytest.MonkeyPatch.context() as patch:
        known = RestorerLearner.step

        def dies(self, number, pairs):
            if number == 3:
                raise KeyboardInterrupt
            return known(self, number, pairs)

        patch.setattr(RestorerLearner, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(halves)
    resumed = NanoSRPipeline.from_pretrained(train(halves))
    for one, two in zip(whole.unet.parameters(), resumed.unet.parameters(), strict=True):
        assert torch.equal(one, two)
    assert (tmp_path / "halves/train/log.jsonl").read_text() == (tmp_path / "whole/train/log.jsonl").read_text()
    assert resumed.config.agreement_px == 0.9
    assert resumed.config.predicts == "x0"


@pytest.mark.integration
@pytest.mark.parametrize("seconds", [4.5, 5.5, 6.5, 7.5, 8.5])
def test_seconds_are_a_budget_over_all_runs_and_a_spent_one_trains_no_more(photos, tmp_path, monkeypatch, seconds):
    """A second passes at each look at the clock, so the budget ends at every place of the loop once."""
    spent = iter(range(1000))
    monkeypatch.setattr(TimeBudget, "spent", property(lambda clock: float(next(spent))))
    steps = []
    known = RestorerLearner.step
    monkeypatch.setattr(RestorerLearner, "step", lambda *args: (steps.append(args[1]), known(*args)))
    config = tiny(photos, tmp_path, steps=None, seconds=seconds, save_seconds=1e6)
    first = train(config)
    log = (tmp_path / "train/log.jsonl").read_text()
    assert torch.load(tmp_path / "train/state.pt")["step"] == len(steps) > 0
    monkeypatch.undo()
    assert train(config) == first
    assert (tmp_path / "train/log.jsonl").read_text() == log


@pytest.mark.integration
def test_the_loss_falls(pairs, photos, tmp_path):
    """On one batch with one noise, before and after."""
    learner = RestorerLearner(tiny(photos, tmp_path, steps=80, rate=2e-2), std=0.1)
    batch = pairs.batch(32, 16, np.random.default_rng(1))

    def loss():
        with torch.no_grad():
            return float(x0_loss(learner.pipe, None, *batch, torch.Generator().manual_seed(0))["loss"])

    before = loss()
    for number in range(80):
        learner.step(number, pairs)
    assert loss() < 0.7 * before


@pytest.mark.parametrize("changes", [{"seconds": 0}, {"steps": 0}, {"crop_px": 90}, {"small_px": 200}, {"workers": 0}])
def test_settings_that_make_no_sense_are_refused(photos, tmp_path, changes):
    with pytest.raises(ValueError, match=r"must be|at least"):
        replace(tiny(photos, tmp_path), **changes)
