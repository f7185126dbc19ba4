"""Refinement of the worst views of a quality map: which regions, in which order, when it ends, and resuming."""

import pytest
import torch
from scripted_refinement import CONTENT, LQ, Scripted, grainy, run
from tiny import make_image

from restoration.refinement.map_regions import worst_view
from restoration.refinement.regions import ZoomRequest
from zoomiqa_reward.model.quality_map import quality_map
from zoomiqa_reward.model.ratings import Ratings
from zoomiqa_reward.rewards.metric import MetricReward

# 80 x 96 px, shown twice as large: views of the map are told by a smaller side than the default.
VIEW_PX = 80


class Bright(Scripted):
    """Names no region in words; rates a view by its brightness."""

    def rate(self, images, mode, strict, question=None, batch_size=8):
        mean = torch.tensor([1 + 4 * float(image.mean()) for image in images])
        return Ratings(value=mean, std=torch.zeros_like(mean), valid=~mean.isnan(), std_kind="token")


def map_of(image, **options):
    return quality_map(Bright(CONTENT), image, view_px=VIEW_PX, **options)


def test_the_worst_view_comes_first_then_the_next_and_never_the_best():
    image = make_image(1, 80, 160)
    image[:, :, 80:] *= 0.3
    quality = map_of(image)
    assert len(quality.boxes) == 3
    words = ZoomRequest(box=None, directions="More detail.", issues="Noise.", error="unreadable")
    first = worst_view(quality, (), 2, words)
    assert first.box == (40, 0, 80, 40)
    assert (first.directions, first.issues, first.error) == ("More detail.", "Noise.", None)
    assert first.rating == pytest.approx(float(quality.ratings.mean[2]))
    second = worst_view(quality, {first.box}, 2, words)
    assert second.box == (20, 0, 60, 40)
    assert worst_view(quality, {first.box, second.box}, 2, words).box is None


def test_one_view_and_views_that_are_equal_ask_for_nothing():
    words = ZoomRequest(box=None)
    assert worst_view(map_of(make_image(1, 80, 80)), (), 1, words).box is None
    half = make_image(1, 80, 40)
    assert worst_view(map_of(half.repeat(1, 1, 4)), (), 1, words).box is None


def darkest_corner():
    """A low-quality image, enlarged twice larger than a view of the default side, dark at the lower right."""
    image = make_image(2, 160, 200)
    image[:, 90:, 110:] *= 0.4
    return image


def enlarged(image, seed):
    return grainy(image, seed)


def test_refine_restores_the_worst_view_where_the_words_name_none():
    image = darkest_corner()
    reward = MetricReward(lambda one: float(one.mean()), name="mean", higher_is_better=True, score_range=(0, 1))
    iqa = Bright(CONTENT)
    words = run(enlarged, image=image, reward=reward, iqa=iqa, rounds=2, min_gain=0.0)
    assert words.stopped == "satisfied"
    result = run(enlarged, image=image, reward=reward, iqa=iqa, rounds=3, regions="map", min_gain=0.0)
    later = result.history[1:]
    assert later
    left, top, right, bottom = later[0].region
    assert right == 200
    assert bottom == 160
    assert (left, top) == (200 - 84, 160 - 84)  # the corner's view: 168 px of the image that is twice as large
    refused = [one.region for one in later if not one.accepted]
    assert len(set(refused)) == len(refused)  # a refused view is not tried again


def test_a_deterministic_restorer_goes_on_to_the_next_view():
    image = darkest_corner()

    def fixed(one):
        return one.repeat_interleave(2, 1).repeat_interleave(2, 2)

    reward = MetricReward(lambda one: float(one.mean()), name="mean", higher_is_better=True, score_range=(0, 1))
    result = run(fixed, image=image, reward=reward, iqa=Bright(CONTENT), rounds=3, regions="map")
    regions = [one.region for one in result.history[1:]]
    assert len(regions) == len(set(regions)) == 3
    assert result.stopped == "budget"


@pytest.mark.integration
def test_a_run_with_a_map_continues_and_is_told_from_one_with_words(tmp_path):
    image = darkest_corner()
    reward = MetricReward(lambda one: float(one.mean()), name="mean", higher_is_better=True, score_range=(0, 1))
    options = {"image": image, "reward": reward, "iqa": Bright(CONTENT), "regions": "map"}
    whole = run(enlarged, rounds=2, **options)
    run(enlarged, rounds=1, out=tmp_path / "run", **options)
    longer = run(enlarged, rounds=2, out=tmp_path / "run", **options)
    assert [one.pixels for one in longer.history] == [one.pixels for one in whole.history]
    assert [one.region for one in longer.history] == [one.region for one in whole.history]
    with pytest.raises(ValueError, match="regions"):
        run(enlarged, rounds=2, out=tmp_path / "run", **(options | {"regions": "words"}))


def test_other_regions_are_refused():
    with pytest.raises(ValueError, match="regions='boxes': must be one of words, map"):
        run(iqa=Bright(CONTENT), image=LQ, regions="boxes")
