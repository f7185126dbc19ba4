"""Evaluation: its numbers against the parts they are made of, resuming, refusals, comparison, and the command."""

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from tiny import make_image
from tiny_pipelines import controlnet
from typer.testing import CliRunner

from restoration.cli.evaluate import _show_test
from restoration.cli.evaluate import evaluate as command
from restoration.evaluation.datasets import degraded_folder, paired_folders
from restoration.evaluation.evaluate import BicubicRestorer, Evaluation, bicubic, evaluate
from restoration.evaluation.report import compare, not_headline, pick_headline
from restoration.evaluation.statistics import captured_gain, group_std
from restoration.metrics import as_reward, lr_consistency, psnr_y
from restoration.metrics.conditioned import ConditionedReward
from restoration.restorer.image_io import RestorationError
from restoration.restorer.rng import candidate_seed
from zoomiqa_reward.cli import output
from zoomiqa_reward.images import load_image, save_png, to_pil
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.rewards.metric import MetricReward
from zoomiqa_reward.rewards.robust import RobustReward
from zoomiqa_reward.runs.folder import locked

METRICS = ["psnr_y", "ssim_y", "lr_consistency"]


@dataclass(frozen=True)
class Candidate:
    image: torch.Tensor
    seed: int


class Noisy:
    """Bicubic and noise, stronger for some seeds than for others; it counts, and can be told to break."""

    name, fingerprint, scale = "noisy", "noisy-1", 4

    def __init__(self, breaks_at=None, error=KeyboardInterrupt, strength=0.1):
        self.made, self.breaks_at, self.error, self.strength = [], breaks_at, error, strength

    def restore(self, image, seeds):
        lq = load_image(image)
        for seed in seeds:
            if self.breaks_at is not None and len(self.made) >= self.breaks_at:
                self.breaks_at = None
                raise self.error("broken")
            self.made.append(seed)
            generator = torch.Generator().manual_seed(seed)
            sigma = self.strength * float(torch.rand(1, generator=generator))
            enlarged = bicubic(lq, 4)
            yield Candidate((enlarged + sigma * torch.randn(enlarged.shape, generator=generator)).clamp(0, 1), seed)


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "hr").mkdir()
    for k in range(3):
        save_png(make_image(k, 64, 72), tmp_path / "hr" / f"{k}.png")
    return degraded_folder(tmp_path / "hr", "bicubic")


def smooth(image):
    return -float((image[:, :, 1:] - image[:, :, :-1]).abs().mean())


def reward():
    return MetricReward(smooth, "smooth", True, (-1, 0))


@pytest.mark.integration
def test_the_report_is_made_of_its_parts(dataset):
    evaluation = evaluate(Noisy(), dataset, METRICS, n=4, seed=3, reward=reward())
    results = evaluation.report()
    seeds = [candidate_seed(3, k) for k in range(4)]
    judge, likes, low = [], [], []
    for index in range(3):
        pair = dataset.load(index)
        images = [load_image(to_pil(one.image)) for one in Noisy().restore(pair.lq, seeds)]
        judge.append([psnr_y(image, pair.hr) for image in images])
        likes.append([smooth(image) for image in images])
        low.append(psnr_y(load_image(to_pil(bicubic(pair.lq, 4))), pair.hr))
    rows = results["rows"]
    assert rows["best"]["psnr_y"]["value"] == pytest.approx(sum(map(max, judge)) / 3)
    assert rows["worst"]["psnr_y"]["value"] == pytest.approx(sum(map(min, judge)) / 3)
    assert rows["mean"]["psnr_y"]["value"] == pytest.approx(sum(map(sum, judge)) / 12)
    assert rows["bicubic"]["psnr_y"]["value"] == pytest.approx(sum(low) / 3)
    assert rows["selected"]["reward"]["value"] == rows["best"]["reward"]["value"]
    assert results["g_std"]["psnr_y"]["value"] == pytest.approx(group_std(judge).value)
    gain = results["choice"]["psnr_y"]["captured_gain"]
    assert gain["value"] == pytest.approx(captured_gain(judge, likes).value) == pytest.approx(1)
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert results["choice"]["psnr_y"]["within_srcc"]["value"] == pytest.approx(1)
    assert results["pool_above_bicubic_db"] == pytest.approx(sum(map(sum, judge)) / 12 - sum(low) / 3)
    assert results["is_pool_fair"] == (results["pool_above_bicubic_db"] >= -1)
    assert results["headline"] == "psnr_y"
    json.dumps(results, allow_nan=False)


