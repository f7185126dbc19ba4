"""The command from end to end on a tiny model: numbers, resumption, failures, several processes, refusals."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from scipy.stats import spearmanr
from tiny import make_image, tiny_checkpoint, tiny_iqa

from train_iqa import evaluate as module
from train_iqa.data import DatasetSource, load_datasets, select
from train_iqa.evaluate import evaluate, main
from train_iqa.evaluation.measuring import Asking, LineWriter, choose_probe_ids, read_lines
from train_iqa.evaluation.options import EvaluateConfig, build_parser, config_of
from train_iqa.evaluation.report import compare, report_of
from zoomiqa_reward.images import load_image, save_png
from zoomiqa_reward.runs.json_lines import plain

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of three scenes with labels, and for two of them the damaged region."""
    root = tmp_path_factory.mktemp("photos")
    lines = ["image,mos,scene,boxes"]
    for k in range(NUM_IMAGES):
        save_png(make_image(k, 60, 70) * (k + 1) / NUM_IMAGES, root / f"{k}.png")
        lines.append(f"{k}.png,{1.2 + 0.6 * k:.1f},s{k // 2},{'0 0 0.5 0.5' if k < 2 else ''}")
    (root / "photos.csv").write_text("\n".join(lines) + "\n")
    return root


def arguments(photos: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--device", "cpu", "--probes", "2", "--calls", "2", "--draws", "20"]
    return [
        "--model",
        str(tiny_checkpoint()),
        "--data",
        f"csv={photos / 'photos.csv'}",
        "--out",
        str(out),
        *fixed,
        *more,
    ]


def config(photos: Path, out: Path, **changes: object) -> EvaluateConfig:
    fields = {
        "sources": (DatasetSource(family="csv", root=photos / "photos.csv"),),
        "out": out,
        "num_probes": 0,
        "draws": 0,
    }
    return EvaluateConfig(**(fields | changes))


def test_a_seed_from_which_no_interval_can_be_drawn_is_refused_before_the_work(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seed=-1: must be 0 or more"):
        config(photos, tmp_path, seed=-1)


@pytest.mark.integration
def test_no_figure_of_a_data_set_replaces_that_of_another(photos: Path, tmp_path: Path) -> None:
    names = ("a b", "a_b", "a_b_std")
    sources = tuple(DatasetSource(family="csv", root=photos / "photos.csv", name=name) for name in names)
    evaluate(config(photos, tmp_path, sources=sources), tiny_iqa())
    files = {path.name for path in tmp_path.glob("*.png")}
    assert len(files) == 6  # ratings and deviations of each
    assert {"a_b.png", "a_b_std.png"} < files


@pytest.mark.integration
def test_direct_from_the_command_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(photos, tmp_path)) == 0
    [headline] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    report = json.loads((tmp_path / "report.json").read_text())
    result = report["results"]["photos"]

    iqa = tiny_iqa()
    images = [load_image(photos / f"{k}.png") for k in range(NUM_IMAGES)]
    expected = iqa.rate(images, strict=True)
    lines = read_lines(tmp_path)
    assert [lines["photos", f"{k}.png"]["rating"] for k in range(NUM_IMAGES)] == expected.mean.tolist()
    assert [lines["photos", f"{k}.png"]["std"] for k in range(NUM_IMAGES)] == expected.std.tolist()
    mos = [1.2 + 0.6 * k for k in range(NUM_IMAGES)]
    srcc = spearmanr(expected.mean.numpy(), mos).statistic
    assert result["agreement"]["srcc_raw"]["value"] == headline["srcc_raw"] == pytest.approx(srcc)
    low, high = result["agreement"]["srcc_raw"]["interval_95"]
    assert low <= srcc <= high
    assert (result["images"], result["references"], result["failed"], result["zoom_rate"]) == (6, 3, 0, None)
    assert result["pairs"]["within_reference_apart_0.5"]["pairs"] == 3
    assert result["pairs"]["all_apart_0"]["pairs"] == 15
    assert result["grounding"] is None  # direct names no boxes

    assert result["repeats"] == {
        "images": 2, "left_out": 0, "calls": 2, "std_mean": 0.0, "std_max": 0.0, "share_identical": 1.0,
        "noise_to_signal": 0.0,
    }  # fmt: skip
    assert result["robustness"]["shift1"]["images"] == 2
    assert 0 < result["robustness"]["resize98"]["abs_mean"] < 2
    assert result["sampling"]["calls"] == 2
    assert result["std_calibration"]["of"] == "rating"
    assert result["std_calibration"]["images"] == 6

    provenance = report["provenance"]
    assert provenance["model_fingerprint"] == iqa.fingerprint
    assert provenance["command"].startswith("python -m train_iqa.evaluate --model")
    assert provenance["versions"]["torch"]
    assert report["data"]["photos"]["digest"]
    for name in ("photos.png", "photos_std.png"):
        assert load_image(tmp_path / name).std() > 0.05


def test_an_unreadable_mode_is_counted_and_never_a_rating(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The tiny model has learned ratings, not the protocol: every answer in words is unreadable.
    assert main(arguments(photos, tmp_path, "--mode", "reason", "--no-sampling", "--probes", "1")) == 2
    result = json.loads((tmp_path / "report.json").read_text())["results"]["photos"]
    assert (result["failed"], result["failed_share"]) == (6, 1.0)
    assert sum(result["errors"].values()) == 6
    assert result["zoom_rate"] == 0.0
    assert all(entry["value"] is None for entry in result["agreement"].values())
    assert result["grounding"]["silent_share"] == 1.0
    assert result["sampling"] is None
    assert result["repeats"]["left_out"] == 1
    assert all(line["rating"] is None for line in read_lines(tmp_path).values())
    assert json.loads(capsys.readouterr().out)["srcc_raw"] is None


@pytest.mark.integration
def test_a_killed_run_goes_on_without_losing_or_doubling(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(config(photos, tmp_path / "whole"), tiny_iqa(), [])
    measured: list[str] = []

    def stop_after(count: int):
        def wrapped(*args: object):
            for line in real(*args):
                if len(measured) == count:
                    raise KeyboardInterrupt
                measured.append(line["id"])
                yield line

        return wrapped

    real = module.measure_images
    out = tmp_path / "out"
    monkeypatch.setattr(module, "measure_images", stop_after(2))
    with pytest.raises(KeyboardInterrupt):
        evaluate(config(photos, out), tiny_iqa(), [])
    file = out / "ratings-0000.jsonl"
    with open(file, "ab") as torn:
        torn.write(file.read_bytes()[:40])  # the line that a kill cut short
    assert len(read_lines(out)) == 2
    monkeypatch.setattr(module, "measure_images", stop_after(99))
    report = evaluate(config(photos, out), tiny_iqa(), [])
    assert sorted(measured) == [f"{k}.png" for k in range(NUM_IMAGES)]
    assert len(file.read_bytes().splitlines()) == NUM_IMAGES
    assert report["results"]["photos"]["agreement"] == whole["results"]["photos"]["agreement"]
    measured.clear()
    assert evaluate(config(photos, out), tiny_iqa(), []) is not None
    assert measured == []


def test_another_run_in_the_same_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    evaluate(config(photos, tmp_path), tiny_iqa(), [])
    evaluate(config(photos, tmp_path, draws=5), tiny_iqa(), [])  # only the report differs
    with pytest.raises(ValueError, match=r"holds another run \(asking.question was None"):
        evaluate(config(photos, tmp_path, asking=Asking(question="Sharp?")), tiny_iqa(), [])
    with pytest.raises(ValueError, match="seed was 0, now 3"):
        evaluate(config(photos, tmp_path, seed=3), tiny_iqa(), [])


def test_processes_share_the_images(photos: Path, tmp_path: Path) -> None:
    setting = config(photos, tmp_path, num_probes=3, asking=Asking(calls=1, is_sampling=False))
    [dataset] = load_datasets(setting.sources)
    chosen = {dataset.name: select(dataset)}
    for index in range(3):
        state = SimpleNamespace(
            process_index=index, num_processes=3, is_main_process=False, wait_for_everyone=lambda: None
        )
        # Each would read what the others wrote meanwhile; at a real start nothing is there yet.
        folder = tmp_path / f"alone{index}"
        folder.mkdir()
        module._measure(EvaluateConfig(**(vars(setting) | {"out": folder})), tiny_iqa(), chosen, state)
        [file] = folder.glob("*.jsonl")
        assert file.name == f"ratings-{index:04d}.jsonl"
        file.rename(tmp_path / file.name)
        assert len(read_lines(tmp_path)) == 2 * (index + 1)
    lines = read_lines(tmp_path)
    assert len(lines) == NUM_IMAGES
    assert sum("probe" in line for line in lines.values()) == 3
    result = report_of(chosen["photos"], lines, mode="direct", draws=0)
    assert result["robustness"]["jpeg95"]["images"] == 3


def test_broken_data_stops_before_anything_is_measured(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.csv").write_text("image,mos\nno.png,3\n../x.png,3\n")
    call = ["--model", str(tiny_checkpoint()), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*call, "--data", f"csv={tmp_path / 'bad.csv'}"]) == 1
    error = capsys.readouterr().err
    assert "2 problems (1 escape, 1 missing)" in error
    assert not (tmp_path / "out").exists()
    assert main([*call, "--data", "csv"]) == 1
    assert main([*call, "--data", "csv=a", "--name", "a", "--name", "b"]) == 1
    assert main([*call, "--data", f"csv={photos / 'photos.csv'}", "--scale", "5"]) == 1
    with pytest.raises(SystemExit) as stopped:
        main(["--data", "csv=a"])
    assert stopped.value.code == 1
    with pytest.raises(ValueError, match="calls at least 1"):
        config(photos, tmp_path, asking=Asking(calls=0))


def test_several_processes_that_do_not_see_each_other_are_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(arguments(photos, tmp_path / "out")) == 1
    assert "4 processes were launched, accelerate sees 1" in capsys.readouterr().err


def test_options_reach_the_configuration(tmp_path: Path) -> None:
    line = (
        "--data koniq=k --data json=l.json --name K --name L --image-root i --scale 0:100 --part all --batched --out o"
    )
    found = config_of(build_parser().parse_args(line.split()))
    koniq, listed = found.sources
    assert (koniq.name, koniq.root, koniq.scale) == ("K", Path("k"), None)
    assert (listed.name, listed.image_root, listed.scale.best) == ("L", Path("i"), 100)
    assert (found.part, found.asking.strict, found.asking.is_sampling) == ("all", False, True)


def test_finished_lines_are_checked_and_torn_ones_removed(tmp_path: Path) -> None:
    LineWriter(tmp_path, 0).write({"dataset": "d", "id": "ü.png", "rating": math.nan, "list": (1.0, math.inf)})
    LineWriter(tmp_path, 1).write({"dataset": "d", "id": "ü.png", "rating": 2.0})
    assert read_lines(tmp_path) == {
        ("d", "ü.png"): {"dataset": "d", "id": "ü.png", "rating": None, "list": [1.0, "Infinity"]}
    }
    with open(tmp_path / "ratings-0001.jsonl", "a") as file:
        file.write('{"dataset": "d"')
    LineWriter(tmp_path, 1)
    assert (tmp_path / "ratings-0001.jsonl").read_text().count("\n") == 1
    with open(tmp_path / "ratings-0001.jsonl", "a") as file:
        file.write('{"dataset": "d"}\n')
    with pytest.raises(ValueError, match=r"ratings-0001.jsonl:2: damaged"):
        read_lines(tmp_path)
    assert plain({"a": [math.nan, (1,)]}) == {"a": [None, [1]]}


def test_two_runs_are_compared_over_what_both_could_rate() -> None:
    def run(*ratings: float | None) -> dict[tuple[str, str], dict[str, object]]:
        return {("d", str(k)): {"rating": r, "valid": r is not None} for k, r in enumerate(ratings)}

    found = compare(run(1, 2, 3, None, 5), run(1.5, 2.5, 3.5, 1))
    assert found == {"images": 3, "plcc": pytest.approx(1), "srcc": pytest.approx(1), "abs_difference_mean": 0.5}
    assert math.isnan(compare(run(1), run(None))["srcc"])


@pytest.mark.parametrize("lines", [None, '{"dataset": "other", "id": "0.png", "rating": 3.0, "valid": true}'])
def test_a_folder_with_nothing_to_compare_is_refused_before_the_work(photos: Path, tmp_path: Path, lines) -> None:
    if lines is not None:
        (tmp_path / "before").mkdir()
        (tmp_path / "before" / "ratings-0.jsonl").write_text(lines + "\n")
    other = config(photos, tmp_path / "out", compare=tmp_path / "before")
    with pytest.raises(ValueError, match="are of other images" if lines else "holds no ratings"):
        evaluate(other, tiny_iqa())
    assert not (tmp_path / "out").exists()


def test_probes_do_not_depend_on_the_order(photos: Path) -> None:
    [dataset] = load_datasets([DatasetSource(family="csv", root=photos / "photos.csv")], checks="paths")
    images = list(dataset.images)
    assert choose_probe_ids(images, 3) == choose_probe_ids(images[::-1], 3)
    assert len(choose_probe_ids(images, 99)) == NUM_IMAGES
    assert choose_probe_ids(images, 3, seed=0) <= choose_probe_ids(images, 4, seed=0)


@pytest.mark.slow
def test_two_real_processes_give_the_same_report(photos: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for beginning, out in (([], one), (launch, two)):  # both with one thread: another number changes the last bits
        command = [sys.executable, *beginning, "-m", "train_iqa.evaluate", *arguments(photos, out)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    assert len(list(two.glob("ratings-*.jsonl"))) == 2
    results = [json.loads((out / "report.json").read_text())["results"]["photos"] for out in (one, two)]
    for key in ("agreement", "pairs", "std_calibration", "repeats", "robustness"):
        assert results[0][key] == results[1][key]
