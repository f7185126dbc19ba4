"""Batches drawn once and shared by several trainings: what is read is what was drawn, each batch once."""

import json
import sys

import numpy as np
import pytest
import torch
from killed import outliving
from PIL import Image

from train_iqa.nano import drawn, words
from train_iqa.nano.drawing import draw_image
from train_iqa.nano.drawn import DrawnFolder, draw_folder, read_batch, write_batch
from train_iqa.nano.store import BATCH, DrawnBatch, WorkerError
from train_iqa.nano.train import NanoConfig, make_nano
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.runs.folder import locked


def photograph(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).resize((480, 400))


def batch(seed: int, *, large: bool = False, count: int = 2) -> DrawnBatch:
    rng = np.random.default_rng(seed)
    return DrawnBatch(large, [draw_image(photograph(seed + k), rng, large=large) for k in range(count)])


@pytest.mark.parametrize("large", [False, True])
def test_a_batch_that_is_read_is_the_one_that_was_written(tmp_path, large):
    made = batch(3, large=large, count=6)
    path = tmp_path / f"000000_{'large' if large else 'small'}.npz"
    write_batch(made, path)
    found = read_batch(path)
    assert found.large is large
    assert len(found.images) == 6
    for one, other in zip(found.images, made.images, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.reference, other.reference)
        assert (one.record, one.is_failed) == (other.record, other.is_failed)
    assert any(image.record.steps for image in found.images)  # else the records say nothing


def test_each_batch_is_taken_once_also_those_that_come_later(tmp_path):
    for number in range(2):
        write_batch(batch(number), tmp_path / f"{number:06d}_small.npz")
    with DrawnFolder(tmp_path) as folder:
        first = [folder.take(0), folder.take(0)]
        assert folder.take(0) is None
        write_batch(batch(2), tmp_path / "000002_small.npz")
        later = folder.take(0)
        assert folder.take(0) is None
    for number, found in enumerate([*first, later]):
        assert np.array_equal(found.images[0].image, batch(number).images[0].image)


@pytest.mark.parametrize(
    "wrong", [["--large-share", "1.5"], ["--local-share", "-0.1"], ["--seconds", "0"], ["--seed", "-1"]]
)
def test_numbers_outside_their_range_are_refused(tmp_path, wrong, capsys):
    assert drawn.main(["--photos", str(tmp_path), "--out", str(tmp_path / "drawn"), *wrong]) == 1
    assert wrong[0] in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()


DRAWING = """
from train_iqa.nano.store import Workers

def start(folder):
    with Workers(sorted(folder.glob("*.png")), count=2, seed=0) as workers:
        workers.take(60.0)
        yield [process.pid for process in workers._processes]
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_drawing_processes_end_with_a_training_that_is_killed(tmp_path):
    photograph(0).save(tmp_path / "0.png")
    assert outliving(DRAWING, tmp_path) == []


def test_only_one_process_draws_into_a_folder(tmp_path):
    for number in range(10):
        photograph(number).save(tmp_path / f"{number}.png")
    with locked(tmp_path / "drawn"), pytest.raises(ValueError, match="another process works in it"):
        draw_folder((tmp_path,), tmp_path / "drawn", seconds=1, workers=1, seed=0)


def test_a_folder_without_batches_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"no batch \*\.npz; fill it with `python -m train_iqa\.nano\.drawn`"):
        DrawnFolder(tmp_path)


def test_a_training_that_cannot_begin_says_that_the_folder_is_too_small(tmp_path, monkeypatch):
    write_batch(batch(0), tmp_path / "000000_small.npz")
    with DrawnFolder(tmp_path) as folder:
        folder.take(0)
        folder.require_more()  # it has just given one
        folder.take(0)
        folder.require_more()  # others may still be drawing
        monkeypatch.setattr(drawn, "QUIET_S", 0.0)
        folder.take(0)
        with pytest.raises(WorkerError, match="its 1 batches are too few to begin; draw more"):
            folder.require_more()


@pytest.mark.integration
def test_two_trainings_learn_from_one_folder(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "drawn"
    photos.mkdir()
    for number in range(10):
        photograph(number).save(photos / f"{number}.png")
    count = draw_folder((photos,), out, seconds=1, workers=1, seed=0)
    assert count == BATCH * len(list(out.glob("*.npz")))
    while count < 4 * BATCH:  # on a busy machine a second is not enough for one batch
        count += draw_folder((photos,), out, seconds=2, workers=1, seed=0)
        assert count == BATCH * len(list(out.glob("*.npz")))
    for seed in (0, 1):
        config = NanoConfig(
            photos=(photos,), out=tmp_path / f"run{seed}", drawn=out, seconds=1.0, size="small", store_small=16,
            store_large=8, population=16, seed=seed,
        ).scaled(0.0)  # fmt: skip
        assert (make_nano(config) / "model.safetensors").exists()
        last = json.loads((config.out / "dense" / "log.jsonl").read_text().splitlines()[-1])
        assert last["crops"] >= 16


@pytest.mark.integration
def test_the_words_stage_goes_on_from_a_checkpoint_and_from_where_it_was_stopped(tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "drawn"
    photos.mkdir()
    for number in range(10):
        photograph(number).save(photos / f"{number}.png")
    while len(list(out.glob("*_small.npz"))) < 4 or not list(out.glob("*_large.npz")):  # 64 crops are needed to begin
        draw_folder((photos,), out, seconds=2, workers=1, seed=0, large_share=0.4, local_share=0.7)
    batches = [read_batch(path) for path in out.glob("*.npz")]
    whole = [image for batch in batches if batch.large for image in batch.images if image.record.steps]
    assert any(image.record.box for image in whole)

    def run(seconds):
        where = ["--photos", str(photos), "--drawn", str(out), "--out", str(tmp_path / "run")]
        done = words.main(["--start", "nano", *where, "--seconds", str(seconds), "--threads", "1"])
        assert done == 0, capsys.readouterr().err
        log = (tmp_path / "run" / "words" / "log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in log]

    first = run(1)
    assert first[0]["step"] >= 1
    later = run(first[-1]["seconds"] + 20)  # of all calls together; the first step alone may take half a minute
    assert later[len(first)]["step"] > first[-1]["step"]
    before = ZoomIQA.from_pretrained("nano").checkpoint.model.state_dict()
    after = ZoomIQA.from_pretrained(tmp_path / "run" / "checkpoint").checkpoint.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert not any("visual" in name for name in changed)
