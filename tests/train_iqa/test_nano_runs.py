"""A run of nano: one process in its folder, photographs that are read like all images, and what it starts from."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nano_stages import noise_photograph
from PIL import Image

from train_iqa.nano.store import Workers
from train_iqa.nano.synthetic import clean_windows, make_sample
from train_iqa.nano.train import NanoConfig, build_learner, make_nano, source_of
from train_iqa.nano.words import WordsConfig, teach_words
from zoomiqa_reward.images.loading import ImageError
from zoomiqa_reward.protocol import Protocol
from zoomiqa_reward.runs.folder import locked
from zoomiqa_reward.runs.outputs import claim_folder

NANO = Path(__file__).parents[2] / "zoomiqa_reward" / "checkpoints" / "nano"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(10):
        noise_photograph(number, 160).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def config(photographs, tmp_path):
    return NanoConfig(photos=(photographs,), out=tmp_path / "run", seconds=1.0, size="small", workers=1).scaled(0.0)


def test_a_folder_belongs_to_one_training_at_a_time(config):
    with locked(config.out):
        with pytest.raises(ValueError, match="another process works in it"):
            make_nano(config)
        with pytest.raises(ValueError, match="another process works in it"):
            teach_words(replace(config, start="nano"), WordsConfig())


def test_views_are_not_chosen_on_no_photographs(config, tmp_path):
    for number in range(12):
        folder = tmp_path / "photographs" / str(number // 6)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(config.photos[0] / f"{number % 10}.png", folder / f"{number}.png")
    with pytest.raises(ValueError, match="each folder here has fewer than 8"):
        make_nano(replace(config, photos=(tmp_path / "photographs",), choose_views=True))
    assert not config.out.exists()


def test_a_run_that_goes_on_draws_other_images_than_before(config, photographs):
    drawn = []
    for rows in (0, 0, 2):
        (config.out / "dense").mkdir(parents=True, exist_ok=True)
        (config.out / "dense" / "log.jsonl").write_text('{"step": 1}\n' * rows)
        with source_of(config, sorted(photographs.iterdir())) as workers:
            drawn.append(workers.take(60.0).images[0].image)
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_a_run_keeps_the_views_of_the_checkpoint_that_it_starts_from(config, tmp_path):
    shutil.copytree(NANO, tmp_path / "start")
    protocol = Protocol.load(NANO)
    views = replace(protocol.views, weights=(0.1, 0.2, 0.3), whole_weight=0.4)
    replace(protocol, views=views).save(tmp_path / "start")
    claim_folder(config.out)
    learner, _ = build_learner(replace(config, start=str(tmp_path / "start")), [])
    assert learner.builder.protocol.views == views


def test_photographs_are_read_as_everywhere_and_a_damaged_one_is_named(photographs, tmp_path):
    deep = tmp_path / "deep.png"
    Image.fromarray(np.tile(np.linspace(0, 20000, 300).astype(np.uint16), (240, 1))).save(deep)  # at most 78 of 255
    assert make_sample(deep, np.random.default_rng(0), large=False).image.mean() < 120  # Pillow alone makes it white
    assert max(float(window.max()) for window in clean_windows([deep], seed=0)) < 0.35
    (tmp_path / "half.png").write_bytes((photographs / "0.png").read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"half\.png"):
        Workers([tmp_path / "half.png"], count=1, seed=0)
