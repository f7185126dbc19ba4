"""Report of best-of-N: the order of the candidates with both measures, and the images to zoom into together."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from restoration.report import charts
from restoration.report.page import Card, facts, group, page, paragraph, section, table
from restoration.selection.candidates import Candidate, Explanation, ranked
from restoration.selection.folder import RUNS, SUMMARIES
from restoration.selection.sheet import words_of
from zoomiqa_reward.images.contact_sheet import SheetEntry, SheetWords
from zoomiqa_reward.images.sheet_entry import places
from zoomiqa_reward.runs.json_lines import as_float, read_lines
from zoomiqa_reward.runs.tables import read_table


def selection_report(folder: Path, most: int) -> str:
    """Return the page of the run of one image. most: images shown. Raises ValueError for a run without candidates."""
    report = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    order = read_order(folder, report)
    if not order:
        raise ValueError(f"{folder}: no candidate is finished yet; let the run go on first")
    report = {"arguments": {}, "notes": []} | report
    words = words_of(order, report)
    entries = [SheetEntry(name="", rating=c.score, second=c.cascade_score, rank=c.rank, valid=c.valid) for c in order]
    marks = places(entries, words.tie, is_second_first=words.is_second_first)
    names = [f"{mark} candidate {c.index}" for mark, c in zip(marks, order, strict=True)]
    series = [
        charts.Series(
            name=words.measure,
            values=[c.score for c in order],
            ranges=[(c.score - c.std, c.score + c.std) for c in order],
        )
    ]
    if words.is_second_first:
        series.append(charts.Series(name=words.second, values=[c.cascade_score for c in order]))
    rows = [
        (mark, c.index, c.restorer, c.seed, f"{c.sharpness:+.2f}", _number(c.score, words), _number(c.std, words),
         _number(c.cascade_score, words), c.error or c.cascade_error or "")
        for mark, c in zip(marks, order, strict=True)
    ]  # fmt: skip
    titles = ("place", "candidate", "restorer", "seed", "sharpness", words.measure, "±", words.second, "not measured")
    return page(
        f"Best of {len(order)}", f"{folder}: {words.title}",
        [
            section("Images", group([*_input(folder), *_cards(order, marks, words, most)])),
            section("Numbers", charts.dots("candidates, best first", names, series, x_label=words.measure),
                    table(titles, rows, words=(0, 2, 8))),
            section("Notes", *(paragraph(note) for note in report["notes"])),
            section("Run", facts(_facts(report))),
        ],
    )  # fmt: skip


def folder_report(folder: Path, most: int) -> str:
    """Return the page of best-of-N over a folder: a row per image, and input beside choice of the first `most`."""
    rows = read_table(folder / SUMMARIES[0])
    if not rows:
        raise ValueError(f"{folder}: no image is finished yet; let the run go on first")
    done = [row for row in rows if row["error"] is None]
    names = [row["image"] for row in done]
    series = [
        charts.Series(name="chosen", values=[as_float(row["score"]) for row in done]),
        charts.Series(name="candidate 0", values=[as_float(row["first"]) for row in done]),
        charts.Series(name="bicubic", values=[as_float(row["bicubic"]) for row in done]),
    ]
    reward = json.loads((folder / "run.json").read_text(encoding="utf-8"))["folder"]["reward"]["name"]
    cells = [
        (row["image"], row["candidate"], row["restorer"], *(_plain(row[key]) for key in ("score", "first", "bicubic")),
         row["error"] or "; ".join(row["notes"]))
        for row in rows
    ]  # fmt: skip
    shown = [section(row["image"], _pair(folder, row)) for row in done[:most]]
    more = f"The first {most} of {len(done)} images are shown; --images shows more." if len(done) > most else ""
    return page(
        f"Best of N over {len(rows)} images",
        f"{folder}: {len(done)} restored, {len(rows) - len(done)} failed; by {reward}, higher is better",
        [
            section("Numbers", charts.dots("score of each image", names, series, x_label=reward),
                    table(("image", "candidate", "restorer", "score", "candidate 0", "bicubic", "notes"), cells,
                          words=(0, 2, 6))),
            paragraph(more), *shown,
        ],
    )  # fmt: skip


def read_order(folder: Path, report: dict[str, Any]) -> list[Candidate]:
    """Return the candidates of a run, finished or not, best first, without touching the folder.

    A folder may hold more than the run: candidates of a longer one, and what other cascades said. A finished run's
    report says which of them are its own. Of a run that is not finished a cascade counts if there was only one.
    """
    rows = {row["index"]: row for row in read_lines(folder / "candidates.jsonl")}
    cascaded = read_lines(folder / "cascade.jsonl")
    cascade = {row["index"]: row for row in cascaded} if len({row["reward"] for row in cascaded}) == 1 else {}
    if report.get("finished"):
        ranking = {row["index"]: row for row in report["ranking"]}
        rows = {index: row for index, row in rows.items() if index in ranking}
        cascade = {index: _said_again(row, cascaded) for index, row in ranking.items()}
    candidates: dict[int, Candidate] = {}
    for index, row in rows.items():
        again = cascade.get(index, {})
        numbers = {key: as_float(row[key]) for key in ("score", "std")}
        why = Explanation.from_json(again.get("explanation") or row.get("explanation"))
        file = None if row["file"] is None else folder / row["file"]
        candidates[index] = Candidate(
            **(row | numbers | {"file": file, "explanation": why}), cascade_score=as_float(again.get("score")),
            cascade_error=again.get("error"),
        )  # fmt: skip
    by_pixels = {c.pixels: c for c in candidates.values() if not math.isnan(c.cascade_score)}
    same = [
        replace(c, cascade_score=by_pixels[c.pixels].cascade_score) if c.pixels in by_pixels else c
        for _, c in sorted(candidates.items())
    ]
    return sorted(ranked(same), key=lambda c: (c.rank is None, c.rank or 0, c.index))


def _said_again(ranked_row: dict[str, Any], cascaded: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the cascade said of a candidate in the report, with its words where they are recorded."""
    index, score, error = (ranked_row[key] for key in ("index", "cascade_score", "cascade_error"))
    same = [row for row in cascaded if (row["index"], row["score"], row["error"]) == (index, score, error)]
    words = [row["explanation"] for row in same]
    return {"score": score, "error": error, "explanation": words[-1] if words else None}


