"""Training the embedded restorer: pairs, the loss by hand, going on after a kill, and that it learns."""

import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killed import outliving
from PIL import Image

from restoration.nano import train as train_module
from restoration.nano.crops import Pairs, Photographs, clean_crop, held_out_pairs, split
from restoration.nano.learning import GROUPS, Optimizers, averaging, mean_residual, rate_share, start_straight, x0_loss
from restoration.nano.pipeline import NanoSRPipeline, build_scheduler, build_unet, to_residual
from restoration.nano.train import NanoSRConfig, RestorerLearner, train
from zoomiqa_reward.images.loading import ImageError
from zoomiqa_reward.runs.folder import locked
from zoomiqa_reward.runs.json_lines import append_line
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
    shutil.copytree(photos, tmp_path / "all" / "inner")
    for number in range(3):
        shutil.copy(photos / "0.png", tmp_path / "all" / f"a{number}.png")
    with pytest.raises(ValueError, match=r"png: lies in two of the folders.*name only the outer one"):
        split([tmp_path / "all", tmp_path / "all" / "inner"])


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
    with locked(config.out), pytest.raises(ValueError, match="another process works in it"):
        train(config)
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


@pytest.mark.integration
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


@pytest.mark.integration
def test_pairs_lie_in_the_order_of_their_shards_not_in_that_of_their_arrival(pairs, tmp_path):
    """Else a run that goes on finds other pairs in its places, and ends with other weights."""
    folder = tmp_path / "pairs"
    shutil.copytree(pairs.folder, folder)
    (folder / "00000.npz").rename(tmp_path / "late.npz")
    later = Pairs(pairs.folder, [], shards=2, shard_size=4, px=96, seed=1, workers=1, device=torch.device("cpu"))
    later.folder = folder
    later.take()
    assert later.count == 0
    (tmp_path / "late.npz").rename(folder / "00000.npz")
    later.take()
    assert later.complete
    assert torch.equal(later.hr, pairs.hr)


def test_photographs_are_read_as_everywhere_and_a_damaged_one_is_named(photos, tmp_path):
    deep = np.tile(np.linspace(0, 65535, 200).astype(np.uint16), (160, 1))
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "half.png").write_bytes((photos / "0.png").read_bytes()[:2000])
    photographs = Photographs([tmp_path / "deep.png", tmp_path / "half.png"], filtered=False)
    assert np.asarray(photographs[0])[0, ::40, 0].tolist() == [0, 51, 103, 154, 205]  # Pillow alone would make it white
    with pytest.raises(ImageError, match=r"half\.png"):
        photographs[1]


def test_a_crop_keeps_its_colours_and_the_order_of_its_tones(tmp_path):
    x = np.tile(np.arange(160), (160, 1))
    ramp = np.stack([100 + 0.9 * x, 60 + 0.8 * x, 20 + 0.5 * x], axis=-1).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    photographs, kinds = Photographs([tmp_path / "ramp.png"], filtered=True), set()
    for seed in range(40):
        red, green, blue = clean_crop(photographs, 96, np.random.default_rng(seed)).astype(int)
        is_grey = bool((red == blue).all())
        assert is_grey or ((red > green) & (green > blue)).all()
        assert (np.diff(red.mean(axis=0)[8:-8]) >= -0.5).mean() > 0.6  # brighter to the right, but where it is mirrored
        kinds.add(is_grey)
    assert kinds == {False, True}


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


