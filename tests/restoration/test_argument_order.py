"""Arguments in the wrong order, classes in place of objects, and numbers that are not whole are named."""

from dataclasses import replace
from functools import partial

import pytest
from tiny import make_image, tiny_iqa
from torch import nn

from restoration import Cascade, EarlyStop, Restorer, best_of_n, fuse, refine, search_noise
from restoration.evaluation.datasets import Dataset, DatasetItem
from restoration.evaluation.evaluate import evaluate
from restoration.selection.folder import best_of_folder
from zoomiqa_reward import ImageError, MetricReward, ZoomIQA, ZoomIQAReward, quality_map, rank, score_clip
from zoomiqa_reward.errors import NoReward
from zoomiqa_reward.rewards.argument_order import require_order

IMAGE = make_image(0, 16, 16)
RESTORER = Restorer.from_pretrained(nn.Upsample(scale_factor=2))
MEAN = MetricReward(lambda image: float(image.mean()), "mean", True, (0, 1), fingerprint="1")


@pytest.mark.parametrize("call", [best_of_n, search_noise, fuse, refine])
def test_an_exchanged_argument_of_a_search_is_named_with_the_order(call):
    with pytest.raises(ImageError, match=rf"image_lq=Restorer: must be one image .* are {call.__name__}\(restorer, im"):
        call(IMAGE, RESTORER, MEAN)
    with pytest.raises(ImageError, match=rf"image_lq=list: .* the arguments are {call.__name__}\(restorer, image_lq"):
        call("photo.png", [RESTORER], MEAN)
    with pytest.raises(
        (NoReward, TypeError), match=r"reward=Tensor: must be a (model or a reward|ZoomIQA or a Reward)"
    ):
        call(RESTORER, IMAGE, IMAGE)


def test_images_in_place_of_a_model_are_named_with_the_order():
    for call in (rank, quality_map, score_clip):
        with pytest.raises(NoReward, match=rf"iqa_or_reward=str: .* are {call.__name__}\(iqa_or_reward, "):
            call("photo.png", MEAN)
        with pytest.raises(NoReward, match="iqa_or_reward=ZoomIQA: is a class; pass an object of it"):
            call(ZoomIQA, "photo.png")
    with pytest.raises(NoReward, match="iqa_or_reward=list: must be a model or a reward"):
        rank([IMAGE, IMAGE], MEAN)
    require_order("call(reward, image)", judges={"reward": MEAN}, images={"image": "photo.png"})


def test_a_class_in_place_of_an_object_is_named():
    with pytest.raises(TypeError, match="iqa=ZoomIQA: is a class; pass an object of it"):
        ZoomIQAReward(ZoomIQA)
    with pytest.raises(TypeError, match="fn=L1Loss: is a class; pass an object of it"):
        MetricReward(nn.L1Loss, "l1", False, (0, 1))


def test_a_number_that_is_not_whole_is_named(tmp_path):
    for call, name in (
        (best_of_n, "n"), (best_of_n, "keep"), (best_of_n, "seed"), (best_of_n, "batch_size"), (search_noise, "n"),
        (search_noise, "per_round"), (fuse, "top"), (fuse, "view_px"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=rf"^{name}=2\.0: must be a whole number"):
            call(RESTORER, IMAGE, MEAN, **{name: 2.0})
    for make, name in (
        (partial(Cascade, reward=MEAN), "top"), (EarlyStop, "min_draws"),
        (partial(ZoomIQAReward, iqa=tiny_iqa("qwen2_5_vl"), mode="reason"), "batch_size"),
        (partial(ZoomIQAReward, iqa=tiny_iqa("qwen2_5_vl"), mode="reason"), "num_samples"),
        (partial(MetricReward, fn=min, name="a", higher_is_better=True, score_range=(0, 1)), "batch_size"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=rf"^{name}=2\.0: must be a whole number"):
            make(**{name: 2.0})
    with pytest.raises(TypeError, match=r"^view_px=2\.0: must be a whole number"):
        quality_map(MEAN, IMAGE, view_px=2.0)
    for name in ("rounds", "seeds_per_round"):
        with pytest.raises(TypeError, match=rf"^{name}=2\.0: must be a whole number"):
            refine(RESTORER, IMAGE, MEAN, **{name: 2.0})
    with pytest.raises(TypeError, match=r"^n='2': must be a whole number"):
        next(iter(best_of_folder(RESTORER, tmp_path, MEAN, tmp_path / "out", n="2")))
    dataset = Dataset(name="one", items=(DatasetItem(name="a", lq=tmp_path / "a.png"),))
    for name in ("n", "seed"):
        with pytest.raises(TypeError, match=rf"^{name}=2\.0: must be a whole number"):
            evaluate(RESTORER, dataset, ["psnr_y"], **{name: 2.0})
    for name in ("scale", "seed"):
        with pytest.raises(TypeError, match=rf"^{name}=2\.0: must be a whole number"):
            replace(dataset, **{name: 2.0})
