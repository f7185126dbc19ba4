"""One image measured: its rating, what it was read from, for some images repetition and robustness, and its JSON line.

A kill at any moment loses at most the image in work. Each process appends to a file of its own. A line is one `write`
to a file that is opened for appending, then flushed to disk. A line that a kill cut short has no newline at its end:
readers skip it, and its owner removes it before it continues.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from train_iqa.data import LabelledImage
from train_iqa.evaluation.robustness import perturbed_ratings
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.model.measuring import Measured, measure
from zoomiqa_reward.model.ratings import Assessment
from zoomiqa_reward.runs.json_lines import append_line, cut_half_line, plain

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the model is asked."""

    mode: str = "direct"
    """`direct` or `reason`."""
    strict: bool = True
    """Each image in its own forward pass, bit-equal every time; False: 8 together."""
    question: str | None = None
    """None: the checkpoint's own."""
    calls: int = 3
    """Of each probed image: so many deterministic ratings, and so many sampled answers."""
    is_sampling: bool = True
    """Whether probed images also get sampled answers in words: slow, but what people compare with."""
    seed: int = 0
    """Of the sampled answers; call k uses seed + k."""


def choose_probe_ids(images: Sequence[LabelledImage], count: int, seed: int = 0) -> set[str]:
    """Return the ids of `count` images (or all), drawn by a hash of seed and id: the same in any order and process."""
    ranked = sorted(images, key=lambda image: hashlib.sha256(f"{seed}:{image.id}".encode()).digest())
    return {image.id for image in ranked[:count]}


def measure_images(
    iqa: "ZoomIQA | RemoteZoomIQA", images: Sequence[LabelledImage], probes: set[tuple[str, str]], asking: Asking
) -> Iterator[dict[str, Any]]:
    """Yield one line per image, in order, each as soon as it is there.

    `probes` are the (data set, id) that get the probes. What cannot be measured has `valid` false, a reason, and a NaN
    rating; it never stops the others.
    """
    files = [str(image.path) for image in images]
    results = measure(iqa, files, mode=asking.mode, strict=asking.strict, question=asking.question)
    started = time.perf_counter()
    for image, measured in zip(images, results, strict=True):
        line = _line(image, measured)
        if (image.dataset, image.id) in probes:
            line["probe"] = _probe(iqa, image, asking)
        yield line | {"seconds": round(time.perf_counter() - started, 4)}
        started = time.perf_counter()


def _line(image: LabelledImage, measured: Measured) -> dict[str, Any]:
    record, assessment = measured.record, measured.assessment
    return {
        "dataset": image.dataset,
        "id": image.id,
        "mos": image.mos,
        "rating": record.rating,
        "std": record.std,
        "valid": record.valid,
        "error": record.error,
        "warning": None if assessment is None else assessment.warning,
        "rounds": record.rounds,
        "bbox": None if assessment is None else _named_box(assessment),
        "ratings_by_round": [] if assessment is None else [turn.rating for turn in assessment.turns],
    }


def _named_box(assessment: Assessment) -> list[float] | None:
    """Return the box of round 1 as shares of the sides, None where it names none."""
    bbox = assessment.turns[0].bbox if assessment.turns else None
    return None if bbox is None else list(bbox)


def _probe(iqa: "ZoomIQA | RemoteZoomIQA", image: LabelledImage, asking: Asking) -> dict[str, Any]:
    pixels = load_image(image.path)

    def rate(item: Tensor) -> float:
        return _rating(lambda: iqa.rate([item], mode=asking.mode, strict=True, question=asking.question).mean[0])

    def sample(call: int) -> float:
        temperature = iqa.protocol.decoding.temperature or 1.0
        seed = asking.seed + call
        return _rating(
            lambda: iqa.assess([pixels], asking.question, temperature=temperature, seed=seed, strict=True)[0].rating
        )

    return {
        "repeated": [rate(pixels) for _ in range(asking.calls)],
        "sampled": [sample(call) for call in range(asking.calls)] if asking.is_sampling else [],
        "perturbed": perturbed_ratings(rate, pixels),
    }


def _rating(measure_one: Any) -> float:
    """Return the measured rating, NaN where the model refuses the image or runs out of memory with it."""
    try:
        return float(measure_one())
    except (ValueError, torch.OutOfMemoryError):
        return float("nan")


Key = tuple[str, str]
"""Data set, image id."""
PATTERN = "ratings-*.jsonl"


def read_lines(folder: Path) -> dict[Key, dict[str, Any]]:
    """Return the finished lines of all processes, by image; where two measured one, the first file's line stands.

    NaN is `null` in the files and None here. Raises ValueError for a finished line that is no JSON object.
    """
    results: dict[Key, dict[str, Any]] = {}
    for file in sorted(folder.glob(PATTERN)):
        data = file.read_bytes()
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
            try:
                fields = json.loads(line)
                key = (fields["dataset"], fields["id"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}:{number}: damaged ({error}); delete this line to measure it again") from error
            results.setdefault(key, fields)
    return results


class LineWriter:
    """Appends lines to the file of one process; a line that a kill cut short is removed first."""

    def __init__(self, folder: Path, process: int) -> None:
        self.file = folder / f"ratings-{process:04d}.jsonl"
        cut_half_line(self.file)

    def write(self, fields: dict[str, Any]) -> None:
        """Append one line; NaN and infinity become null. It is on the disk when this returns."""
        append_line(self.file, plain(fields))
