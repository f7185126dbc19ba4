"""Best of N over a folder: one run per image, damaged ones named, and a table that a second call continues."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from brightness_runs import brightness, shifted
from PIL import Image
from tiny import make_image
from tiny_pipelines import small_nano

from restoration.selection.best_of_n import best_of_n
from restoration.selection.folder import BEST, RUNS, SUMMARIES, best_of_folder, images_of
from zoomiqa_reward import MetricReward
from zoomiqa_reward.cli.main import main
from zoomiqa_reward.errors import NoReward
from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.runs.settings import AnotherRun
from zoomiqa_reward.runs.tables import read_table

needs_truth = MetricReward(lambda image, hr: 0.0, "far", False, (0, 1), needs=("hr",))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for k, name in enumerate(("f2.png", "f10.png", "sub/f1.png")):
        to_pil(make_image(k, 12, 16)).save(folder / name)
    (folder / "torn.png").write_bytes((folder / "f2.png").read_bytes()[:60])
    return folder


def run(capsys, *arguments):
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def rows_of(folder, out, restorer=shifted, **options):
    return list(best_of_folder(restorer, folder, brightness(), out, **({"n": 3} | options)))


def test_what_is_no_reward_is_named_before_the_work(tmp_path, photos):
    with pytest.raises(NoReward, match="float is no reward"):
        list(best_of_folder(shifted, photos, 0.5, tmp_path / "out", n=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "words"), [("none", "no such folder"), ("photos/f2.png", "is a file")])
def test_what_is_no_folder_is_named(tmp_path, photos, name, words):
    with pytest.raises(ValueError, match=f"{name}: {words}; name a folder of images"):
        rows_of(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_image_has_the_run_that_it_has_alone(tmp_path, photos):
    rows = rows_of(photos, tmp_path / "out")
    assert [row.image for row in rows] == ["f2.png", "f10.png", "torn.png"]
    alone = best_of_n(shifted, photos / "f10.png", brightness(), n=3, out=tmp_path / "alone", progress=False)
    assert (rows[1].candidate, rows[1].seed, rows[1].score) == (
        alone.best.index, alone.best.seed, pytest.approx(alone.best.score),
    )  # fmt: skip
    for name in ("best.png", "input.png", "sheet.png", "candidates/0002.png"):
        assert (tmp_path / "out" / RUNS / "f10.png" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    with Image.open(tmp_path / "out" / rows[1].chosen) as chosen:
        assert chosen.tobytes() == alone.best.image.tobytes()


def test_a_damaged_image_is_named_and_the_rest_goes_on(tmp_path, photos):
    rows = rows_of(photos, tmp_path / "out", recursive=True)
    assert [row.error is None for row in rows] == [True, True, True, False]
    assert "torn.png" in rows[3].error
    assert (rows[3].candidate, rows[3].chosen) == (None, "")
    assert (tmp_path / "out" / BEST / "sub" / "f1.png").exists()
    for name in SUMMARIES:
        table = read_table(tmp_path / "out" / name)
        assert [row["image"] for row in table] == [row.image for row in rows]
        assert [bool(row["error"]) for row in table] == [False, False, False, True]


def test_a_second_call_makes_only_what_is_missing(tmp_path, photos):
    first = rows_of(photos, tmp_path / "out")
    to_pil(make_image(7, 12, 16)).save(photos / "torn.png")
    to_pil(make_image(8, 12, 16)).save(photos / "new.png")
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / RUNS).rglob("*.png")}
    second = rows_of(photos, tmp_path / "out")
    assert [row.image for row in second] == ["f2.png", "f10.png", "new.png", "torn.png"]
    assert repr(second[:2]) == repr(first[:2])  # repr: NaN equals NaN
    assert all(row.error is None for row in second)
    assert all(file.stat().st_mtime_ns == time for file, time in made.items())
    longer = rows_of(photos, tmp_path / "out", n=5)
    assert [row.candidates for row in longer] == [5, 5, 5, 5]
    kept = tmp_path / "out" / RUNS / "f2.png" / "candidates" / "0001.png"
    assert kept.stat().st_mtime_ns == made[kept]  # candidate 1 of the shorter run


def test_no_two_rows_share_a_chosen_image(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    light = {"a.jpg": 0.2, "a.png": 0.5, "a.png.jpg": 0.8}

    def put(*names):
        for file in photos.iterdir():
            file.unlink()
        for name in names:
            to_pil(0.2 * make_image(3, 12, 16) + light[name]).save(photos / name)

    def chosen(out):
        rows = rows_of(photos, out, restorer=lambda image, seed: image + 1e-3 * (seed % 7), n=2)
        for row in read_table(out / SUMMARIES[0]):  # also of images that are gone
            with Image.open(out / row["chosen"]) as image:
                assert abs(np.asarray(image).mean() / 255 - light[row["image"]] - 0.1) < 0.06, row["image"]
        return len({row.chosen for row in rows})

    put("a.jpg", "a.png", "a.png.jpg")
    assert chosen(tmp_path / "together") == 3
    for names in (["a.jpg"], ["a.png"], ["a.jpg"], ["a.png", "a.jpg"], ["a.png.jpg"]):  # one after the other
        put(*names)
        assert chosen(tmp_path / "out") == len(names)


def test_a_kill_between_two_images_loses_neither(tmp_path, photos):
    running = best_of_folder(shifted, photos, brightness(), tmp_path / "out", n=3)
    first = next(running)
    running.close()
    assert [row["image"] for row in read_table(tmp_path / "out" / SUMMARIES[0])] == ["f2.png"]
    (tmp_path / "out" / RUNS / "f2.png" / "sheet.png").unlink()  # would be written again if the run were
    rows = rows_of(photos, tmp_path / "out")
    assert repr(rows[0]) == repr(first)
    again = best_of_folder(shifted, photos, brightness(), tmp_path / "out", n=3)
    next(again)
    again.close()  # rows whose turn has not come stay
    table = read_table(tmp_path / "out" / SUMMARIES[0])
    assert [row["image"] for row in table] == ["f2.png", "f10.png", "torn.png"]
    assert not (tmp_path / "out" / RUNS / "f2.png" / "sheet.png").exists()
    (tmp_path / "out" / rows[0].chosen).unlink()
    assert rows_of(photos, tmp_path / "out")[0].chosen == first.chosen
    assert (tmp_path / "out" / first.chosen).exists()


def test_an_image_that_changed_is_refused_alone_and_other_options_as_a_whole(tmp_path, photos):
    rows_of(photos, tmp_path / "out")
    to_pil(make_image(9, 12, 16)).save(photos / "f2.png")
    rows = rows_of(photos, tmp_path / "out")
    assert "another run" in rows[0].error
    assert f"or delete {tmp_path / 'out' / RUNS / 'f2.png'} to restore the image anew" in rows[0].error
    assert rows[1].error is None
    assert [path.name for path in (tmp_path / "out" / BEST).iterdir()] == ["f10.png"]  # not that of the old image
    shutil.rmtree(tmp_path / "out" / RUNS / "f2.png")
    assert rows_of(photos, tmp_path / "out")[0].chosen == "best/f2.png"
    with pytest.raises(AnotherRun, match="seed was 0, now 1"):
        rows_of(photos, tmp_path / "out", seed=1)


def test_any_error_of_one_image_is_that_image_s_alone(tmp_path, photos):
    with Image.open(photos / "f2.png") as image:
        for suffix in ("png", "bmp"):  # two of one name: with both suffixes it is too long for the file of the choice
            image.save(photos / f"{'x' * 251}.{suffix}")
    seen = []

    def score(image):
        seen.append(float(image.mean()))
        if len(seen) == 4:
            raise RuntimeError("a kernel of 5 x 5 px is larger than the image")
        return seen[-1]

    picky = MetricReward(score, "picky", True, (0, 1), fingerprint="1")
    rows = list(best_of_folder(shifted, photos, picky, tmp_path / "out", n=3, recursive=True))
    errors = {row.image[-9:]: row.error for row in rows}
    assert errors["f2.png"] is None
    assert "RuntimeError: a kernel of 5 x 5 px" in errors["f10.png"]
    assert errors["ub/f1.png"] is None
    assert "torn.png" in errors["torn.png"]
    assert "File name too long" in errors["xxxxx.png"]


def test_a_reward_without_the_text_that_it_needs_is_refused_before_the_first_image(tmp_path, photos):
    texts = MetricReward(lambda image, prompts: float(len(prompts)), "texts", True, (0, 100), needs=("prompts",))
    with pytest.raises(ValueError, match="reward 'texts' needs prompts"):
        next(best_of_folder(small_nano(), photos, texts, tmp_path / "out", n=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"n": 0}, "n=0, keep=1"), ({"seed": -1}, "seed=-1"), ({"reward": needs_truth}, "reward 'far' needs hr=")],
)
def test_what_no_image_can_have_is_refused_before_the_first(tmp_path, photos, options, words):
    asked = {"reward": brightness(), "n": 2} | options
    with pytest.raises(ValueError, match=words):
        next(best_of_folder(shifted, photos, out=tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()


def test_counts_and_seeds_of_numpy_are_the_same_run(tmp_path, photos):
    first = rows_of(photos, tmp_path / "out")
    again = rows_of(photos, tmp_path / "out", n=np.int64(3), seed=np.int64(0), batch_size=np.int64(1))
    assert (again[0].seconds, again[0].asked) == (first[0].seconds, first[0].asked)


def test_what_fails_every_image_ends_the_work(tmp_path, photos):
    def broken(image):
        raise RuntimeError("no such device")

    reward = MetricReward(broken, "broken", True, (0, 1), fingerprint="1")
    (photos / "torn.png").unlink()
    rows = best_of_folder(shifted, photos, reward, tmp_path / "out", n=3, recursive=True)
    assert ["no such device" in next(rows).error for _ in range(2)] == [True, True]
    with pytest.raises(RuntimeError, match="no such device"):
        next(rows)


def test_two_images_that_differ_in_their_suffix_have_two_choices(tmp_path, photos):
    with Image.open(photos / "f2.png") as image:
        image.save(photos / "f2.bmp")
    rows = {row.image: row.chosen for row in rows_of(photos, tmp_path / "out")}
    assert (rows["f2.bmp"], rows["f2.png"], rows["f10.png"]) == ("best/f2.bmp.png", "best/f2.png.png", "best/f10.png")


def test_its_own_output_is_no_input(tmp_path, photos):
    out = photos / "out"
    before = images_of(photos, out, recursive=True)
    rows_of(photos, out, recursive=True)
    assert images_of(photos, out, recursive=True) == before
    with pytest.raises(ValueError, match="recursive"):
        images_of(photos / "out" / RUNS, tmp_path)


@pytest.mark.integration
def test_the_command_takes_a_folder(tmp_path, photos, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "light.py").write_text(
        "from zoomiqa_reward import MetricReward\n"
        "def make():\n    return MetricReward(lambda image: float(image.mean()), 'light', True, (0, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    small_nano().save_pretrained("pipeline")
    arguments = ["best-of-n", "photos", "--restorer", "pipeline", "--reward", "light:make", "--n", "2", "--out", "out"]
    code, out, err = run(capsys, *arguments, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert [line["image"] for line in lines] == ["f2.png", "f10.png", "torn.png"]
    assert lines[0]["bicubic"] is not None
    assert lines[2]["seed"] is None
    assert "not restored: photos/torn.png:" in err
    assert "1 of 3: f2.png: candidate" in err
    Path("photos/torn.png").unlink()
    code, out, err = run(capsys, *arguments)
    assert code == 0
    assert "f10.png" in out
    assert "2 of 2 images" in err
    code, _, err = run(capsys, "best-of-n", "photos/f2.png", "--recursive")
    assert code == 1
    assert "--recursive needs a folder" in err
