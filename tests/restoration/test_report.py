"""The HTML report: one file without a network, what it shows of each kind of run, and charts with numbers."""

import base64
import itertools
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from brightness_runs import LQ, brightness, same, shifted
from PIL import Image
from tiny import make_image

from restoration import evaluate
from restoration.cli.report import report_of
from restoration.evaluation.datasets import degraded_folder
from restoration.report.charts import Series, dots, lines
from restoration.report.page import LONGEST_PX, LOSSLESS_PX, Card, data_uri, facts, group, page
from restoration.report.selection import read_order
from restoration.restorer.restorer import Restorer
from restoration.selection.best_of_n import Cascade, best_of_n
from restoration.selection.folder import best_of_folder
from zoomiqa_reward.cli.main import main
from zoomiqa_reward.images.loading import to_pil
from zoomiqa_reward.rewards.consensus import ConsensusReward
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.runs.json_lines import append_line, read_lines, write_json
from zoomiqa_reward.runs.outputs import claim_folder

IMAGES = re.compile(r'src="data:image/(?:png|webp);base64,([^"]+)"')


@pytest.fixture
def run(tmp_path):
    cascade = Cascade(reward=brightness(name="again"), top=2)
    return best_of_n(shifted, LQ, brightness(), n=4, out=tmp_path / "run", cascade=cascade, progress=False)


def test_a_run_of_best_of_n_shows_every_candidate_in_its_order(tmp_path, run):
    html = report_of(tmp_path / "run")
    assert len(IMAGES.findall(html)) == 5  # the input and four candidates
    shown = [int(index) for index in re.findall(r"<strong[^>]*>#\S+(?: tied)? candidate (\d):", html)]
    assert shown == [candidate.index for candidate in run.order]
    assert f"{run.best.score:.4f}" in html
    assert f"second {run.best.cascade_score:.4f}" in html
    assert html.count("<figure>") == 5
    pixels = Image.open(_bytes(IMAGES.findall(html)[1]))
    assert pixels.tobytes() == run.best.image.tobytes()  # bit for bit


def _bytes(text):
    import io

    return io.BytesIO(base64.b64decode(text))


def test_reading_a_run_gives_what_the_run_returned(tmp_path, run):
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    read = read_order(tmp_path / "run", report)
    assert [(c.index, c.rank, c.score) for c in read] == [(c.index, c.rank, pytest.approx(c.score)) for c in run.order]
    second = [(math.isfinite(c.cascade_score), c.pixels) for c in read]
    assert second == [(math.isfinite(c.cascade_score), c.pixels) for c in run.order]


def test_a_reward_that_compares_candidates_has_its_scores_in_the_folder(tmp_path):
    """They are known together, after the last candidate, when all lines have been written without them."""
    reward = ConsensusReward(brightness(), 1e-3)
    result = best_of_n(shifted, LQ, reward, n=5, out=tmp_path / "run", progress=False)
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    read = read_order(tmp_path / "run", report)
    assert [(c.index, c.rank, c.score) for c in read] == [(c.index, c.rank, c.score) for c in result.order]
    assert "not scored yet" not in report_of(tmp_path / "run")
    fewer = best_of_n(shifted, LQ, reward, n=3, out=tmp_path / "run", progress=False)
    rows = {row["index"]: row for row in read_lines(tmp_path / "run" / "candidates.jsonl")}
    assert [rows[c.index]["score"] for c in fewer.candidates] == [c.score for c in fewer.candidates]
    assert [rows[k]["valid"] for k in range(5)] == [True, True, True, False, False]  # of another pool: dropped
    again = best_of_n(shifted, LQ, reward, n=5, out=tmp_path / "run", progress=False)
    assert same(again, result)


def test_the_order_is_that_of_the_last_run_whatever_else_the_folder_holds(tmp_path):
    """Other cascades and longer runs leave their lines; scores of two rewards must not be compared."""

    def dark(image):
        return 1000 - image.mean()

    folder = tmp_path / "run"
    for n, cascade in (
        (6, Cascade(reward=brightness(name="again"), top=3)),
        (6, Cascade(reward=MetricReward(dark, "dark", True, (0, 1000)), top=2)),
        (3, Cascade(reward=brightness(name="again"), top=1)),
        (4, None),
    ):
        result = best_of_n(shifted, LQ, brightness(), n=n, out=folder, cascade=cascade, progress=False)
        read = read_order(folder, json.loads((folder / "run.json").read_text()))
        assert [(c.index, c.rank) for c in read] == [(c.index, c.rank) for c in result.order]
        assert [str(c.cascade_score) for c in read] == [str(c.cascade_score) for c in result.order]
    assert not any(math.isfinite(c.cascade_score) for c in read_order(folder, {"finished": False}))


