"""Files are decoded ahead, in order, few at a time, and a bad one is an error at its turn."""

import threading
import time

import pytest
import torch
from tiny import make_image

from zoomiqa_reward.images import ImageError, load_image, save_png, to_pil
from zoomiqa_reward.model import ahead
from zoomiqa_reward.model.ahead import AHEAD, load_ahead
from zoomiqa_reward.model.numerics import canonical_numerics


@pytest.fixture
def files(tmp_path):
    return [save_png(to_pil(make_image(seed, 40 + seed, 50)), tmp_path / f"{seed}.png") for seed in range(6)]


def test_images_come_in_order_and_as_loaded(files):
    mixed = [*files[:3], make_image(9), *files[3:]]
    for image, source in zip(load_ahead(mixed), mixed, strict=True):
        assert torch.equal(image, load_image(source))


def test_few_are_decoded_before_their_turn_and_in_another_thread(files, monkeypatch):
    begun = []

    def watch(source):
        begun.append(threading.current_thread().name)
        return load_image(source)

    monkeypatch.setattr(ahead, "load_image", watch)
    stream = load_ahead(files)
    next(stream)
    time.sleep(0.3)
    assert len(begun) == 1 + AHEAD
    stream.close()
    assert all(name.startswith("zoomiqa-load") for name in begun)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("zoomiqa-load")]


def test_a_bad_file_is_an_error_at_its_turn(files):
    files[2].write_bytes(b"no image")
    stream = load_ahead(files)
    assert [next(stream).shape[1] for _ in range(2)] == [40, 41]
    with pytest.raises(ImageError, match=r"^image 2: "):
        next(stream)


def test_the_thread_computes_in_canonical_numerics(files):
    torch.set_default_dtype(torch.float64)
    try:
        with canonical_numerics():
            images = list(load_ahead(files))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(image, load_image(file)) for image, file in zip(images, files, strict=True))
