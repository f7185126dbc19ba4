"""`python -m train_iqa.curate`: rationales for images with opinion scores, written by a teacher and filtered.

    python -m train_iqa.curate --data koniq=DIR --teacher MODEL --teacher-url URL --out runs/curate
    python -m train_iqa.sft --recipe qwen2_5_vl_7b --data runs/curate/conversations.jsonl --out runs/sft

Any OpenAI-compatible endpoint can be the teacher, and another one the judge; without a judge, rules decide. The same
command continues after a kill. Exit code 0: done; 1: failed; 2: an endpoint failed some images, run it again.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from train_iqa.curation.config import AUTO, CurateConfig
from train_iqa.curation.endpoint import Endpoint
from train_iqa.curation.loop import curate
from train_iqa.data import FAMILIES
from train_iqa.data.checking import ACCEPTABLE, CHECKS
from train_iqa.data.registry import parse_pair, parse_sources
from train_iqa.data.splits import PARTS
from train_iqa.training.config import read_config
from zoomiqa_reward.runs.program import Parser, run_program
from zoomiqa_reward.runs.progress import say


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's options."""
    parser = Parser(prog="python -m train_iqa.curate", description="Write and filter rationales for rated images.")
    add = parser.add_argument
    add("config", nargs="?", type=Path, help="YAML or JSON file with the fields of CurateConfig; options replace them")
    add("--data", action="append", default=[], metavar="FAMILY=PATH", help=f"families: {', '.join(FAMILIES)}")
    add("--name", action="append", default=[], help="what reports call the data sets, in the order of --data")
    add("--image-root", type=Path, help="folder that paths of json and csv lists are relative to")
    add("--scale", metavar="WORST:BEST", help="raw labels of json and csv lists that become 1 and 5")
    add("--part", choices=(AUTO, *PARTS), help="auto: the official training part, else all")
    add("--limit", type=int, help="images of each data set")
    for role in ("teacher", "judge"):
        add(
            f"--{role}",
            metavar="MODEL",
            help="model that writes" if role == "teacher" else "model that judges; default: rules",
        )
        add(f"--{role}-url", metavar="URL", help="base URL; default: OPENAI_BASE_URL, else OpenAI")
        add(f"--{role}-key-variable", metavar="NAME", help="environment variable with the key (OPENAI_API_KEY)")
        add(f"--{role}-temperature", type=float, help="of its sampling")
        add(f"--{role}-max-tokens", type=int, help="longest answer")
        add(f"--{role}-prices", metavar="IN:OUT", help="money for a million tokens of prompts and of answers")
    add("--logprobs", type=int, metavar="K", help="ask the teacher for the K likeliest tokens, for the entropy")
    add("--protocol", type=Path, help="protocol file of a teacher that is itself a Zoom-IQA model")
    add("--attempts", type=int, help="answers asked for in a round until one is kept (default 3)")
    add("--rounds", type=int, choices=(1, 2), help="1: no closer look at a region")
    add("--rating-tolerance", type=float, help="largest distance of a rating from people's score (default 0.35)")
    add("--no-reliance", action="store_true", help="do not test whether an answer needs the image")
    add("--no-consistency", action="store_true", help="do not compare the words with measured hints")
    add("--thresholds", type=Path, help="file of hint thresholds, see train_iqa.curation.calibrate")
    add("--max-pixels", type=int, help="larger images are reduced for the endpoints")
    add("--concurrency", type=int, help="images that are asked about at once (default 8)")
    add("--checks", choices=CHECKS, help="full: every file is decoded and hashed first")
    add("--accept", choices=ACCEPTABLE, action="append", help="leave such images out instead of stopping")
    add("--seed", type=int, help="of everything random")
    add("--out", type=Path, help="run folder; an unfinished run in it is continued")
    return parser


_PLAIN = (
    "part", "limit", "protocol", "attempts", "rounds", "rating_tolerance", "thresholds", "max_pixels", "concurrency",
    "checks", "seed", "out",
)  # fmt: skip


def config_of(args: argparse.Namespace) -> CurateConfig:
    """Return the configuration of parsed arguments. Raises ValueError."""
    base = None if args.config is None else read_config(CurateConfig, args.config)
    changes: dict[str, Any] = {name: getattr(args, name) for name in _PLAIN if getattr(args, name) is not None}
    if args.accept:
        changes["accept"] = tuple(args.accept)
    if args.data:
        changes["sources"] = parse_sources(args.data, args.name, args.image_root, args.scale)
    for role in ("teacher", "judge"):
        endpoint = _endpoint(args, role, None if base is None else getattr(base, role))
        if endpoint is not None:
            changes[role] = endpoint
    changes |= {"reliance": None} if args.no_reliance else {}
    changes |= {"consistency": None} if args.no_consistency else {}
    if base is not None:
        return replace(base, **changes)
    if missing := [f"--{option}" for option, name in (("data", "sources"), ("teacher", "teacher"), ("out", "out"))
                   if name not in changes]:  # fmt: skip
        raise ValueError(f"{', '.join(missing)}: needed, or a configuration file with it")
    return CurateConfig(**changes)


def _endpoint(args: argparse.Namespace, role: str, base: Endpoint | None) -> Endpoint | None:
    given = {
        "model": getattr(args, role), "base_url": getattr(args, f"{role}_url"),
        "key_variable": getattr(args, f"{role}_key_variable"), "temperature": getattr(args, f"{role}_temperature"),
        "max_tokens": getattr(args, f"{role}_max_tokens"),
    }  # fmt: skip
    changes = {name: value for name, value in given.items() if value is not None}
    if role == "teacher" and args.logprobs is not None:
        changes["top_logprobs"] = args.logprobs
    if prices := getattr(args, f"{role}_prices"):
        changes["price_in"], changes["price_out"] = parse_pair(prices, f"--{role}-prices", "2.5:10")
    if base is not None:
        return replace(base, **changes)
    if not changes:
        return None
    if "model" not in changes:
        raise ValueError(f"--{role}-...: says how to ask, but --{role} MODEL is missing")
    if role == "judge":  # a judge decides, it does not invent
        changes.setdefault("temperature", 0.0)
    return Endpoint(**changes)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0, 1 (failed), or 2 (an endpoint failed some images)."""
    args = build_parser().parse_args(argv)
    return run_program("train_iqa.curate", lambda: _work(args))


def _work(args: argparse.Namespace) -> int:
    config = config_of(args)
    report = curate(config)
    shown = ("judge", "images", "kept", "rejected", "failed", "rows", "cost")
    print(json.dumps({name: report[name] for name in shown}))
    say(f"report: {config.out / 'report.json'}")
    return 2 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
