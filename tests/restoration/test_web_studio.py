"""What the web page does and refuses, without the page: Gradio is not needed here."""

import math
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import make_tiny_checkpoint, tiny_iqa
from tiny_pipelines import small_nano

from restoration.selection.best_of_n import best_of_n
from restoration.selection.pool import varied_pool
from restoration.web import drawn
from restoration.web.server import OUTWARD, OnlyThisMachine, serve_page
from restoration.web.studio import RatedUpload, Studio
from restoration.web.uploads import StudioLimits, fit_input, open_upload
from zoomiqa_reward import ImageError, ZoomIQA, ZoomIQAReward, rank
from zoomiqa_reward.images.loading import load_image, to_pil
from zoomiqa_reward.model.ranking import ranking_of
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.model.turns import Turn
from zoomiqa_reward.protocol import level_words

LIMITS = StudioLimits(max_pixels=200_000, max_files=3, max_input_px=24, max_candidates=4)


@pytest.fixture(scope="module")
def pool():
    return varied_pool(small_nano(), name="small", size=3)


@pytest.fixture
def studio(pool):
    return Studio(tiny_iqa, lambda: pool, LIMITS)


@pytest.fixture
def files(tmp_path, photograph):
    image = Image.open(photograph)
    paths = []
    for side in (128, 32, 64):
        paths.append(str(tmp_path / f"from{side}.png"))
        image.resize((side, side)).resize((128, 96)).save(paths[-1])
    return paths


@pytest.fixture
def refused(tmp_path):
    """Uploads that are refused -> what the message must say."""
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fake.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.writestr("x.png", "y")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "poster.png")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-30])
    wrong = ("notes.txt", "fake.png", "empty.png", "drawing.svg", "page.eps", "many.zip")
    rules = dict.fromkeys(wrong, "not an image that this page reads; upload a PNG, JPEG, WebP or TIFF file")
    rules |= {"poster.png": "at most 9 million", "cut.png": "check or re-export the file"}
    return {tmp_path / name: rule for name, rule in rules.items()}


def test_refusals_name_the_file_and_the_rule_and_never_the_folder(refused):
    for file, rule in refused.items():
        with pytest.raises(ImageError) as caught:
            open_upload(file, max_pixels=9_000_000)
        message = str(caught.value)
        assert message.startswith(file.name), message
        assert rule in message
        assert str(file.parent) not in message
    with pytest.raises(ImageError, match="no image yet"):
        open_upload(None, max_pixels=10)


def test_the_limit_of_pixels_is_the_last_that_is_taken(files):
    assert torch.equal(open_upload(files[0], max_pixels=128 * 96), load_image(files[0]))
    with pytest.raises(ImageError, match=r"0 million pixels \(128 x 96\)"):
        open_upload(files[0], max_pixels=128 * 96 - 1)


def test_an_input_is_cut_or_shrunk_and_says_so():
    image = torch.rand(3, 30, 40)
    same, nothing = fit_input(image, 40, shrink=False)
    assert same is image
    assert nothing == ""
    middle, cut = fit_input(image, 20, shrink=False)
    assert torch.equal(middle, image[:, 5:25, 10:30])
    assert cut == "Restored: the middle 20 x 20 px of 40 x 30 px."
    small, shrunk = fit_input(image, 20, shrink=True)
    assert small.shape == (3, 15, 20)
    assert shrunk == "Restored: the image of 40 x 30 px, shrunk to 20 x 15 px."


def test_a_rating_comes_first_and_then_its_words(studio, files):
    first, last = studio.rate(files[0])
    expected = tiny_iqa().rate([files[0]], strict=True)
    assert first.mean == last.mean == expected.mean.item()
    assert first.std == expected.std.item()
    assert sum(first.shares) == pytest.approx(1)
    assert sum(r * share for r, share in zip(first.ratings, first.shares, strict=True)) == pytest.approx(first.mean)
    assert first.words is None
    assert repr(last.words) == repr(tiny_iqa().assess([files[0]], strict=True)[0])


