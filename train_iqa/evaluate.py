"""`python -m train_iqa.evaluate`: how well a model agrees with people, how sure it is, and how still its ratings hold.

    python -m train_iqa.evaluate --model nano --data koniq=DIR --data csv=photos.csv --mode direct --out runs/eval
    accelerate launch --num_processes 8 -m train_iqa.evaluate --model DIR --data koniq=DIR --out runs/eval

The same command continues after a kill: one line per image is in OUT, and an image with a line is not measured
again. With several processes each takes its share of the images. At the end `report.json` and the plots are in OUT.
"""

import argparse
import datetime
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from train_iqa.data import FAMILIES, IqaDataset, LabelledImage, load_datasets, select
from train_iqa.evaluation.measuring import LineWriter, choose_probe_ids, measure_images, read_lines
from train_iqa.evaluation.options import EvaluateConfig, build_parser, config_of, evaluation_provenance
from zoomiqa_reward.model.devices import find_device
from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.runs.digest import digest
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import plain, write_json
from zoomiqa_reward.runs.program import run_program
from zoomiqa_reward.runs.progress import progress, say

PATIENCE = datetime.timedelta(days=2)
"""How long processes wait for each other: their shares of the images may take very different times."""
HEADLINE = ("plcc_raw", "srcc_raw", "krcc_raw", "plcc_logistic4", "plcc_isotonic", "srcc_isotonic")


def evaluate(config: EvaluateConfig, iqa: ZoomIQA, arguments: list[str] | None = None) -> dict[str, Any] | None:
    """Measure what has no line yet, write the report and return it (None in processes other than the first).

    Raises DatasetProblems before anything is measured; ValueError where OUT holds a run with other settings, and where
    the run to compare with rates none of the images.
    """
    state = process_state(is_cpu=iqa.device.type == "cpu")
    # One process decodes every file for all; unless images may be left out, which all must know of.
    checks = config.checks if state.is_main_process or config.accept else "paths"
    datasets = load_datasets(config.sources, checks=checks, accept=config.accept)
    chosen = {dataset.name: select(dataset, config.part) for dataset in datasets}
    if config.compare is not None:
        _require_shared(config.compare, chosen)
    with locked(config.out, is_holder=state.is_main_process):
        if state.is_main_process:
            bind(config.out, plain(_settings(config, iqa, datasets, chosen)), file="settings.json")
        state.wait_for_everyone()
        _measure(config, iqa, chosen, state)
        state.wait_for_everyone()
        if not state.is_main_process:
            return None
        report = _report(config, iqa, datasets, chosen, sys.argv[1:] if arguments is None else arguments)
        _write(config.out / "report.json", report)
    return report


def _require_shared(folder: Path, chosen: Mapping[str, tuple[LabelledImage, ...]]) -> None:
    """Raise ValueError for a folder to compare with that rates none of the chosen images."""
    keys = {(name, image.id) for name, images in chosen.items() for image in images}
    others = read_lines(folder)
    if not keys & others.keys():
        what = f"its {len(others)} ratings are of other images" if others else "holds no ratings"
        raise ValueError(f"--compare {folder}: {what}; give the --out folder of an evaluation of the same data sets")


def _measure(config: EvaluateConfig, iqa: ZoomIQA, chosen: Mapping[str, tuple[LabelledImage, ...]], state: Any) -> None:
    done = read_lines(config.out)
    state.wait_for_everyone()  # so that all processes share out the same rest
    probes = {
        (name, image_id)
        for name, images in chosen.items()
        for image_id in choose_probe_ids(images, config.num_probes, config.seed)
    }
    todo = [image for images in chosen.values() for image in images if (image.dataset, image.id) not in done]
    mine = todo[state.process_index :: state.num_processes]
    if done and state.is_main_process:
        _say(f"{config.out}: {len(done)} images are there already, {len(todo)} to do")
    writer = LineWriter(config.out, state.process_index)
    lines = measure_images(iqa, mine, probes, config.asking)
    for line in progress(lines, len(mine), f"process {state.process_index}, images"):
        writer.write(line)


