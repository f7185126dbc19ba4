"""Report of an evaluation: every metric with its intervals, and how well the reward chose."""

import math
from pathlib import Path
from typing import Any

from PIL import Image

from restoration.evaluation.records import ImageRecord, read_records, read_settings
from restoration.evaluation.report import report as numbers_of
from restoration.metrics.registry import METRICS
from restoration.report import charts
from restoration.report.page import Card, facts, group, page, paragraph, section, side_by_side, table
from zoomiqa_reward.runs.json_lines import as_float

ROWS = ("bicubic", "worst", "mean", "best", "selected", "hr")
MEANING = {
    "worst": "worst candidate", "mean": "mean candidate", "best": "best candidate", "selected": "chosen by the reward",
    "hr": "ground truth",
}  # fmt: skip


def evaluation_report(folder: Path, most: int) -> str:
    """Return the page of an evaluation. most: images whose kept candidates are shown."""
    records = read_records(folder)
    if not records:
        raise ValueError(f"{folder}: nothing is measured yet; let the evaluation go on first")
    results = numbers_of(read_settings(folder), records)
    settings, rows = results["settings"], results["rows"]
    names = list(rows["mean"])
    charts_of = [_chart(name, rows, is_headline=name == results["headline"]) for name in names]
    reward = settings["reward"]
    cells = [
        (MEANING.get(row, row), *(_cell(rows[row][name]) for name in names)) for row in ROWS if row in rows
    ] + [("G-STD", *(_cell(results["g_std"][name]) for name in names))]  # fmt: skip
    choice = [
        (name, *(_cell(values[key]) for key in ("captured_gain", "regret", "within_srcc")),
         "yes" if values["may_judge"] else settings["not_headline"][name])
        for name, values in results["choice"].items()
    ]  # fmt: skip
    return page(
        f"{settings['restorer']['name']} on {settings['dataset']['name']}",
        f"{folder}: {results['images']} images, {results['n']} candidates each; means with 95 % intervals over images",
        [
            section("Metrics", side_by_side(charts_of), table(("", *names), cells, words=(0,))),
            section(f"Choice by {reward['name']}" if reward else "Choice",
                    table(("under", "captured gain", "regret", "within-image SRCC", "may judge"), choice, words=(0, 4))
                    if choice else ""),
            section("Images", *_images(folder, records, most)),
            section("Problems", *_problems(results["problems"])),
            section("Run", facts(_facts(results))),
        ],
    )  # fmt: skip


def _facts(results: dict[str, Any]) -> list[tuple[str, object]]:
    settings, cost = results["settings"], results["cost"]["seconds_per_candidate"]
    reward = settings["reward"]
    return [
        ("judging metric", results["headline"]), ("reward", reward["name"] if reward else "none"),
        ("seconds per candidate", None if cost is None else f"{cost:.2f}"), ("scale", settings["dataset"]["scale"]),
        ("seed", settings["seed"]), ("versions", settings["versions"]), ("command", settings["command"]),
    ]  # fmt: skip


def _chart(name: str, rows: dict[str, Any], *, is_headline: bool) -> str:
    shown = [row for row in ROWS if row in rows and rows[row].get(name, {}).get("value") is not None]
    better = "" if name == "reward" or METRICS[name].higher_is_better else ", lower is better"
    values = [rows[row][name] for row in shown]
    ranges = [(as_float(number["low"]), as_float(number["high"])) for number in values]
    series = [charts.Series(name=name, values=[number["value"] for number in values], ranges=ranges)]
    title = f"{name}{', the judging metric' if is_headline else ''}{better}"
    return charts.dots(title, [MEANING.get(row, row) for row in shown], series, x_label=name)


def _images(folder: Path, records: list[ImageRecord], most: int) -> list[str]:
    """Return the candidates that were kept, image by image, best reward first."""
    parts = []
    for name in list(dict.fromkeys(record.image for record in records))[:most]:
        mine = [record for record in records if record.image == name and record.row == "candidate"]
        cards = []
        for record in sorted(mine, key=lambda record: math.inf if math.isnan(record.reward) else -record.reward):
            file = folder / "images" / Path(name) / f"{record.seed}.png"
            if not file.exists():
                continue
            with Image.open(file) as image:
                values = ", ".join(f"{key} {value:.4g}" for key, value in record.metrics.items())
                cards.append(Card(image=image.convert("RGB"), title=f"seed {record.seed}",
                                  lines=[f"reward {record.reward:.3f}", values]))  # fmt: skip
        if cards:
            parts.append(f"{paragraph(name)}{group(cards)}")
    return parts


def _problems(problems: dict[str, Any]) -> list[str]:
    lines = [f"failed: {entry['image']}: {entry['error']}" for entry in problems["failed"]]
    for name, reasons in problems["unmeasured"].items():
        lines += [f"not measured, {count} times: {name}: {why}" for why, count in reasons.items()]
    lines += [f"left out of {name}: {', '.join(images)}" for name, images in problems["left_out"].items()]
    return [paragraph(line) for line in lines]


def _cell(number: dict[str, Any]) -> str:
    if number["value"] is None:
        return "-"
    interval = "" if number["low"] is None else f" [{number['low']:.3f}, {number['high']:.3f}]"
    return f"{number['value']:.3f}{interval}"