def test_a_candidate_without_content_is_never_selected_and_stays_in_the_pool(tmp_path):
    class Blanking(Noisy):
        def restore(self, image, seeds):
            for candidate in super().restore(image, seeds):
                yield Candidate(candidate.image * 0, candidate.seed) if candidate.seed == seeds[1] else candidate

    (tmp_path / "hr").mkdir()
    for k in range(2):
        save_png(make_image(k, 160, 160), tmp_path / "hr" / f"{k}.png")
    images = degraded_folder(tmp_path / "hr", "bicubic")
    assert smooth(torch.zeros(3, 8, 8)) > smooth(make_image(0, 160, 160))  # the reward alone would choose it
    evaluation = evaluate(Blanking(), images, METRICS, n=3, reward=reward())
    blank = [record for record in evaluation.records if record.seed == candidate_seed(0, 1)]
    assert all(math.isnan(record.reward) and "no content" in record.reward_error for record in blank)
    results = evaluation.report()
    assert max(record.metrics["psnr_y"] for record in blank) < 15
    assert results["rows"]["worst"]["psnr_y"]["value"] == pytest.approx(sum(r.metrics["psnr_y"] for r in blank) / 2)
    assert results["rows"]["selected"]["psnr_y"]["value"] > 20
    assert results["rows"]["selected"]["psnr_y"]["images"] == 2
    assert next(iter(results["problems"]["unmeasured"]["reward"])).startswith("the image has no content")


def test_the_ground_truth_has_a_row_but_no_reference(dataset):
    results = evaluate(Noisy(), dataset, METRICS, n=2, reward=as_reward("ssim_y")).report()
    hr = results["rows"]["hr"]
    assert hr["psnr_y"] == {"value": None, "low": None, "high": None, "images": 0}
    assert hr["lr_consistency"]["value"] == 50  # the dataset is clean, so nothing is blurred, and 8 bits do not count
    assert hr["reward"]["value"] is None
    assert results["problems"]["unmeasured"] == {}
    pair = dataset.load(0)
    assert lr_consistency(pair.hr, pair.lq, blur_px=0.0) == 50


def test_counts_and_seeds_of_numpy_are_the_same_run(dataset, tmp_path):
    whole = evaluate(BicubicRestorer(), dataset, ["psnr_y"], n=2, out=tmp_path / "a")
    other = degraded_folder(tmp_path / "hr", "bicubic", scale=np.int64(4), seed=np.int64(0))
    again = evaluate(BicubicRestorer(), other, ["psnr_y"], n=np.int64(2), seed=np.int64(0), out=tmp_path / "a")
    assert [one.as_json() for one in again.records] == [one.as_json() for one in whole.records]


def test_a_killed_run_goes_on_and_nothing_is_made_twice(dataset, tmp_path):
    whole = evaluate(Noisy(), dataset, METRICS, n=4, reward=reward())
    first, out = Noisy(breaks_at=6), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(first, dataset, METRICS, n=4, reward=reward(), out=out)
    with open(out / "records.jsonl", "ab") as file:
        file.write(b'{"image": "1", "row": "cand')  # as if killed while writing
    second = Noisy()
    resumed = evaluate(second, dataset, METRICS, n=4, reward=reward(), out=out)
    assert (len(first.made), len(second.made)) == (6, 6)
    assert values(resumed) == values(whole)
    third = Noisy()
    assert values(evaluate(third, dataset, METRICS, n=4, reward=reward(), out=out)) == values(whole)
    assert third.made == []
    assert values(Evaluation.load(out)) == values(whole)
    assert json.loads((out / "results.json").read_text())["rows"] == whole.report()["rows"]
    more = Noisy()
    assert evaluate(more, dataset, METRICS, n=5, reward=reward(), out=out).report()["n"] == 5
    assert more.made == [candidate_seed(0, 4)] * 3
    assert values(evaluate(Noisy(), dataset, METRICS, n=4, reward=reward(), out=out)) == values(whole)


def values(evaluation):
    return {one.key: (one.sha256, one.reward, str(one.metrics)) for one in evaluation.records if one.row != "hr"}


def test_another_runs_folder_is_refused(dataset, tmp_path):
    evaluate(Noisy(), dataset, METRICS, n=1, out=tmp_path / "run")
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        evaluate(Noisy(), dataset, METRICS, n=1, seed=1, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"metrics\.ssim_y was"):
        evaluate(Noisy(), dataset, METRICS[:1], n=1, out=tmp_path / "run")
    with open(tmp_path / "run" / "records.jsonl", "ab") as file:
        file.write(b"{}\n")
    with pytest.raises(ValueError, match=r"line 10: no record .*; delete the line"):
        evaluate(Noisy(), dataset, METRICS, n=1, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"no readable run\.json"):
        Evaluation.load(tmp_path)