def _report(
    config: EvaluateConfig,
    iqa: ZoomIQA,
    datasets: list[IqaDataset],
    chosen: Mapping[str, tuple[LabelledImage, ...]],
    arguments: list[str],
) -> dict[str, Any]:
    from train_iqa.evaluation.plots import calibration_plot, scatter_plot
    from train_iqa.evaluation.report import compare, report_of

    lines, results = read_lines(config.out), {}
    files = _file_names([dataset.name for dataset in datasets])
    for dataset, file in zip(datasets, files, strict=True):
        images = chosen[dataset.name]
        result = report_of(images, lines, mode=config.asking.mode, draws=config.draws, seed=config.seed)
        results[dataset.name] = result
        rated = [
            (lines[dataset.name, image.id], image.mos) for image in images if lines[dataset.name, image.id]["valid"]
        ]
        numbers = f"SRCC {_value(result, 'srcc_raw'):.3f}, PLCC {_value(result, 'plcc_raw'):.3f}, n = {len(rated)}"
        title = f"{iqa.name} on {dataset.name}\n{numbers}"
        scatter_plot(
            [line["rating"] for line, _ in rated], [mos for _, mos in rated], title, config.out / f"{file}.png"
        )
        if result["std_calibration"] and result["std_calibration"]["bins"]:
            calibration_plot(result["std_calibration"], title, config.out / f"{file}_std.png")
    keys = {(name, image.id) for name, images in chosen.items() for image in images}
    mine = {key: line for key, line in lines.items() if key in keys}
    return {
        "provenance": evaluation_provenance(iqa, arguments),
        "settings": _settings(config, iqa, datasets, chosen) | {"draws": config.draws},
        "data": {dataset.name: _about(dataset, len(chosen[dataset.name])) for dataset in datasets},
        "results": results,
        "compared": None if config.compare is None else compare(mine, read_lines(config.compare)),
    }


def _settings(
    config: EvaluateConfig,
    iqa: ZoomIQA,
    datasets: list[IqaDataset],
    chosen: Mapping[str, tuple[LabelledImage, ...]],
) -> dict[str, Any]:
    """Return all that decides what a line says, so that a run is not continued with something else."""
    return {
        "model_fingerprint": iqa.fingerprint,
        "asking": asdict(config.asking),
        "part": config.part,
        "seed": config.seed,
        "num_probes": config.num_probes,
        "data": {
            dataset.name: {
                "digest": dataset.digest,
                "images": digest("\n".join(i.id for i in chosen[dataset.name])),
            }
            for dataset in datasets
        },
    }


def _about(dataset: IqaDataset, used: int) -> dict[str, Any]:
    return {
        "family": FAMILIES[dataset.family].title,
        "images": len(dataset),
        "images_of_the_whole_set": FAMILIES[dataset.family].count,
        "used": used,
        "has_official_split": dataset.has_official_split,
        "raw_at_1": dataset.scale.worst,
        "raw_at_5": dataset.scale.best,
        "digest": dataset.digest,
        "left_out": [str(problem) for problem in dataset.left_out],
    }


def _value(result: Mapping[str, Any], name: str) -> float:
    return float(result["agreement"][name]["value"])


def _file_names(names: Sequence[str]) -> list[str]:
    """Return what the figures of each data set begin with; none writes over another's, nor its `_std.png`."""
    files: list[str] = []
    for name in names:
        file = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
        taken = {f"{other}{ending}" for other in files for ending in ("", "_std")}
        files.append(f"{file}-{digest(name)}" if {file, f"{file}_std"} & taken else file)
    return files


def _write(file: Path, content: Any) -> None:
    write_json(file, plain(content), indent=1)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0, 1 (failed), or 2 (some image could not be measured)."""
    args = build_parser().parse_args(argv)
    return run_program("train_iqa.evaluate", lambda: _work(args, argv))


def _work(args: argparse.Namespace, argv: list[str] | None) -> int:
    config = config_of(args)
    iqa = ZoomIQA.from_pretrained(
        args.model, device=_own_device(args.device), dtype=args.dtype, adapter=args.adapter, protocol=args.protocol
    )
    report = evaluate(config, iqa, argv)
    if report is None:
        return 0
    for name, result in report["results"].items():
        values = {key: _value(result, key) for key in HEADLINE}
        print(json.dumps(plain({"dataset": name, "images": result["images"], "failed": result["failed"], **values})))
    _say(f"report: {config.out / 'report.json'}")
    return 2 if any(result["failed"] for result in report["results"].values()) else 0


def _say(text: str) -> None:
    say(text)


def process_state(*, is_cpu: bool) -> Any:
    """Return accelerate's view of the processes that were launched together; alone, there is one.

    Raises ValueError where the launcher started several and accelerate sees one: each would then measure everything.
    """
    from accelerate import PartialState  # slow to import, and not needed to show --help

    state = PartialState(cpu=is_cpu, timeout=PATIENCE)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, accelerate sees {state.num_processes}; on a machine without "
            "accelerator use --device cpu"
        )
    return state


def _own_device(asked: str | None) -> str | None:
    """Return the device of this process where there are several, else what was asked for."""
    find_device(asked)
    state = process_state(is_cpu=asked == "cpu" or (asked is None and not torch.accelerator.is_available()))
    return str(state.device) if state.num_processes > 1 else asked


if __name__ == "__main__":
    sys.exit(main())