def _input(folder: Path) -> list[Card]:
    file = folder / "input.png"
    if not file.exists():
        return []
    with Image.open(file) as image:
        shown = image.convert("RGB")
    return [Card(image=shown, title="input", lines=[f"{shown.width} x {shown.height} px"])]


def _cards(order: Sequence[Candidate], marks: Sequence[str], words: SheetWords, most: int) -> list[Card]:
    cards = []
    for mark, c in list(zip(marks, order, strict=True))[:most]:
        second = f", {words.second} {_number(c.cascade_score, words)}" if not math.isnan(c.cascade_score) else ""
        spread = f" ± {_number(c.std, words)}" if math.isfinite(c.std) else ""
        numbers = f"{words.measure} {_number(c.score, words)}{spread}{second}" if c.valid else c.error or "not rated"
        why = "" if c.explanation is None else c.explanation.rationale
        cards.append(Card(
            image=c.image if c.has_image() else None, title=f"{mark} candidate {c.index}: {c.restorer}",
            lines=[numbers, why], is_good=mark == "#1" or mark.startswith("#1-"),
        ))  # fmt: skip
    return cards


def _pair(folder: Path, row: dict[str, Any]) -> str:
    cards = _input(folder / RUNS / row["image"])
    with Image.open(folder / row["chosen"]) as image:
        cards.append(Card(
            image=image.convert("RGB"), title=f"candidate {row['candidate']}: {row['restorer']}",
            lines=[f"score {_plain(row['score'])}, bicubic {_plain(row['bicubic'])}"], is_good=True,
        ))  # fmt: skip
    return group(cards)


def _facts(report: dict[str, Any]) -> list[tuple[str, object]]:
    settings = report["settings"]
    return [
        ("reward", settings["reward"]["name"]), ("seed", settings["seed"]), ("strict", settings["strict"]),
        ("restorers", ", ".join(source["restorer"]["name"] for source in settings["sources"])),
        ("seconds", report.get("seconds")), ("finished", report.get("finished", False)),
        *((key, report.get(key)) for key in ("command", "versions", "code", "platform")),
    ]  # fmt: skip


def _number(value: float, words: SheetWords) -> str:
    return "-" if math.isnan(value) else f"{value:.{words.digits}f}"


def _plain(value: float | None) -> str:
    number = as_float(value)
    return "-" if math.isnan(number) else f"{number:.4g}"