def test_a_run_that_is_not_finished_has_a_report_too(tmp_path, run):
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    write_json(tmp_path / "run" / "run.json", {"settings": kept["settings"], "finished": False})
    (tmp_path / "run" / "candidates.jsonl").write_text(
        (tmp_path / "run" / "candidates.jsonl").read_text().splitlines()[0] + "\n"
    )
    assert "Best of 1" in report_of(tmp_path / "run")
    (tmp_path / "run" / "candidates.jsonl").write_text("")
    with pytest.raises(ValueError, match="no candidate is finished"):
        report_of(tmp_path / "run")


def test_a_folder_has_a_row_per_image_and_the_first_pairs(tmp_path):
    (tmp_path / "photos").mkdir()
    for k in range(3):
        to_pil(make_image(k, 12, 16)).save(tmp_path / "photos" / f"f{k}.png")
    (tmp_path / "photos" / "torn.png").write_bytes(b"torn")
    list(best_of_folder(shifted, tmp_path / "photos", brightness(), tmp_path / "out", n=2))
    html = report_of(tmp_path / "out", most=2)
    assert len(IMAGES.findall(html)) == 4
    assert "3 restored, 1 failed" in html
    assert "The first 2 of 3 images are shown" in html
    assert html.count("torn.png") >= 2


def test_an_evaluation_shows_its_intervals_and_kept_candidates(tmp_path):
    (tmp_path / "hr").mkdir()
    for k in range(3):
        to_pil(make_image(k, 48, 48)).save(tmp_path / "hr" / f"f{k}.png")
    images = degraded_folder(tmp_path / "hr", "bicubic", scale=2)
    restorer = Restorer.from_pretrained(shifted, name="<b>bold</b>")
    evaluation = evaluate(
        restorer, images, ["psnr_y"], n=2, reward=brightness(), out=tmp_path / "run", keep_images=True
    )
    html = report_of(tmp_path / "run", most=2)
    mean = evaluation.report()["rows"]["mean"]["psnr_y"]
    assert f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]" in html
    assert "psnr_y, the judging metric" in html
    assert len(IMAGES.findall(html)) == 4
    assert "<b>bold" not in html
    assert "&lt;b&gt;bold" in html


def test_a_kept_candidate_without_a_reward_is_shown_last_also_among_negative_ones(tmp_path):
    (tmp_path / "hr").mkdir()
    to_pil(make_image(0, 48, 48)).save(tmp_path / "hr" / "a.png")
    values = itertools.cycle([-3.0, math.nan, -2.0])
    reward = MetricReward(lambda image: next(values), "mine", True, (-9, 0), fingerprint="1")
    images = degraded_folder(tmp_path / "hr", "bicubic", scale=2)
    restorer = Restorer.from_pretrained(shifted)
    evaluate(restorer, images, ["psnr_y"], n=3, reward=reward, out=tmp_path / "run", keep_images=True)
    assert re.findall(r"reward (-\d\.\d+|nan)", report_of(tmp_path / "run"))[:3] == ["-2.000", "-3.000", "nan"]


def test_a_tuning_run_shows_signals_alarms_and_looks(tmp_path):
    run = claim_folder(tmp_path / "run")
    (run / "looks").mkdir()
    write_json(run / "run.json", {"settings": {"examples": [], "recipe": "nano_nft"}, "finished": True})
    for k, score in enumerate((0.25, 0.5)):
        alarm = {"alarms": k, "why": ["psnr_y is low"]} if k else {"alarms": 0}
        append_line(run / "monitor.jsonl", {"round": 5 * k, "reward": score, "psnr_y": 30.0 - k, "kl": None} | alarm)
        Image.new("RGB", (48, 16)).save(run / "looks" / f"{5 * k:05d}.png")
    append_line(run / "log.jsonl", {"round": 0, "note": "begins"})
    append_line(run / "log.jsonl", {"round": 1, "loss": 0.1})
    html = report_of(run)
    assert html.count("<polyline") == 2  # reward and psnr_y; kl was never measured
    assert "Round 5: psnr_y is low." in html
    assert re.search(r"recipe\W.*nano_nft", html, re.DOTALL)
    assert len(IMAGES.findall(html)) == 2
    assert "aspect-ratio: 3.0" in html
    assert len(IMAGES.findall(report_of(run, 1))) == 1


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries, while pipelines are saved
def test_a_tuning_run_without_a_monitor_has_a_report_that_knows_its_end(tmp_path):
    from test_tune_denoisers import nano
    from test_tune_training import SFT, examples, recipe_of, reward_of

    from restoration.tuning import tune

    def is_finished():
        return json.loads((tmp_path / "run" / "run.json").read_text())["finished"]

    before_the_end = []
    for rounds in (1, 2):
        tune(recipe_of(SFT(), rounds=rounds), examples(), reward_of(), tmp_path / "run", validation=None,
             pipeline=nano(), device="cpu", on_round=lambda row: before_the_end.append(is_finished()))  # fmt: skip
        assert is_finished()
        assert before_the_end == [False] * rounds
        shown = re.sub(r"<[^>]+>|\s+", " ", report_of(tmp_path / "run"))
        assert re.search(r"finished +yes +recipe +toy +source +nano", shown)