def test_a_day_later_the_folder_still_knows_its_images(dataset, tmp_path):
    """Start time and command differ between two calls: beside them, other bytes under the same name must be told."""
    out = tmp_path / "run"
    evaluate(Noisy(), dataset, METRICS, n=1, out=out)
    text = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(text | {"started": "2001-01-01T00:00:00+00:00", "command": ["earlier"]}))
    evaluate(Noisy(), dataset, METRICS, n=1, out=out)
    (out / "run.json").write_text(json.dumps(text | {"started": "2001-01-01T00:00:00+00:00", "command": ["earlier"]}))
    save_png(1 - load_image(dataset.items[0].hr), dataset.items[0].hr, overwrite=True)
    with pytest.raises(ValueError, match=r"dataset\.fingerprint changed"):
        evaluate(Noisy(), dataset, METRICS, n=1, out=out)


def test_the_reward_and_its_labels_do_not_judge(dataset):
    class Model:
        name = "model"
        iqa = SimpleNamespace(protocol=SimpleNamespace(label_metrics=("haarpsi", "mdsi", "vsi")))

    combined = CompositeReward([Term(as_reward("fsim"), normalise="raw"), Term(as_reward("vif"), weight=0.0)])
    conditioned = ConditionedReward(MetricReward(smooth, "smooth", True, (0, 1)))
    cached = RobustReward(MetricReward(smooth, "smooth", True, (0, 1)))
    cached.reward = MetricReward(smooth, "smooth", True, (0, 1))
    cached.reward.model = Model.iqa  # a reward of somebody's own that holds a model
    assert set(not_headline(Model)) == {"haarpsi", "mdsi", "vsi"}
    assert set(not_headline(cached)) == {"haarpsi", "mdsi", "vsi"}
    assert set(not_headline(combined)) == {"fsim"}
    assert set(not_headline(conditioned)) == {"lr_consistency"}
    with pytest.raises(ValueError, match="compares each image with its group"):
        evaluate(Noisy(), dataset, METRICS, reward=CompositeReward([Term(reward())]))
    assert not_headline(reward()) == not_headline(None) == {}
    with pytest.raises(ValueError, match="'ssim_y' refused: it was the reward"):
        evaluate(Noisy(), dataset, METRICS, reward=as_reward("ssim_y"), headline="ssim_y")
    with pytest.raises(ValueError, match="'mdsi' refused: the labels that model was trained on"):
        pick_headline(["vif", "mdsi"], not_headline(Model), "mdsi")
    with pytest.raises(ValueError, match="no metric of ssim_y may judge"):
        evaluate(Noisy(), dataset, ["ssim_y"], reward=as_reward("ssim_y"))
    assert pick_headline(["niqe", "haarpsi", "vif"], not_headline(Model)) == "vif"
    assert pick_headline(["vif", "niqe"], {}, has_hr=False) == "niqe"
    results = evaluate(Noisy(), dataset, METRICS, n=3, reward=as_reward("ssim_y")).report()
    assert results["headline"] == "psnr_y"
    assert [results["choice"][name]["may_judge"] for name in METRICS] == [True, False, True]


def test_a_failed_candidate_is_named_left_out_and_tried_again(dataset, tmp_path):
    broken = Noisy(breaks_at=2, error=RestorationError)
    results = evaluate(broken, dataset, METRICS, n=4, out=tmp_path / "run").report()
    [failed] = results["problems"]["failed"]
    assert failed == {"image": "0", "seed": candidate_seed(0, 2), "error": "broken"}
    assert results["problems"]["left_out"]["psnr_y"] == ["0"]
    assert results["rows"]["mean"]["psnr_y"]["images"] == 2
    again = Noisy()
    results = evaluate(again, dataset, METRICS, n=4, out=tmp_path / "run").report()
    assert again.made == [candidate_seed(0, 2)]
    assert (results["problems"]["failed"], results["problems"]["left_out"]) == ([], {})

    class Broken(Noisy):
        def restore(self, image, seeds):
            raise ValueError("no weights")

    with pytest.raises(RuntimeError, match="3 of 12 candidates failed, the last: no weights"):
        evaluate(Broken(), dataset, METRICS, n=4)