def test_an_image_without_content_is_not_rated(studio, tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    [rated] = studio.rate(tmp_path / "white.png")
    assert math.isnan(rated.mean)
    assert "Not rated: the image has no content" in drawn.headline(rated)


@pytest.mark.integration
def test_a_model_that_names_a_level_gives_no_words(files, tmp_path):
    protocol = level_words()
    folder = make_tiny_checkpoint(tmp_path, protocol=protocol, lessons=24, rate=3e-3, words=protocol.levels)
    iqa = ZoomIQA.from_pretrained(folder, device="cpu")
    [rated] = Studio(lambda: iqa, lambda: None, LIMITS).rate(files[0])
    assert rated.error is None
    assert rated.ratings == (1, 2, 3, 4, 5)
    assert drawn.headline(rated).count("<rect") == drawn.BINS


def test_comparing_is_ranking(studio, files):
    *before, (done, ranking) = studio.compare(files)
    assert before == [(0, None), (1, None), (2, None)]
    expected = rank(tiny_iqa(), files)
    assert (done, ranking.order, ranking.ties) == (3, expected.order, expected.ties)
    assert torch.equal(ranking.ratings.mean, expected.ratings.mean)
    rows = drawn.table([f"{k}" for k in range(3)], ranking)
    assert [row[1] for row in rows] == [str(k) for k in expected.order]


def test_uploads_of_one_name_are_told_apart(studio, files, tmp_path):
    pair = [str(tmp_path / method / "x.png") for method in "ab"]
    for file, (source, width) in zip(pair, ((files[0], 128), (files[1], 64)), strict=True):
        Path(file).parent.mkdir()
        Image.open(source).resize((width, width)).save(file)
    assert studio.names([*pair, files[0]]) == ["x.png (1)", "x.png (2)", Path(files[0]).name]
    note = studio.side_by_side(pair, *studio.keys(pair))[2]
    assert note.startswith("x.png (2) is shown enlarged")


def test_images_are_all_checked_before_any_is_rated(studio, files, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ImageError, match=r"^notes.txt: not an image"):
        next(studio.compare([files[0], str(tmp_path / "notes.txt")]))
    for some in (None, files[:1], files * 2):
        with pytest.raises(ValueError, match="2 to 3 versions"):
            next(studio.compare(some))


def test_the_slider_shows_places_among_the_files_at_one_size(studio, files, tmp_path):
    small = str(tmp_path / "small.png")
    Image.open(files[0]).resize((64, 48)).save(small)
    pair = [files[0], small]
    left, right, note = studio.side_by_side(pair, *studio.keys(pair))
    assert left.size == right.size == (128, 96)
    assert note == "small.png is shown enlarged from 64 x 48 px (nearest pixel)."
    keys = studio.keys(files)
    assert studio.side_by_side(files, *keys[:2])[2] == ""
    others = studio.keys([files[1], files[0], files[2]])  # of a new upload, while the lists still name the old one
    for key in ("3-0", "", None, files[1], 1, *others[:2]):
        with pytest.raises(ImageError, match="rate and rank them again"):
            studio.side_by_side(files, keys[0], key)
    with pytest.raises(ImageError, match="upload them again"):
        studio.keys([str(tmp_path / "gone.png")])


def test_best_of_n_shows_each_candidate_and_ends_as_best_of_n_does(studio, pool, files):
    states = list(studio.best_of_n(files[0], 4, 7, shrink=True))
    assert [len(state.order) for state in states] == [1, 2, 3, 4]
    shrunk, done = fit_input(load_image(files[0]), 24, shrink=True)
    expected = best_of_n(pool, shrunk, ZoomIQAReward(tiny_iqa()), n=4, seed=7, progress=False)
    last = states[-1]
    assert [(entry.rank, entry.index, entry.pixels, entry.score) for entry in last.order] == [
        (entry.rank, entry.index, entry.pixels, entry.score) for entry in expected.order
    ]
    assert last.notes == (done, *expected.notes)
    assert last.doing_nothing.size == last.order[0].image.size == (96, 72)
    assert "4 of 4 rated" in drawn.drawing_progress(last)
    assert done in drawn.drawing_progress(last)
    assert len(drawn.gallery(last)) == 4
    assert re.fullmatch(r"1:  \d\.\d\d, .+", drawn.gallery(last)[0][1])
    for n, seed in ((0, 0), (5, 0), (1, -1)):
        with pytest.raises(ValueError, match="1 to 4 candidates"):
            next(studio.best_of_n(files[0], n, seed, shrink=True))


def test_the_map_states_its_resolution(studio, files):
    image, quality = studio.map(files[0])
    assert quality.values.shape == (image.height, image.width)
    assert f"Resolution: {quality.resolution_px} px" in drawn.map_notes(quality)


def test_a_model_that_cannot_be_loaded_fails_the_request():
    def load():
        raise ValueError("no such model")

    studio = Studio(load, load, LIMITS)
    with pytest.raises(ValueError, match="no such model"):
        studio.judge.result()


def test_the_histogram_holds_the_whole_distribution():
    ratings = [1 + k / 100 for k in range(401)]
    shares = [0.0] * 401
    shares[0], shares[200], shares[209], shares[400] = 0.1, 0.2, 0.3, 0.4
    svg = drawn.histogram(ratings, shares, 3.0)
    titles = re.findall(r"<title>([\d.]+) to [\d.]+: ([\d.]+)%</title>", svg)
    assert len(titles) == drawn.BINS
    assert {start: float(share) for start, share in titles if float(share)} == {"1.0": 10, "3.0": 50, "4.9": 40}
    assert 'class="zq-mean" x1="220.0"' in svg


def test_nothing_that_a_model_or_a_user_writes_becomes_html():
    turn = Turn(prompt="", text="", sections={"<b>Summary</b>": "<img src=x>"}, bbox=None, crop_box=None, tool="final",
                rating=3.0)  # fmt: skip
    good = Assessment(rating=3.0, std=math.nan, turns=(turn,), valid=True, warning="<i>")
    bad = replace(good, valid=False, error="<script>", rating=math.nan)
    empty = RatedUpload(image=Image.new("RGB", (8, 8)), mean=math.nan, std=math.nan, ratings=(), shares=(),
                        error="<u>", will_explain=False, seconds=0.0)  # fmt: skip
    shown = drawn.words(good) + drawn.words(bad) + drawn.headline(empty) + drawn.progress(1, 2, "<p onclick>")
    for tag in ("<b>Summary", "<img", "<i>", "<script", "<u>", "<p onclick"):
        assert tag not in shown
    assert "&lt;img src=x&gt;" in drawn.words(good)
    assert "Summary" not in drawn.words(bad)  # what cannot be read is no explanation


def test_the_region_of_round_two_is_outlined():
    image = to_pil(torch.zeros(3, 60, 80))
    turn = Turn(prompt="", text="", sections={}, bbox=None, crop_box=None, tool="crop", rating=3.0)
    looked = Assessment(rating=3.0, std=math.nan, turns=(turn, replace(turn, crop_box=(10, 20, 50, 40))), valid=True)
    shown, region = drawn.regions(image, looked)
    assert region.size == (40, 20)
    assert shown.getpixel((12, 30)) == drawn.MARK
    assert shown.getpixel((30, 30)) == shown.getpixel((60, 30)) == (0, 0, 0)
    assert drawn.regions(image, None) == (image, None)


def test_others_need_a_password(studio):
    with pytest.raises(ValueError, match="ZOOMIQA_TOKEN"), serve_page(studio, "tiny", host="0.0.0.0"):
        pass


def test_what_reaches_outward_is_refused_and_every_answer_carries_the_policy():
    import asyncio

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"app"})

    def get(path):
        sent = []

        async def send(message):
            sent.append(message)

        asyncio.run(OnlyThisMachine(app)({"type": "http", "path": path, "method": "GET"}, None, send))
        assert b"default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"]
        return sent[0]["status"]

    assert get("/") == get("/gradio_api/file=photo.png") == 200
    assert {get(f"{path}://x/") for path in OUTWARD} == {get("//gradio_api//file=https://x/")} == {403}


def test_a_ranking_of_ratings_is_that_of_the_images(files):
    ratings = tiny_iqa().rate(files, strict=True)
    assert ranking_of(ratings).order == rank(tiny_iqa(), files).order
    assert ranking_of(ratings, tie_margin=5.0).ties == (rank(tiny_iqa(), files, tie_margin=5.0).order,)
