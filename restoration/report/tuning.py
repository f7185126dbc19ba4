"""Report of a tuning run: reward and held-out signals over rounds, alarms, and the same images over time."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from restoration.report import charts
from restoration.report.page import Card, facts, group, page, paragraph, section, side_by_side
from zoomiqa_reward.runs.json_lines import read_lines

MOST_LOOKS = 12
NO_SIGNAL = ("round", "alarms", "why")
TRAINED = ("loss", "score", "gradient_norm")
WATCHED = "The reward is what the run optimises; the other signals are not. A red line is a round with an alarm."


def tuning_report(folder: Path, most: int) -> str:
    """Return the page of a tuning run, finished or not. most: looks shown, first and last among them."""
    looks = read_lines(folder / "monitor.jsonl")
    log = [row for row in read_lines(folder / "log.jsonl") if "note" not in row]
    if not looks and not log:
        raise ValueError(f"{folder}: no round is finished yet; let the run go on first")
    result = {key: value for key, value in _read(folder / "result.json").items() if key != "alarms"}
    record = _read(folder / "run.json")
    alarms = [row["round"] for row in looks if row.get("alarms")]
    signals = [name for name in dict.fromkeys(key for row in looks for key in row) if name not in NO_SIGNAL]
    watched = [_over_rounds(name, looks, alarms) for name in signals]
    trained = [_over_rounds(name, log, []) for name in TRAINED if any(name in row for row in log)]
    why = [f"Round {row['round']:g}: {reason}." for row in looks for reason in row.get("why", ())]
    state = "not finished" if not result else f"{result['rounds']} rounds, best round {result['best_round']}"
    return page(
        "Tuning", f"{folder}: {state}",
        [
            section("What the monitor saw", paragraph(WATCHED), side_by_side(watched)),
            section("Alarms", *(paragraph(reason) for reason in why)),
            section("Validation images over rounds", group(_looks(folder, looks, min(most, MOST_LOOKS)))),
            section("Training", side_by_side(trained)),
            section("Run", facts(list((result | _shown(record) | _shown(record.get("settings", {}))).items()))),
        ],
    )  # fmt: skip


def _over_rounds(name: str, rows: Sequence[dict[str, Any]], alarms: Sequence[float]) -> str:
    values = [math.nan if row.get(name) is None else float(row[name]) for row in rows]
    return charts.lines(name, [float(row["round"]) for row in rows], [charts.Series(name=name, values=values)],
                        x_label="round", marks=alarms)  # fmt: skip


def _looks(folder: Path, looks: Sequence[dict[str, Any]], most: int) -> list[Card]:
    files = [(row, folder / "looks" / f"{int(row['round']):05d}.png") for row in looks]
    files = [(row, file) for row, file in files if file.exists()]
    if len(files) > most:
        chosen = [round(k * (len(files) - 1) / (most - 1)) for k in range(most)] if most > 1 else [-1]
        files = [files[index] for index in chosen]
    cards = []
    for row, file in files:
        with Image.open(file) as image:
            reward = row.get("reward")
            lines = ["" if reward is None else f"reward {reward:.3f}", "alarm" if row.get("alarms") else ""]
            cards.append(Card(image=image.convert("RGB"), title=f"round {row['round']:g}", lines=lines))
    return cards


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that one reads: single values."""
    return {key: value for key, value in settings.items() if isinstance(value, str | int | float | bool)}


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
