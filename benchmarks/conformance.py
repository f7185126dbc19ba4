"""Differences between this package and recorded decisions of the official Zoom-IQA evaluator.

    python benchmarks/conformance.py --vectors official_protocol.json

The file of recorded vectors holds crops, answers, scores, correlations, message shapes, image labels and generation
constants; it is not part of this project. Prints the differences of each section and their sum; exit code 1 if any.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from train_iqa.evaluation.correlations import isotonic_correlations
from zoomiqa_reward.model.turns import Prompted, round1, round2
from zoomiqa_reward.protocol import (
    AnswerError,
    Decoding,
    Prompt,
    Protocol,
    rating_to_score,
    read_rating,
    read_route,
    zoom_box,
    zoomed_size,
)
from zoomiqa_reward.protocol.official import decoding_of

CORRELATION_TOLERANCE = 1e-6  # the recorded fit ran in another precision: differences of about 1e-8
CORE = ("crops", "answers", "scores")  # the sections whose sum is quoted

PROTOCOL = Protocol(
    name="shape", round1=Prompt(text="{question}"), round2=Prompt(text="Look closer."), questions=("How good?",),
    direct_prefix="",
)  # fmt: skip


def crop(row: dict[str, Any]) -> dict[str, Any]:
    box, central = zoom_box(row["bbox_2d"], row["width"], row["height"])
    size = zoomed_size(box, row["width"], row["height"], central)
    zoomed = None if row["zoomed_size"] is None else list(size)  # large images' zooms were not recorded
    return {"pixel_bbox": list(box), "central_fallback": central, "zoomed_size": zoomed}


def answer(row: dict[str, Any]) -> dict[str, Any]:
    ours: dict[str, Any] = {}
    try:
        ours["rating"] = read_rating(row["text"])
    except AnswerError as error:
        ours |= {"rating": None, "rating_error": _reason(error, row.get("rating_error"))}
    try:
        ours |= {"routable": True, "requests_crop": read_route(row["text"]).zoom}
    except AnswerError as error:
        ours |= {"routable": False, "route_error": _reason(error, row.get("route_error"))}
    return ours


def score(row: dict[str, Any]) -> dict[str, Any]:
    return {"score": rating_to_score(row["rating"])}


def correlation(row: dict[str, Any]) -> dict[str, Any]:
    fit = isotonic_correlations(row["predictions"], row["targets"])
    ours = {"fit_plcc": fit.plcc, "fit_srcc": fit.srcc}
    return {key: row[key] if abs(value - row[key]) < CORRELATION_TOLERANCE else value for key, value in ours.items()}


# section -> our outputs for a row, and which of the row's keys are inputs
SECTIONS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], set[str]]] = {
    "crops": (crop, {"bbox_2d", "width", "height"}),
    "answers": (answer, {"text"}),
    "scores": (score, {"rating"}),
    "correlations": (correlation, {"predictions", "targets"}),
}


def constants(vectors: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, recorded value and ours of everything that is not a row of inputs and outputs."""
    image = torch.zeros(3, 28, 28)
    yield "round1_messages", vectors["round1_messages"], _shape(round1(PROTOCOL, image))
    yield "round2_messages", vectors["round2_messages"], _shape(round2(PROTOCOL, image, image, "answer"))
    yield "labels", vectors["labels"], {"round2_image_labels": list(PROTOCOL.image_labels)}
    recorded = vectors["generation"]
    ours, default = decoding_of(recorded), Decoding()
    names = ("temperature", "top_p", "top_k", "max_new_tokens")
    yield "generation as imported", {n: recorded[n] for n in names}, {n: getattr(ours, n) for n in names}
    # Greedy is this package's own choice, so the default temperature is not compared.
    yield "generation defaults", {n: recorded[n] for n in names[1:]}, {n: getattr(default, n) for n in names[1:]}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, required=True, help="JSON file of recorded vectors")
    vectors = json.loads(parser.parse_args(argv).vectors.read_text(encoding="utf-8"))
    counts: dict[str, int] = {}
    for section, (compute, inputs) in SECTIONS.items():
        counts[section] = 0
        for row in vectors[section]:
            recorded, ours = {key: value for key, value in row.items() if key not in inputs}, compute(row)
            if recorded != ours:  # also where one side holds a key that the other does not
                counts[section] += 1
                print(f"{section}: {row!r:.300}\n    ours: {ours}")
        print(f"{section}: {counts[section]} differences in {len(vectors[section])}")
    for name, recorded, ours in constants(vectors):
        counts[name] = int(recorded != ours)
        print(f"{name}: {'the same' if recorded == ours else f'recorded {recorded}, ours {ours}'}")
    quoted = sum(counts[section] for section in CORE)
    print(f"{quoted} differences in {sum(len(vectors[section]) for section in CORE)} vectors ({', '.join(CORE)})")
    return int(any(counts.values()))


def _reason(error: AnswerError, recorded: str | None) -> str:
    """Return the recorded reason where our message starts with it (ours goes on with what was found)."""
    return recorded if recorded is not None and str(error).startswith(recorded) else str(error)


def _shape(prompted: Prompted) -> list[dict[str, Any]]:
    return [
        {"role": message["role"], "content": [part["type"] for part in message["content"]]}
        for message in prompted.messages
    ]


if __name__ == "__main__":
    sys.exit(main())
