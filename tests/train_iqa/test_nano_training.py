"""The whole of `python -m train_iqa.nano` at toy size: it runs, resumes, and what it writes loads and rates."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train_iqa.nano.build import CHROMA, LUMA, build_model, init_energy_meters
from train_iqa.nano.degradations import DamageRecord, Step
from train_iqa.nano.dense import dense_batch, local_rank
from train_iqa.nano.drawing import LARGE_PX, DegradedImage, draw_image, failed
from train_iqa.nano.labels import LabelScale
from train_iqa.nano.people import People, cut_view, folds, moved_images, read_opinions
from train_iqa.nano.store import GRID, KINDS, Store, Workers, cover_map, read_pairs
from train_iqa.nano.synthetic import hold_out, list_photographs, make_sample
from train_iqa.nano.train import NanoConfig, bind_run, main, make_nano
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.runs.folder import locked
from zoomiqa_reward.runs.settings import AnotherRun


def photograph(rng, size=(160, 120)):
    return Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for k in range(10):
        photograph(rng).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A scene of eight images and four images of their own."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(1)
    with open(folder / "people.csv", "w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["image", "set", "scene", "mos"])
        for k in range(12):
            photograph(rng, (168, 140) if k % 2 else (140, 168)).save(folder / f"{k}.png")
            rows.writerow([f"{k}.png", "lab" if k < 8 else "wild", "one" if k < 8 else k, 1 + k / 3])
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(2)
    for name in ("images", "references"):
        (folder / name).mkdir()
        photograph(rng, (224, 224)).save(folder / name / "a.png")
    return folder


@pytest.fixture(scope="module")
def toy(photographs, people, pairs, tmp_path_factory):
    config = NanoConfig(
        photos=(photographs,), out=tmp_path_factory.mktemp("run"), seconds=3.0, people=people, pairs=pairs,
        size="small", workers=1, store_small=48, store_large=32, population=24, save_every_s=0.0,
    ).scaled(0.0)  # fmt: skip
    small = {"group": 2, "rehearsed": 8, "first": 1, "local": 1, "second": 1}
    return replace(config, opinions=replace(config.opinions, **small))


@pytest.fixture(scope="module")
def checkpoint(toy):
    return make_nano(toy)


@pytest.mark.integration
def test_checkpoint_loads_by_the_common_path_and_rates(checkpoint):
    iqa = ZoomIQA.from_pretrained(str(checkpoint))
    ratings = iqa.rate([torch.rand(3, 60, 90)], strict=True)
    assert ratings.mean.shape == (1,)
    assert iqa.protocol.label_metrics == ("haarpsi", "mdsi", "vsi")
    assert sum(iqa.protocol.views.weights) + iqa.protocol.views.whole_weight == pytest.approx(1)
    assert LabelScale.load(checkpoint / "label_scale.json")


@pytest.mark.integration
def test_every_stage_has_logged_its_losses(toy, checkpoint):
    for stage, loss in (("dense", "quality_8"), ("teach", "direct_divergence"), ("people", "people_divergence")):
        rows = [json.loads(line) for line in (toy.out / stage / "log.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] >= 1
        assert np.isfinite(rows[-1][loss])


@pytest.mark.integration
def test_second_call_continues_and_changes_nothing(toy, checkpoint):
    weights = (checkpoint / "model.safetensors").read_bytes()
    logs = [(toy.out / stage / "log.jsonl").read_text() for stage in ("dense", "teach", "people")]
    assert make_nano(toy) == checkpoint
    assert (checkpoint / "model.safetensors").read_bytes() == weights
    assert [(toy.out / stage / "log.jsonl").read_text() for stage in ("dense", "teach", "people")] == logs


@pytest.mark.integration
def test_a_longer_run_goes_on_from_what_is_there(toy, checkpoint):
    before = (toy.out / "people" / "log.jsonl").read_text()
    spent = json.loads(before.splitlines()[-1])
    others, more = toy.seconds * (1 - toy.people_share), spent["seconds"] + 0.2  # the people stage alone has more time
    make_nano(replace(toy, seconds=others + more, people_share=more / (others + more)))
    after = (toy.out / "people" / "log.jsonl").read_text()
    assert after.startswith(before)
    assert json.loads(after.splitlines()[-1])["step"] > spent["step"]


@pytest.mark.integration
def test_people_alone_go_on_from_a_checkpoint(toy, checkpoint, tmp_path):
    source = ZoomIQA.from_pretrained(str(checkpoint))
    config = replace(toy, out=tmp_path, start=str(checkpoint), seconds=0.5)
    made = ZoomIQA.from_pretrained(str(make_nano(config)))
    assert not (tmp_path / "dense").exists()
    first, onwards = (
        json.loads((folder / "people" / "log.jsonl").read_text().splitlines()[-1]) for folder in (toy.out, tmp_path)
    )
    assert "first_aux" in first  # the read-outs were taught in the stage before
    assert "first_text" in onwards
    assert "first_aux" not in onwards  # here they are random, and must not teach the model
    assert (tmp_path / "label_scale.json").read_text() == (toy.out / "label_scale.json").read_text()
    assert made.checkpoint.tokenizer.get_vocab() == source.checkpoint.tokenizer.get_vocab()
    weights = [iqa.checkpoint.model.state_dict() for iqa in (source, made)]
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("more", [{}, {"words": {"short": 1}}])
def test_a_folder_goes_on_with_its_own_run_alone(photographs, tmp_path, more):
    """Else the weights of one run are exported as those of another, under its settings."""
    paths = sorted(photographs.iterdir())
    for folder in (tmp_path, tmp_path / "fold"):
        folder.mkdir(exist_ok=True)
        shutil.copy(paths[0], folder / "a.png")
        (folder / "people.csv").write_text("image,set,scene,mos\na.png,s,1,3\n")
    config = NanoConfig(photos=(photographs,), out=tmp_path / "run", start="nano", people=tmp_path)
    with locked(config.out):
        bind_run(config, paths, **more)
        for same in (
            config,
            replace(config, seconds=9.0, people_share=0.9, workers=1, device="cuda", photos=(tmp_path,)),
        ):
            bind_run(same, paths, **more)
        for other in (replace(config, start="a/b"), replace(config, seed=1), replace(config, people=tmp_path / "fold")):
            with pytest.raises(AnotherRun):
                bind_run(other, paths, **more)
        with pytest.raises(AnotherRun, match="photographs"):
            bind_run(config, paths[1:], **more)
        with pytest.raises(AnotherRun):
            bind_run(config, paths, words={"short": 2})
        (tmp_path / "people.csv").write_text("image,set,scene,mos\na.png,s,1,4\n")  # the same path, other scores
        with pytest.raises(AnotherRun, match=r"contents\.people"):
            bind_run(config, paths, **more)


def test_the_command_line_reaches_the_people_stage(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("train_iqa.nano.train.make_nano", asked.append)
    more = ["--people", "scores", "--drawn", "batches", "--learning-rate", "0.0003"]
    assert main(["--photos", str(tmp_path), *more]) == 0
    assert main(["--photos", str(tmp_path), *more, "--rows-scale", "1"]) == 0
    cpu, full = (config.opinions for config in asked)
    assert [config.drawn for config in asked] == [Path("batches")] * 2
    assert cpu.learning_rate == full.learning_rate == 0.0003
    names = ("groups", "rehearsed", "ladders", "first", "local", "second")
    assert [getattr(cpu, name) for name in names] == [1, 8, 4, 2, 2, 1]
    assert [getattr(full, name) for name in names] == [4, 64, 8, 8, 24, 12]


@pytest.mark.integration
def test_a_held_language_side_keeps_every_bit_while_the_tower_learns(toy, checkpoint, tmp_path):
    config = replace(toy, out=tmp_path, start=str(checkpoint), seconds=0.5, hold_language=True)
    before, after = (
        ZoomIQA.from_pretrained(str(source)).checkpoint.model.state_dict() for source in (checkpoint, make_nano(config))
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("visual" in name for name in changed)
    row = json.loads((tmp_path / "people" / "log.jsonl").read_text().splitlines()[-1])
    assert "first_text" in row  # words are rehearsed
    assert "first_aux" not in row  # but no read-outs are taught, which would stay random


def test_a_start_without_people_is_refused(toy):
    with pytest.raises(ValueError, match="people"):
        make_nano(replace(toy, start="nano", people=None))
    with pytest.raises(ValueError, match="seed=-1: must be 0 or more"):
        replace(toy, seed=-1)


def test_the_command_names_its_arguments(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("--photos", "--seconds", "--device", "--people", "--pairs", "--start"))


def test_every_tenth_photograph_of_a_folder_is_held_out(photographs):
    paths = list_photographs(photographs)
    training, held = hold_out(paths)
    assert [path.name for path in held] == ["7.png"]
    assert sorted([*training, *held]) == paths
    with pytest.raises(ValueError, match="at least 10"):
        list_photographs(photographs / "none")


def test_draws_have_their_sizes_and_true_records(photographs):
    rng, found = np.random.default_rng(0), []
    with Image.open(photographs / "0.png") as file:
        for large in (False, True) * 30:
            drawn = draw_image(file.convert("RGB"), rng, large=large)
            assert drawn.image.shape == drawn.reference.shape
            assert drawn.image.shape[1::-1] in (LARGE_PX if large else ((224, 224),))
            found.append(drawn)
    assert any(one.record.box for one in found)
    untouched = [one for one in found if not one.record.steps]
    assert all(np.abs(one.image.astype(int) - one.reference).mean() < 6 for one in untouched)


def test_a_failed_image_has_the_worst_label_and_says_so(photographs):
    rng = np.random.default_rng(0)
    store = Store(torch.device("cpu"), small=8, large=2, population=8)
    store.use_scale(LabelScale(knots={name: tuple(np.linspace(0, 1, 3)) for name in ("haarpsi", "mdsi", "vsi")}))
    reference = rng.random((224, 224, 3), dtype=np.float32)
    image, record = failed(reference, rng)
    while record.box is not None:
        image, record = failed(reference, rng)
    assert np.ptp(image) < 0.2
    eight = [(x * 255).astype(np.uint8) for x in (image, reference)]
    drawn = DegradedImage(image=eight[0], reference=eight[1], record=record, is_failed=True)
    clean = DegradedImage(image=eight[1], reference=eight[1], record=DamageRecord(steps=()))
    store.add_small([drawn, clean])
    assert store.labels[0] == 1.0
    assert store.labels[1] > 3.6  # MDSI of equal images is 0, the middle of these knots' end
    assert store.local[0].max() == 0


@pytest.mark.integration
def test_the_store_keeps_the_newest_and_labels_as_samples_are_labelled(photographs):
    paths = list_photographs(photographs)
    with Workers(paths, count=1, seed=0) as workers:
        store = Store(torch.device("cpu"), small=32, large=16, population=24)
        while store.added["small"] < 64 or not store.ready:
            store.fill(workers, seconds=1)
    assert store.count == 32
    assert np.isfinite(store.labels).all()
    assert store.labels.min() >= 1
    assert store.labels.max() <= 5
    sample = make_sample(paths[0], np.random.default_rng(0), large=False)
    assert sample.local.shape == (GRID, GRID)
    drawn = DegradedImage(image=sample.image, reference=sample.image, record=sample.record)
    store.add_small([drawn])
    assert store.scores[0, 0] == pytest.approx(1.0, abs=1e-4)  # HaarPSI of an image with itself


def test_dense_targets_turn_with_their_images():
    """One token is marked in the image and in its targets; after any orientation they still agree."""
    store = Store(torch.device("cpu"), small=1, large=1, population=1)
    image = np.zeros((224, 224, 3), dtype=np.uint8)
    image[28:56, 140:168] = 255
    store.use_scale(LabelScale(knots={name: tuple(np.linspace(0, 1, 65)) for name in ("haarpsi", "mdsi", "vsi")}))
    step = Step(kind="jpeg", severity=1.0)
    record = DamageRecord(steps=(step,), box=(140 / 224, 28 / 224, 168 / 224, 56 / 224))
    store.add_small([DegradedImage(image=image, reference=image, record=record)])
    assert local_rank(store, torch.tensor([0])).shape == (1, GRID, GRID)
    for grid in (GRID, GRID // 2):
        images, targets = dense_batch(store, 8, grid, np.random.default_rng(0))
        bright = torch.nn.functional.avg_pool2d(images, 28)[:, 0] > 0.5
        assert torch.equal(bright, targets.kinds[..., KINDS.index("jpeg")] > 0.5)
        assert (targets.whole is None) is (grid != GRID)
    assert len({tuple(one.flatten().tolist()) for one in dense_batch(store, 8, GRID, np.random.default_rng(0))[0]}) == 8


def test_cover_is_where_the_damage_is():
    record = DamageRecord(steps=(Step(kind="jpeg", severity=1.0),), box=(0.0, 0.0, 0.5, 1.0))
    assert cover_map(record, 2, 4).tolist() == [[1, 1, 0, 0]] * 2
    assert cover_map(DamageRecord(steps=record.steps), 2, 2).min() == 1
    assert cover_map(DamageRecord(steps=()), 2, 2).max() == 0


def test_opinions_are_read_and_wrong_ones_refused(people, tmp_path):
    opinions = read_opinions(people)
    assert len(opinions) == 12
    assert opinions[3].mos == 2.0
    with pytest.raises(ValueError, match="no such file"):
        read_opinions(tmp_path)
    (tmp_path / "people.csv").write_text("image,set,scene\na.png,x,y\n")
    with pytest.raises(ValueError, match="no column mos"):
        read_opinions(tmp_path)
    (tmp_path / "people.csv").write_text(f"image,set,scene,mos\n{people / '0.png'},x,y,7\n")
    with pytest.raises(ValueError, match=r"people.csv:2: mos 7.0 is outside"):
        read_opinions(tmp_path)


def test_a_scene_is_never_in_two_folds(people):
    opinions = read_opinions(people)
    found = folds(opinions, 3)
    assert len({fold for one, fold in zip(opinions, found, strict=True) if one.scene == "one"}) == 1
    assert len({fold for one, fold in zip(opinions, found, strict=True) if one.set == "wild"}) == 3


def test_a_group_of_a_scene_is_cut_at_one_place(people):
    opinions = [replace(one, image=people / "0.png") for one in read_opinions(people)[:8]]
    group, rng = People(opinions, torch.device("cpu")), np.random.default_rng(0)
    for _ in range(8):
        images, scores = group.group(4, rng)
        assert images.shape[0] == len(scores) == 4
        assert images.shape[2] % 28 == images.shape[3] % 28 == 0
        assert torch.equal(images[0], images[1])  # the same image, so the same place


def test_views_of_an_image():
    image = torch.rand(3, 600, 800)
    assert cut_view(image, "tile", 336, (0.5, 0.5)).shape == (3, 336, 336)
    assert torch.equal(cut_view(image, "tile", 224, (1.0, 0.0)), image[:, 376:, :224])
    assert cut_view(image, "half", 336, (0.0, 0.0)).shape == (3, 280, 336)
    height, width = cut_view(image, "whole", 336, (0.0, 0.0)).shape[1:]
    assert (height % 28, width % 28) == (0, 0)
    assert 0.8 * 448**2 < height * width <= 448**2


def test_moved_images_move_by_their_length_along_the_gradient():
    images, gradient = torch.full((2, 3, 224, 224), 0.5), torch.randn(2, 3, 224, 224)
    moved = moved_images(images, gradient, np.random.default_rng(0)) - images
    lengths = moved.flatten(1).norm(dim=1)
    assert (lengths <= 0.8 + 1e-4).all()
    cosine = torch.nn.functional.cosine_similarity(moved.flatten(1), gradient.flatten(1))
    assert cosine.min() > 0.99


def test_pairs_need_their_references(pairs, tmp_path):
    assert len(read_pairs(pairs)) == 1
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        read_pairs(tmp_path)
    (tmp_path / "images" / "b.png").write_bytes((pairs / "images" / "a.png").read_bytes())
    with pytest.raises(ValueError, match="no reference"):
        read_pairs(tmp_path)


def test_energy_meters_saturate_each_component_at_its_threshold():
    """Channel (band, t) is the sum over the band's components of that t of sat(|e| / t), e after normalisation.

    sat(u) = f(u) + f(-u) - f(u - 1) - f(-u - 1) with f(u) = silu(4 u) / 4, close to min(|u|, 1): by hand, for |u| well
    above 1 it is u - (u - 1) = 1, and for u = 0.5 it is 0.44 + (-0.06) - (-0.06) - 0.00 = 0.44.
    """
    tower = build_model(None, seed=0).model.visual
    init_energy_meters(tower)
    block, components = tower.blocks[0], LUMA + 2 * CHROMA
    block.mlp.down_proj.weight.data[:, 4 * components :] = 0
    block.mlp.down_proj.bias.data.zero_()
    residual = torch.zeros(1, 192)
    residual[0, 0], residual[0, 1], residual[0, 8], residual[0, -1] = 10.0, -0.25, 0.075, 30.0
    out = block.mlp(block.norm2(residual))[0].detach()
    channels = dict(zip(("band 0, t0", "band 0, t1", "band 1, t0"), out[[112, 113, 116]].tolist(), strict=True))
    idle = float(out[114])  # no component of its own is active
    assert channels["band 0, t0"] == pytest.approx(1, abs=0.05)
    assert channels["band 0, t1"] == pytest.approx(0.44, abs=0.08)
    assert channels["band 1, t0"] == pytest.approx(0.44, abs=0.08)
    assert idle == pytest.approx(2 * 0.036, abs=0.005)  # two silent components, each -2 f(-1) = 0.036