def test_a_reward_that_fails_and_candidates_that_are_one(dataset):
    flaky = MetricReward(lambda image: math.nan if float(image.mean()) > 0 else 1.0, "flaky", True, (0, 1))
    results = evaluate(BicubicRestorer(), dataset, METRICS, n=3, reward=flaky).report()
    assert results["problems"]["identical_candidates"] == ["0", "1", "2"]
    assert results["problems"]["left_out"]["reward"] == ["0", "1", "2"]
    assert results["problems"]["unmeasured"]["reward"] == {"flaky returned nan": 15}
    assert results["choice"]["psnr_y"]["captured_gain"]["value"] is None
    assert results["g_std"]["psnr_y"]["value"] == 0
    assert results["rows"]["best"]["psnr_y"]["value"] == results["rows"]["bicubic"]["psnr_y"]["value"]


def test_paired_test_between_two_restorers(dataset, tmp_path, capsys):
    good, bad = (evaluate(Noisy(strength=s), dataset, METRICS, n=3, reward=reward()) for s in (0.05, 0.2))
    test = compare((good.settings, good.records), (bad.settings, bad.records), "psnr_y")
    gap = [one.report()["rows"]["mean"]["psnr_y"]["value"] for one in (good, bad)]
    assert test["mean"]["difference"]["value"] == pytest.approx(gap[0] - gap[1])
    assert test["mean"]["p_sign_flip"] == test["mean"]["p_wilcoxon"] == pytest.approx(0.25)  # three images: 2 of 2^3
    assert test["mean"]["difference"]["low"] is test["mean"]["difference"]["high"] is None
    _show_test(output.console(), test, "mean")
    assert "no interval, because fewer than 6 images differ), p 0.2500 (sign flips)" in " ".join(
        capsys.readouterr().out.split()
    )
    assert test["selected"]["difference"]["images"] == 3
    other = degraded_folder(tmp_path / "hr", "mild")
    (tmp_path / "big").mkdir()
    for k in range(3):
        save_png(make_image(k, 80, 80), tmp_path / "big" / f"{k}.png")
    other = evaluate(BicubicRestorer(), degraded_folder(tmp_path / "big", "bicubic"), METRICS, n=1)
    with pytest.raises(ValueError, match="different pixels"):
        compare((good.settings, good.records), (other.settings, other.records), "psnr_y")


def test_without_ground_truth_and_with_images_kept(tmp_path):
    (tmp_path / "lq").mkdir()
    save_png(make_image(0, 24, 56), tmp_path / "lq" / "old.png")
    low, measured = paired_folders(tmp_path / "lq", None), ["niqe", "psnr_y", "lr_consistency"]
    evaluate(Noisy(), low, measured, n=2, out=tmp_path / "run")  # keeps none: the next call makes them again
    found = evaluate(Noisy(), low, measured, n=2, out=tmp_path / "run", keep_images=True)
    results = found.report()
    assert results["headline"] == "niqe"
    assert results["rows"]["mean"]["niqe"]["images"] == 1
    assert results["rows"]["hr"]["niqe"]["images"] == 0
    assert results["problems"]["unmeasured"] == {"psnr_y": {"psnr_y needs hr, which is not there": 3}}
    kept = sorted((tmp_path / "run" / "images" / "old").glob("*.png"))
    assert sorted(int(file.stem) for file in kept) == sorted(candidate_seed(0, k) for k in range(2))
    with pytest.raises(ValueError, match="keep_images needs out="):
        evaluate(Noisy(), paired_folders(tmp_path / "lq", None), ["niqe"], keep_images=True)
    with pytest.raises(ValueError, match=r"old\.png: is a file; put the images into a folder"):
        paired_folders(tmp_path / "lq" / "old.png", None)
    with pytest.raises(ValueError, match="is x4, dataset 'lq' x2"):
        evaluate(Noisy(), paired_folders(tmp_path / "lq", None, scale=2), ["niqe"])


def test_bicubic_is_pillows():
    from restoration.degradation.classical import enlarge

    image = make_image(1, 20, 24)
    pillow = torch.from_numpy(enlarge(image.permute(1, 2, 0).numpy(), 4, "bicubic")).permute(2, 0, 1)
    assert (bicubic(image, 4) - pillow).abs().max() < 1e-4