@pytest.mark.parametrize("settings", [{"assessor": "words", "sources": []}, {"search": "fusion", "sources": []}])
def test_a_run_of_another_command_names_the_folder_that_has_a_report(tmp_path, settings):
    run = claim_folder(tmp_path / "run")
    write_json(run / "run.json", {"settings": settings, "finished": True})
    with pytest.raises(ValueError, match=f"give {re.escape(str(run / 'start'))}"):
        report_of(run)


def test_a_page_asks_nothing_of_the_network(tmp_path, run):
    html = report_of(tmp_path / "run")
    for word in ("http:", "https:", "//", "url(", "@import", "<link", "<iframe"):
        assert word not in re.sub(r"base64,[^\"]+", "", html), word


def test_large_images_are_named_as_changed():
    noise = np.random.default_rng(0).integers(0, 255, (40, LONGEST_PX + 8, 3), dtype=np.uint8)
    uri, note = data_uri(Image.fromarray(noise))
    assert f"shrunk from {LONGEST_PX + 8} x 40 px" in note
    assert uri.startswith("data:image/png")
    side = math.ceil(LOSSLESS_PX**0.5) + 1
    assert "WebP" in data_uri(Image.new("RGB", (side, side)))[1]
    assert data_uri(Image.new("RGB", (8, 8)))[1] == ""


def test_charts_have_numbers_and_gaps():
    chart = lines("a < b", [0, 5, 10, 15, 20], [Series(name="x", values=[1.0, 2.0, math.nan, 3.0, 4.0])],
                  x_label="round", marks=[5])  # fmt: skip
    assert chart.count("<polyline") == 2  # a gap where nothing was measured
    assert "a &lt; b" in chart
    assert re.findall(r'text-anchor="middle">([\d.]+)<', chart) == ["0", "5", "10", "15", "20"]
    assert re.findall(r'text-anchor="end">([\d.]+)<', chart) == ["1", "2", "3", "4"]
    assert lines("x", [0.0], [Series(name="x", values=[math.nan])], x_label="round") == ""
    rows = dots("scores", ["a", "b"], [Series(name="x", values=[1.0, math.nan], ranges=[(0.5, 2.0), (math.nan,) * 2])],
                x_label="score")  # fmt: skip
    assert rows.count("<circle") == 1
    assert rows.count('stroke-width="2"') == 1


def test_the_command_replaces_only_its_own_file(tmp_path, run, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "run"]) == 0
    assert "report: report.html" in capsys.readouterr().err
    assert main(["report", "run", "--images", "1"]) == 0
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    for wrong, word in (
        (["run", "--out", "mine.html"], "--overwrite"), (["run", "--out", "report.txt"], ".html"),
        (["nosuch"], "nosuch"), (["run/candidates"], "run.json"),
    ):  # fmt: skip
        assert main(["report", *wrong]) == 1
        assert word in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    write_json(claim_folder(tmp_path / "other") / "run.json", {"what": "else"})
    assert main(["report", "other"]) == 1
    assert "another command" in capsys.readouterr().err


CLICK = """<script>
const box = document.querySelector('.view').getBoundingClientRect();
document.querySelector('.in').click();
document.title = [...document.querySelectorAll('.view img')].map(image => image.style.transform).join('|');
</script></body>"""


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_zooming_moves_all_images_of_a_group(tmp_path):
    cards = [Card(image=Image.new("RGB", (64, 64), (k, 0, 0)), title=str(k)) for k in (10, 200)]
    html = page("t", "s", [group(cards), facts([("done", True)])]).replace("</body>", CLICK)
    (tmp_path / "page.html").write_text(html)
    shown = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", f"file://{tmp_path / 'page.html'}"], capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", shown)[1]
    first, second = title.split("|")
    assert first == second
    assert "scale(2)" in first
