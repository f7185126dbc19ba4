"""The configuration of an evaluation, the command line that makes one, and the provenance of its numbers."""

import argparse
import datetime
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from train_iqa.data import FAMILIES, DatasetSource
from train_iqa.data.checking import ACCEPTABLE, CHECKS
from train_iqa.data.registry import parse_sources
from train_iqa.data.splits import PARTS
from train_iqa.evaluation.measuring import Asking
from zoomiqa_reward.model.decoding import MODES
from zoomiqa_reward.model.fingerprint import fingerprint_parts
from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.runs.program import Parser
from zoomiqa_reward.runs.provenance import provenance


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured, and where the results go."""

    sources: tuple[DatasetSource, ...]
    out: Path
    """Run folder; an unfinished run in it is continued."""
    part: str = "standard"
    """Of each data set, see `train_iqa.data.select`."""
    asking: Asking = field(default_factory=Asking)
    num_probes: int = 100
    """Images of each data set that are also rated repeatedly, by sampling, and after imperceptible changes."""
    draws: int = 1000
    """Bootstrap resamples; 0: no intervals."""
    seed: int = 0
    checks: str = "full"
    """Of the files before the start, see `datasets.load_datasets`."""
    accept: tuple[str, ...] = ()
    """Kinds of problem for which an image is left out."""
    compare: Path | None = None
    """Run folder of another evaluation, to be compared with."""

    def __post_init__(self) -> None:
        if self.seed < 0:  # the intervals, which come last, could not be drawn
            raise ValueError(f"seed={self.seed}: must be 0 or more")
        if self.num_probes < 0 or self.draws < 0 or self.asking.calls < 1 or self.asking.mode not in MODES:
            raise ValueError(
                f"num_probes={self.num_probes}, draws={self.draws}, calls={self.asking.calls}, "
                f"mode={self.asking.mode!r}: counts must not be negative, calls at least 1, mode one of {MODES}"
            )


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's options."""
    parser = Parser(prog="python -m train_iqa.evaluate", description="Evaluate a quality model against people.")
    add = parser.add_argument
    add("--model", default="nano", help="embedded name, folder or hub id")
    add("--adapter", help="LoRA adapter: folder or hub id")
    add("--protocol", help="protocol file, for a model that brings none")
    add("--device", help="cpu, cuda, cuda:1; default: the best available")
    add("--dtype", help="float32, bfloat16 or float16")
    add("--data", action="append", required=True, metavar="FAMILY=PATH", help=f"families: {', '.join(FAMILIES)}")
    add("--name", action="append", default=[], help="what reports call the data sets, in the order of --data")
    add("--image-root", type=Path, help="folder that paths of json and csv lists are relative to")
    add("--scale", metavar="WORST:BEST", help="raw labels of json and csv lists that become 1 and 5")
    add("--part", choices=PARTS, default="standard", help="standard: official test part, else all")
    add("--checks", choices=CHECKS, default="full", help="full: every file is decoded and hashed first")
    add("--accept", choices=ACCEPTABLE, action="append", default=[], help="leave such images out instead of stopping")
    add(
        "--mode", choices=MODES, default="direct", help="direct: the rating's distribution; reason: the answer in words"
    )
    add("--question", help="asked instead of the checkpoint's own question")
    add("--batched", action="store_true", help="several images in one forward pass: faster, equal to about 1e-4")
    add("--probes", type=int, default=100, help="images of each set for repeats, sampling, robustness (default 100)")
    add("--calls", type=int, default=3, help="ratings of each probed image (default 3)")
    add("--no-sampling", action="store_true", help="no sampled answers of the probed images")
    add("--draws", type=int, default=1000, help="bootstrap resamples (default 1000)")
    add("--seed", type=int, default=0, help="of everything random")
    add("--compare", type=Path, help="OUT of another evaluation, to be compared with")
    add("--out", type=Path, required=True, help="run folder; an unfinished run in it is continued")
    return parser


def config_of(args: argparse.Namespace) -> EvaluateConfig:
    """Return the configuration of parsed arguments. Raises ValueError."""
    asking = Asking(
        mode=args.mode, strict=not args.batched, question=args.question, calls=args.calls,
        is_sampling=not args.no_sampling, seed=args.seed,
    )  # fmt: skip
    return EvaluateConfig(
        sources=parse_sources(args.data, args.name, args.image_root, args.scale), out=args.out, part=args.part,
        asking=asking, num_probes=args.probes, draws=args.draws,
        seed=args.seed, checks=args.checks, accept=tuple(args.accept), compare=args.compare,
    )  # fmt: skip


def evaluation_provenance(iqa: ZoomIQA, arguments: list[str]) -> dict[str, Any]:
    """Return command, time, code version, libraries, machine and model of a run."""
    device = iqa.device
    return provenance("scipy", "scikit-learn") | {
        "command": shlex.join(["python", "-m", "train_iqa.evaluate", *arguments]),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "model": iqa.name,
        "model_fingerprint": iqa.fingerprint,
        "model_parts": {name: part for name, part in fingerprint_parts(iqa.checkpoint).items() if name != "versions"},
        "label_metrics": list(iqa.protocol.label_metrics),
    }