class Listener(torch.nn.Module):
    """A denoiser that says nothing and keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, sample, times):
        self.asked.append((sample, times))
        return SimpleNamespace(sample=torch.zeros(len(sample), 48, *sample.shape[-2:]))


def test_each_row_of_the_loss_has_its_own_input_noise_and_weight():
    """What the network is given is taken apart again, row by row, and the loss is summed up by hand."""
    count, tempered, first = 40, round(40 * 0.15), round(40 * 0.12)
    pipe = NanoSRPipeline(build_unet((16, 16), layers=1), build_scheduler(), residual_std=0.1, predicts="x0")
    pipe.unet = Listener()
    hr, lq = torch.rand(count, 3, 64, 64), torch.rand(count, 3, 16, 16)
    clean = to_residual(hr, lq, 0.1)
    losses = x0_loss(pipe, pipe, hr, lq, torch.Generator().manual_seed(0))
    (sample, times), *others = pipe.unet.asked[::-1]
    assert len(others) == 1  # the mean that tempered rows lie around, which is nothing here
    order = [int((lq * 2 - 1 - row).abs().amax(dim=(1, 2, 3)).argmin()) for row in sample[:, 48:]]
    assert sorted(order) == list(range(count)) != order  # windows come sorted by pose, and kinds of rows by place
    bars = pipe.scheduler.alphas_cumprod[times]
    target, strengths = clean[order], []
    for row, (noisy, bar) in enumerate(zip(sample[:, :48], bars, strict=True)):
        share = float((noisy * target[row]).sum() / target[row].square().sum())
        rest = float((noisy - share * target[row]).std())
        if row < count - tempered - first:
            assert share == pytest.approx(float(bar.sqrt()), abs=0.05)
            assert rest == pytest.approx(float((1 - bar).sqrt()), rel=0.05)
        elif row < count - first:  # truth and noise are scaled alike
            scaled = share / float(bar.sqrt()) if bar > 0.2 else rest / float((1 - bar).sqrt())
            assert 0 <= scaled <= 1.1
            assert rest == pytest.approx(scaled * float((1 - bar).sqrt()), rel=0.1, abs=0.03)
            target[row] = target[row] * scaled
        else:
            assert bar == 0
            strengths.append(rest)
    assert 0 < min(strengths) < 0.6 * max(strengths) < 0.7  # noise of any strength up to 1.1
    assert len(strengths) == first == int((times == 999).sum())
    errors = target.square().mean(dim=(1, 2, 3))
    assert float(losses["loss"]) == pytest.approx(float((errors / (1 - bars).clamp(min=0.04)).mean()), rel=0.02)
    assert float((1 - bars).min()) < 0.04  # else the floor under the weights is not seen


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


WRITING = """
import torch
from restoration.nano.crops import Pairs

def start(folder):
    pairs = Pairs(folder / "pairs", sorted(folder.glob("*.png")), shards=200, shard_size=4, px=96, seed=1, workers=2,
                  device=torch.device("cpu"))
    while not pairs.count:
        pairs.take()
    yield list(pairs._pool._processes)
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_that_write_pairs_end_with_a_training_that_is_killed(photos, tmp_path):
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    assert outliving(WRITING, tmp_path) == []


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
    append_line(tmp_path / "halves/train/log.jsonl", {"step": 4})  # a kill came between a row and its state
    resumed = NanoSRPipeline.from_pretrained(train(halves))
    for one, two in zip(whole.unet.parameters(), resumed.unet.parameters(), strict=True):
        assert torch.equal(one, two)
    assert (tmp_path / "halves/train/log.jsonl").read_text() == (tmp_path / "whole/train/log.jsonl").read_text()
    average = torch.load(tmp_path / "whole/train/state.pt")["average"]  # what is exported, and not the last step
    for name, value in whole.unet.state_dict().items():
        assert torch.equal(value, average[f"module.{name}"].half().float())
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


def test_the_average_follows_fast_at_first_and_slowly_later():
    for count, kept in ((0, 0.1), (8, 0.5), (10_000, 0.9)):
        averaged, current = torch.tensor([10.0]), torch.tensor([20.0])
        averaging(0.9)([averaged], [current], torch.tensor(count))
        assert float(averaged) == pytest.approx(10 * kept + 20 * (1 - kept))


def test_windows_grow_rows_are_tempered_and_rates_fall_while_a_run_goes_on(photos, tmp_path, monkeypatch):
    learner = RestorerLearner(tiny(photos, tmp_path, steps=20), std=0.1)
    windows, means, shares = [], [], []

    class Drawn:
        def batch(self, size, side, rng):
            windows.append((size, side))
            return torch.rand(size, 3, 4 * side, 4 * side), torch.rand(size, 3, side, side)

    def loss(pipe, mean, hr, lq, generator):
        means.append(mean)
        return {"loss": sum(parameter.sum() for parameter in pipe.unet.parameters())}

    monkeypatch.setattr(train_module, "x0_loss", loss)
    monkeypatch.setattr(Optimizers, "step", lambda self, share: shares.append(share))
    for number in range(20):
        learner.step(number, Drawn())
    assert windows == [(8, 16)] * 11 + [(8, 24)] * 9  # LR sides of 64 and of 96 px; as many pixels, in eights
    assert means == [None] * 7 + [learner.smooth] * 13
    assert shares == [rate_share(number, number / 20) for number in range(20)]
    norm = sum(float(parameter.grad.square().sum()) for parameter in learner.pipe.unet.parameters()) ** 0.5
    assert norm == pytest.approx(1, rel=1e-3)


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


@pytest.mark.parametrize(
    "changes", [{"seconds": 0}, {"steps": 0}, {"crop_px": 90}, {"small_px": 200}, {"workers": 0}, {"seed": -1}]
)
def test_settings_that_make_no_sense_are_refused(photos, tmp_path, changes):
    with pytest.raises(ValueError, match=r"must be|at least"):
        replace(tiny(photos, tmp_path), **changes)