@pytest.mark.integration
def test_command(dataset, tmp_path):
    app = typer.Typer()
    app.command()(command)

    def call(*args):
        common = [str(tmp_path / "hr"), "--degradation", "bicubic", "--restorer", "bicubic", "--n", "2"]
        return CliRunner().invoke(app, [*common, *args], standalone_mode=False)

    done = call("--out", str(tmp_path / "a"), "--reward", "lr_consistency", "--metrics", "psnr_y,lr_consistency")
    assert done.exception is None
    assert done.return_value == 0
    assert "psnr_y*" in done.stdout
    assert "no judge: it was the reward" in done.stdout
    assert "all candidates identical: 0, 1, 2" in done.stderr
    done = call("--out", str(tmp_path / "b"), "--reward", "none", "--metrics", "psnr_y,niqe", "--json", "--against",
                str(tmp_path / "a"), "--limit", "2")  # fmt: skip
    results = json.loads(done.stdout)
    assert done.return_value == 2  # NIQE is not defined for images of 64 px
    assert results["against"]["mean"]["difference"]["value"] == 0
    assert (results["images"], results["choice"]) == (2, {})
    assert results == json.loads((tmp_path / "b" / "results.json").read_text()) | {"against": results["against"]}
    shown = call("--out", str(tmp_path / "b"), "--reward", "none", "--metrics", "psnr_y,niqe", "--against",
                 str(tmp_path / "a"), "--limit", "2")  # fmt: skip
    assert "(sign flips)" in " ".join(shown.stdout.split())
    refused = call("--out", str(tmp_path / "c"), "--reward", "psnr_y", "--metrics", "psnr_y", "--headline", "psnr_y")
    assert "refused: it was the reward" in str(refused.exception)
    controlnet().save_pretrained(tmp_path / "pipeline")
    shown = [
        "--restorer",
        str(tmp_path / "pipeline"),
        "--reward",
        "none",
        "--metrics",
        "lr_consistency",
        "--limit",
        "1",
    ]
    enlarging = call("--out", str(tmp_path / "f"), *shown, "--n", "1")
    assert enlarging.exception is None
    plain = call("--out", str(tmp_path / "e"), "--vary-sharpness", "0.5")
    assert "'bicubic' is the plain reference" in str(plain.exception)
    missing = CliRunner().invoke(app, ["set5", "--out", str(tmp_path / "d")], standalone_mode=False)
    assert "needs --root" in str(missing.exception)


def test_two_evaluations_measured_in_other_ways_are_not_compared(dataset):
    usual = evaluate(Noisy(), dataset, METRICS, n=2)
    rgb = evaluate(Noisy(), dataset, METRICS, n=2, options={"psnr_y": {"channel": "rgb", "border_px": 0}})
    with pytest.raises(ValueError, match=r"psnr_y was measured as .*'y'.* and as .*'rgb'.*; evaluate both alike"):
        compare((usual.settings, usual.records), (rgb.settings, rgb.records), "psnr_y")
    assert compare((usual.settings, usual.records), (rgb.settings, rgb.records), "ssim_y")["mean"]


def test_all_rows_of_a_metric_are_of_the_same_images(dataset):
    whole = evaluate(Noisy(), dataset, METRICS, n=3, reward=reward())
    hardest = min("012", key=lambda name: rows_of(whole.records, name)["bicubic"].metrics["psnr_y"])
    seed = whole.settings["seeds"][1]
    for broken in (
        [replace(r, metrics={}, error="lost") if (r.image, r.seed) == (hardest, seed) else r for r in whole.records],
        [replace(r, reward=math.nan) if (r.image, r.seed) == (hardest, seed) else r for r in whole.records],
    ):
        results = replace(whole, records=tuple(broken)).report()
        rest = replace(whole, records=tuple(r for r in whole.records if r.image != hardest)).report()
        assert results["problems"]["left_out"]["psnr_y"] == [hardest]
        assert results["pool_above_bicubic_db"] == rest["pool_above_bicubic_db"]
        assert {row: cells["psnr_y"] for row, cells in results["rows"].items()} == {
            row: cells["psnr_y"] for row, cells in rest["rows"].items()
        }


def rows_of(records, image):
    return {record.row: record for record in records if record.image == image}


def test_a_folder_that_held_a_larger_run_reports_the_last_one(dataset, tmp_path):
    evaluate(Noisy(), dataset, METRICS, n=4, out=tmp_path / "run")
    last = evaluate(Noisy(), dataset, METRICS, n=2, out=tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "results.json").read_text())
    assert json.loads(json.dumps(Evaluation.load(tmp_path / "run").report())) == kept
    assert len(last.records) == 3 * (2 + 2)


def test_a_folder_in_which_another_evaluation_works_is_refused(dataset, tmp_path):
    pytest.importorskip("fcntl")
    out = tmp_path / "run"
    with locked(out), pytest.raises(ValueError, match="another process works in it"):
        evaluate(Noisy(), dataset, METRICS, n=1, reward=reward(), out=out)
