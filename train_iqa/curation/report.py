"""What a curation writes: the rows for SFT, and the report.

The rows are `conversations.jsonl` and the images beside it. They are made from all outcomes each time, in the order of
the data sets and in one step, so no row is there twice or half.

The report has images, rejections by filter and reason with examples, dropped sentences, tokens and money. It is counted
from the two journals, so an interrupted run has the same report as one without interruption.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from train_iqa.curation.config import CurateConfig
from train_iqa.curation.curator import FILTERS
from train_iqa.curation.endpoint import Endpoint
from train_iqa.curation.thresholds import HintThresholds
from train_iqa.data import LabelledImage
from zoomiqa_reward.runs.digest import digest
from zoomiqa_reward.runs.outputs import copy_file, part_folder, write_text

ROWS = "conversations.jsonl"


def write_rows(
    folder: Path, outcomes: Sequence[Mapping[str, Any]], images: Mapping[tuple[str, str], LabelledImage]
) -> int:
    """Write a row for each kept outcome and copy its image, byte for byte; return how many there are.

    No row: the file is left out, since SFT refuses an empty one.
    """
    part_folder(folder / "images")
    lines = []
    for outcome in outcomes:
        if outcome["status"] != "kept":
            continue
        image = images[outcome["dataset"], outcome["id"]]
        name = f"images/{image_name(image)}"
        _copy(image.path, folder / name)
        row = {"image": name, "rating": outcome["rating"], "rounds": outcome["rounds"]}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    target = folder / ROWS
    if not lines:
        target.unlink(missing_ok=True)
        return 0
    write_text(target, "".join(lines))
    return len(lines)


def image_name(image: LabelledImage) -> str:
    """Return a file name that no other image of any data set has."""
    code = digest(f"{image.dataset}\0{image.id}", size=10)
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in PurePosixPath(image.id).stem)
    return f"{stem[:60]}-{code}{image.path.suffix.lower()}"


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        copy_file(source, target)


EXAMPLES = 3
"""Of each reason."""


def build_report(
    config: CurateConfig,
    outcomes: Sequence[Mapping[str, Any]],
    calls: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, str]],
    thresholds: HintThresholds,
    seconds: float,
    images: int,
) -> dict[str, Any]:
    """Return the report; `seconds` are those of this process alone."""
    kept = [outcome for outcome in outcomes if outcome["status"] == "kept"]
    return {
        "judge": "rules" if config.judge is None else f"model {config.judge.model}",
        "teacher": config.teacher.model,
        "images": images,
        "kept": len(kept),
        "rejected": len(outcomes) - len(kept),
        "failed": len(failures),
        "open": images - len(outcomes),
        "rows": {
            "round1": len(kept),
            "round2": sum(len(outcome["rounds"]) == 2 for outcome in kept),
            "zooming_without_round2": sum(outcome["is_zooming"] and len(outcome["rounds"]) == 1 for outcome in kept),
        },
        "rejections": _rejections(outcomes),
        "dropped_sentences": _count_dropped(outcomes),
        "filters": {
            "consistency": "off" if config.consistency is None else "on",
            "reliance": "off" if config.reliance is None else f"rounds {list(config.reliance.rounds)}",
        },
        "hint_thresholds": dict(thresholds.provenance),
        "cost": {
            role: cost_of(endpoint, [call for call in calls if call["role"] == role])
            for role, endpoint in (("teacher", config.teacher), ("judge", config.judge))
            if endpoint is not None
        },
        "failures": list(failures)[:20],
        "seconds": round(seconds, 1),
    }


def cost_of(endpoint: Endpoint, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return calls, tokens and money of one role; `money` is None where a price or a token count is unknown."""
    counted = [call for call in calls if call["tokens_in"] is not None and call["tokens_out"] is not None]
    tokens_in, tokens_out = (sum(call[key] for call in counted) for key in ("tokens_in", "tokens_out"))
    is_known = endpoint.price_in is not None and endpoint.price_out is not None and len(counted) == len(calls)
    money = (tokens_in * (endpoint.price_in or 0) + tokens_out * (endpoint.price_out or 0)) / 1e6
    apart = [call for call in counted if "/blind" in call["call"] or "/seen" in call["call"]]
    return {
        "calls": len(calls),
        "calls_without_token_counts": len(calls) - len(counted),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "of_these_continuations": {
            "calls": len(apart), "tokens": sum(call["tokens_in"] + call["tokens_out"] for call in apart),
        },
        "money": round(money, 6) if is_known else None,
        "seconds_of_waiting": round(sum(call["seconds"] for call in calls), 1),
    }  # fmt: skip


def _rejections(outcomes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    counts: dict[str, Any] = {name: {"answers": 0, "reasons": {}} for name in FILTERS}
    for outcome in outcomes:
        for rejection in outcome["rejections"]:
            group = counts[rejection["filter"]]
            group["answers"] += 1
            reason = group["reasons"].setdefault(rejection["reason"], {"answers": 0, "examples": []})
            reason["answers"] += 1
            if len(reason["examples"]) < EXAMPLES:
                reason["examples"].append({key: rejection[key] for key in ("call", "detail", "text")})
    return counts


def _count_dropped(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    every = [(outcome, sentence) for outcome in outcomes for sentence in outcome["dropped"]]
    return {
        "sentences": len(every),
        "images": len({(outcome["dataset"], outcome["id"]) for outcome, _ in every}),
        "why": dict(Counter(sentence["why"] for _, sentence in every).most_common(20)),
        "examples": [
            {"image": f"{outcome['dataset']}/{outcome['id']}", **sentence} for outcome, sentence in every[:EXAMPLES]
        ],
    }
