"""The quality map: its views, its weighted mean, what has no content, gradients, figure and command."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_checkpoint

from zoomiqa_reward import CompositeReward, MetricReward, Term, ZoomIQA, ZoomIQAReward, quality_map
from zoomiqa_reward.cli.main import main
from zoomiqa_reward.images import map_figure as module
from zoomiqa_reward.images.drawing import MUTED
from zoomiqa_reward.images.filters import gaussian_blur
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.images.map_figure import map_figure
from zoomiqa_reward.model.quality_map import MAX_VIEWS, blend, plan_boxes
from zoomiqa_reward.runs.outputs import made_here


@pytest.fixture(scope="module")
def iqa():
    return ZoomIQA.from_pretrained(tiny_checkpoint(), device="cpu")


def brightness(**options):
    return MetricReward(
        lambda image: image.mean(), name="brightness", higher_is_better=True, score_range=(0, 1), **options
    )


@pytest.mark.parametrize(("height", "width", "side"), [(100, 100, 40), (33, 300, 32), (20, 20, 32), (64, 65, 64)])
def test_views_cover_every_pixel_and_overlap_by_half_or_more(height, width, side):
    boxes = plan_boxes(height, width, side)
    covered = torch.zeros(height, width)
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (min(side, width), min(side, height))
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    for values in (sorted({box[0] for box in boxes}), sorted({box[1] for box in boxes})):
        assert all(after - before <= side // 2 for before, after in pairwise(values))


def test_the_map_is_the_mean_weighted_by_distance_to_each_centre():
    boxes = plan_boxes(8, 12, 8)
    assert boxes == ((0, 0, 8, 8), (4, 0, 12, 8))
    values = blend(torch.tensor([1.0, 5.0]), boxes, 8, 12)
    # Centres of pixels are at .5; the triangles are 1 - |x - 4| / 4 and 1 - |x - 8| / 4.
    expected = [1.0] * 4 + [1 + 4 * share for share in (0.125, 0.375, 0.625, 0.875)] + [5.0] * 4
    torch.testing.assert_close(values, torch.tensor(expected).expand(8, 12))


def test_views_without_a_rating_leave_the_others_alone_and_pixels_of_their_own_empty():
    values = blend(torch.tensor([math.nan, 3.0]), ((0, 0, 8, 8), (4, 0, 12, 8)), 8, 12)
    assert values[:, :4].isnan().all()
    assert (values[:, 4:] == 3.0).all()
    assert blend(torch.tensor([math.nan]), ((0, 0, 4, 4),), 4, 4).isnan().all()


def test_a_views_rating_is_that_of_the_crop_as_an_image(iqa):
    image = torch.rand(3, 96, 130)
    result = iqa.quality_map(image, view_px=64, strict=True)
    assert result.values.shape == (96, 130)
    assert result.values.dtype == torch.float32
    assert (result.resolution_px, len(result.boxes)) == (64, 2 * 4)
    assert result.step_px == (32, 22)
    for index in (0, 5):
        left, top, right, bottom = result.boxes[index]
        alone = iqa.rate(image[:, top:bottom, left:right], strict=True)
        assert torch.equal(result.ratings.mean[index], alone.mean[0])
        assert torch.equal(result.ratings.std[index], alone.std[0])
    corner = result.ratings.mean[0]
    assert result.values[0, 0] == corner  # only the first view covers the corner
    low, high = result.range
    assert low == result.values.min()
    assert high == result.values.max()
    assert result.ratings.mean[result.lowest()] == result.ratings.mean.min()
    assert result.mean == pytest.approx(float(result.values.mean()))


def test_a_view_without_content_is_nan_with_its_reason(iqa):
    image = torch.rand(3, 64, 192)
    image[:, :, :128] = 0.5
    result = quality_map(iqa, image, view_px=64)
    assert [bool(valid) for valid in result.ratings.valid] == [False, False, False, True, True]
    assert "no content" in result.ratings.errors[0]
    assert result.values[:, :96].isnan().all()
    assert not result.values[:, 96:].isnan().any()
    assert result.lowest() in (3, 4)
    empty = quality_map(iqa, torch.zeros(3, 64, 64))
    assert not empty.valid
    assert empty.lowest() is None
    assert empty.values.isnan().all()
    assert math.isnan(empty.mean)
    assert all(math.isnan(value) for value in empty.range)


def test_a_large_image_takes_larger_views_not_more(iqa):
    small = quality_map(brightness(), torch.rand(3, 200, 200))
    assert small.resolution_px == 168
    large = quality_map(brightness(), torch.rand(3, 1500, 2500))
    assert len(large.boxes) <= MAX_VIEWS
    assert large.resolution_px > 168
    assert large.resolution_px % 28 == 0


def test_a_reward_makes_a_map_of_its_own_values():
    image = torch.rand(3, 64, 128)
    image[:, :, 64:] *= 0.5
    result = quality_map(brightness(), image, view_px=64)
    torch.testing.assert_close(result.ratings.mean[0], image[:, :, :64].mean())
    assert result.lowest() == 2
    with pytest.raises(ValueError, match="compares each image with its group"):
        quality_map(CompositeReward([Term(brightness(), 1, "z")]), image)
    with pytest.raises(ValueError, match="needs lq"):
        quality_map(brightness(needs=frozenset({"lq"})), image)


def test_a_reward_of_the_model_gives_the_models_map(iqa):
    image = torch.rand(3, 64, 96)
    own = iqa.quality_map(image, view_px=64, strict=True)
    assert torch.equal(own.values, quality_map(ZoomIQAReward(iqa), image, view_px=64).values)


def test_the_map_has_a_gradient_and_no_nan_reaches_it(iqa):
    image = torch.rand(3, 64, 128)
    image[:, :, :64] = 0.5
    image.requires_grad_(True)
    result = quality_map(iqa, image, view_px=64, grad=True)
    assert result.values[:, :32].isnan().all()
    result.values[:, 96:].mean().backward()
    assert image.grad.isfinite().all()
    assert image.grad[:, :, 64:].abs().max() > 0
    # The last view alone covers the last columns, so its rating's own gradient is theirs.
    other = image.detach().clone().requires_grad_(True)
    iqa.rate([other[:, :, 64:]], grad=True).mean.sum().backward()
    assert other.grad[:, :, 64:].abs().max() > 0


def test_a_view_that_shows_nothing_is_refused(iqa):
    with pytest.raises(ValueError, match="view_px=8"):
        quality_map(iqa, torch.rand(3, 64, 64), view_px=8)


@pytest.mark.integration
def test_nano_finds_the_blurred_half(nano, photograph):
    image = load_image(photograph)
    image = torch.cat([image, gaussian_blur(image[None], 3.0)[0]], dim=2)
    result = ZoomIQA.from_pretrained(nano).quality_map(image)
    assert result.values[:, :128].nanmean() > result.values[:, 384:].nanmean() + 0.5
    assert result.boxes[result.lowest()][0] >= 256 - 168 // 2


def test_the_figure_shows_map_and_image_and_marks_the_lowest_view(tmp_path):
    image = torch.rand(3, 64, 192) * 0.2
    image[:, :, 128:] += 0.8
    result = quality_map(brightness(), image.clamp(0, 1), view_px=64)
    figure = map_figure(to_pil(image.clamp(0, 1)), result, tmp_path / "map.png", name="a.png")
    assert to_pil(load_image(tmp_path / "map.png")).size == figure.size
    pixels = np.asarray(figure).astype(int)
    left = figure.width // 2
    across = pixels[40 + 60, left:]  # inside the overlay: red side first, blue side last
    redness = across[:, 0] - across[:, 2]
    assert redness[60:150].mean() > 40
    assert redness[-150:-60].mean() < -40
    same = map_figure(to_pil(image.clamp(0, 1)), result, colours=(0.0, 1.0))
    assert same.size == figure.size
    with pytest.raises(ValueError, match="its map 192 x 64"):
        map_figure(Image.new("RGB", (10, 10)), result)
    with pytest.raises(ValueError, match="the second must be above"):
        map_figure(to_pil(image.clamp(0, 1)), result, colours=(1.0, 1.0))


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_photograph_that_lies_on_its_side_is_drawn_below_its_map(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    to_pil(torch.rand(3, 64, 96)).save(tmp_path / "a.png", exif=exif)
    result = quality_map(brightness(), tmp_path / "a.png", view_px=32)
    with Image.open(tmp_path / "a.png") as image:
        figure = map_figure(image, result)
    assert figure.tobytes() == map_figure(to_pil(load_image(tmp_path / "a.png")), result).tobytes()


def test_a_map_without_any_rating_is_drawn_grey():
    result = quality_map(brightness(), torch.full((3, 64, 64), 0.4))
    figure = np.asarray(map_figure(Image.new("RGB", (64, 64), (102, 102, 102)), result)).astype(int)
    panel = figure[60:400, figure.shape[1] // 2 + 40 : -40]
    assert np.abs(panel - panel[..., :1]).max() == 0


def test_a_name_in_any_script_is_drawn_whole(monkeypatch):
    result = quality_map(brightness(), torch.rand(3, 64, 64), view_px=64)
    drawn = []
    monkeypatch.setattr(module, "draw_text", lambda draw, at, text, size, colour: drawn.append((at, text, size)))
    map_figure(Image.new("RGB", (64, 64)), result, name="größe " * 40)
    names = [text for _, text, size in drawn if size == 16]
    assert len(names) > 1
    assert " ".join(names).split() == ["größe"] * 40


def test_the_text_below_a_narrow_image_fits():
    image = torch.rand(3, 900, 12)
    image[:, :200] = 0.5  # views without content
    figure = map_figure(to_pil(image), quality_map(brightness(), image, view_px=64))
    below = np.asarray(figure)[-60:]
    columns = np.flatnonzero((below == MUTED).all(axis=2).any(axis=0))
    assert 300 < columns.max() < figure.width - 16  # "...; grey: no rating" and a margin


def test_the_figure_says_what_grey_is_and_draws_no_scale_without_values():
    texts = []
    for image in (torch.rand(3, 64, 64), torch.full((3, 64, 64), 0.4)):
        result = quality_map(brightness(), image)
        with pytest.MonkeyPatch.context() as patch:
            drawn = []
            patch.setattr(module, "draw_text", lambda draw, at, text, size, colour, drawn=drawn: drawn.append(text))
            map_figure(to_pil(image), result)
            texts.append(drawn)
    assert texts[0][-1] == "resolution 64 px; outline: the lowest view"
    assert texts[1] == ["no view could be rated"]


def test_the_command_writes_figure_and_line(tmp_path, photograph, capsys):
    target = tmp_path / "map.png"
    options = ["--model", str(tiny_checkpoint()), "--view-px", "128", "--out", str(target)]
    assert main(["map", str(photograph), "--json", *options]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["size"] == [256, 256]
    assert row["resolution_px"] == 128
    assert len(row["views"]) == 9
    assert row["views"][0]["box"] == [0, 0, 128, 128]
    ratings = [view["rating"] for view in row["views"]]
    assert row["lowest_box"] == row["views"][ratings.index(min(ratings))]["box"]
    assert row["lowest"] <= row["mean"] <= row["highest"]
    assert made_here(target)
    assert main(["map", str(photograph), *options]) == 0  # its own figure is replaced
    assert "9 views, 0 without a rating; resolution 128 px" in capsys.readouterr().out
    assert main(["map", str(photograph), "--out", str(photograph)]) == 1
    assert "is one of the inputs" in capsys.readouterr().err


def test_the_command_says_by_its_code_that_nothing_could_be_rated(tmp_path, capsys):
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "dark.png")
    assert main(["map", str(tmp_path / "dark.png"), "--json", "--model", str(tiny_checkpoint())]) == 2
    row = json.loads(capsys.readouterr().out)
    assert row["valid"] is False
    assert row["mean"] is row["lowest_box"] is row["views"][0]["rating"] is None
    assert main(["map", str(tmp_path / "dark.png"), "--model", str(tiny_checkpoint())]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert f"not rated: 1 of 1 views; the first: {tmp_path / 'dark.png'}: the image has no content" in output.err
