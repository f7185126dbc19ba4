"""nano's people stage against images and scenes that it never saw: cross-validation, and a family left out.

python benchmarks/people.py run --fold 0/3 --people DIR --photos DIR [DIR ...] --start CHECKPOINT [--seconds 800]
python benchmarks/people.py run --without srij --people DIR --photos DIR --start CHECKPOINT
python benchmarks/people.py rate --fold 0/3 --people DIR
python benchmarks/people.py table [--out runs/people] --people DIR --start CHECKPOINT

`run` trains the stage from `--start`, a checkpoint that has seen no person's score, on all images but those held out
(a scene is in one fold; TID2013's part has one reference, so its kinds of distortion make its folds), and rates the
held-out ones with the default views. Words are rehearsed as far as `--words` says: they take much of the time.
`rate` rates the held-out images of a finished run again. `table` puts the folds together, with NIQE and the start's
own ratings of the same images.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import bootstrap, srcc, write_result
from tqdm import tqdm

from restoration.metrics import niqe
from train_iqa.nano.people import Opinion, PeopleConfig, folds, read_opinions
from train_iqa.nano.train import NanoConfig, make_nano
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import load_image
from zoomiqa_reward.runs.json_lines import write_json

SCENES = "srij"
"""The set that has scenes of many images."""
ONE_REFERENCE = "tid2013"
STORES: tuple[dict[str, int], ...] = (
    {"workers": 1, "store_small": 1200, "store_large": 200, "population": 400},
    {"workers": 2, "store_small": 8000, "store_large": 2000, "population": 1500},
)
"""Of a run on a CPU, and of one on a GPU."""


def fold_of(opinions: list[Opinion], count: int) -> list[int]:
    """Return each image's fold; of the set with one reference, its kind of distortion (`iRR_KK_L`) decides."""
    found = folds(opinions, count)
    return [
        int(one.image.stem.split("_")[1]) % count if one.set == ONE_REFERENCE else fold
        for one, fold in zip(opinions, found, strict=True)
    ]


def rate(model: str | Path, opinions: list[Opinion], device: str) -> list[float]:
    """Return the ratings of the images."""
    iqa = ZoomIQA.from_pretrained(str(model), device=device, dtype="float32")
    return [float(iqa.rate([one.image], strict=True).mean[0]) for one in tqdm(opinions, desc=str(model))]


def held_out(args: argparse.Namespace, opinions: list[Opinion]) -> tuple[str, list[int]]:
    """Return a run's name and the images that it does not learn from."""
    if args.fold:
        number, count = map(int, args.fold.split("/"))
        return f"fold{number}of{count}", [k for k, fold in enumerate(fold_of(opinions, count)) if fold == number]
    return f"without_{args.without}", [k for k, one in enumerate(opinions) if one.set == args.without]


def run(args: argparse.Namespace) -> None:
    """Train on all but the held-out images, and write their ratings."""
    torch.set_num_threads(args.threads)
    opinions = read_opinions(args.people)
    name, held = held_out(args, opinions)
    taught = tuple(one for k, one in enumerate(opinions) if k not in set(held))
    config = NanoConfig(
        photos=tuple(args.photos), out=args.out / name, people=args.people, start=args.start, seconds=args.seconds,
        pairs=args.pairs, hold_language=args.hold_language, seed=args.seed, device=args.device, drawn=args.drawn,
        opinions=PeopleConfig(moved_share=args.moved, learning_rate=args.learning_rate), **STORES[args.device != "cpu"],
    ).scaled(0.1 if args.device == "cpu" else 1)  # fmt: skip
    words = {"first": args.words, "local": args.words, "second": args.second}
    if args.ladders is not None:
        words["ladders"] = args.ladders
    make_nano(replace(config, opinions=replace(config.opinions, **words)), opinions=taught)
    rate_held_out(args)


def rate_held_out(args: argparse.Namespace) -> None:
    """Write the ratings of a finished run's held-out images."""
    torch.set_num_threads(args.threads)
    opinions = read_opinions(args.people)
    name, held = held_out(args, opinions)
    folder = args.out / name
    log = json.loads((folder / "people" / "log.jsonl").read_text().splitlines()[-1])
    found = {
        "held": held,
        "ratings": rate(folder / "checkpoint", [opinions[k] for k in held], args.device),
        "steps": log["step"],
        "seconds": round(log["seconds"]),
        "taught": len(opinions) - len(held),
        "folds": int(args.fold.split("/")[1]) if args.fold else None,
    }
    write_json(args.out / f"{name}.json", found, overwrite=True)


def figures(ratings: np.ndarray, opinions: list[Opinion], name: str) -> dict[str, Any]:
    """Return SRCC overall, and where there are scenes within a scene, with 95 % intervals over scenes or images."""
    mos = np.array([one.mos for one in opinions])
    found: dict[str, Any] = {"images": len(mos), "srcc": srcc(ratings, mos)}
    if name != SCENES:
        found["srcc_95"] = bootstrap(lambda k: srcc(ratings[k], mos[k]), len(mos))
        return found
    scenes = sorted({one.scene for one in opinions})
    rows = [np.array([k for k, one in enumerate(opinions) if one.scene == scene]) for scene in scenes]
    within = np.array([srcc(ratings[k], mos[k]) for k in rows])
    found |= {"scenes": len(scenes), "within": float(within.mean())}
    found["within_95"] = bootstrap(lambda k: float(within[k].mean()), len(scenes))

    def overall(chosen: np.ndarray) -> float:
        index = np.concatenate([rows[k] for k in chosen])
        return srcc(ratings[index], mos[index])

    found["srcc_95"] = bootstrap(overall, len(scenes), draws=200)
    return found


def baselines(args: argparse.Namespace, opinions: list[Opinion], known: np.ndarray) -> dict[str, np.ndarray]:
    """Return the ratings of NIQE and of the start for the `known` images, NaN for the others; measured once."""
    cache = args.out / "baselines.json"
    if not cache.exists():
        chosen = [one for one, is_known in zip(opinions, known, strict=True) if is_known]
        natural = [-niqe(load_image(one.image)) for one in tqdm(chosen, desc="NIQE")]
        write_json(
            cache, {"rated": known.tolist(), "niqe": natural, "start": rate(args.start, chosen, "cpu")}, overwrite=True
        )
    cached = json.loads(cache.read_text())
    if cached.pop("rated") != known.tolist():
        raise SystemExit(f"{cache} is of other images: remove it, since more was run")
    found = {name: np.full(len(opinions), np.nan) for name in cached}
    for name, values in cached.items():
        found[name][known] = values
    return found


def table(args: argparse.Namespace) -> None:
    """Put the runs together and write the result: of folds, of families that were left out, or of both."""
    opinions = read_opinions(args.people)
    parts = [json.loads(file.read_text()) for file in sorted(args.out.glob("fold*.json"))]
    left_out = {file.stem.removeprefix("without_"): json.loads(file.read_text())
                for file in sorted(args.out.glob("without_*.json"))}  # fmt: skip
    if not parts and not left_out:
        raise SystemExit(f"{args.out} holds no result: run the folds, or leave a set out, first")
    crossed = np.full(len(opinions), np.nan)
    for part in parts:
        crossed[part["held"]] = part["ratings"]
    known = np.isfinite(crossed)
    for part in left_out.values():
        known[part["held"]] = True
    print(f"{int(known.sum())} of {len(known)} images were held out")
    ratings = baselines(args, opinions, known)
    if parts:
        ratings["crossed"] = crossed
    result: dict[str, Any] = {
        "folds_in_all": parts[0]["folds"] if parts else 0,
        "folds": [{key: part[key] for key in ("steps", "seconds", "taught")} for part in parts],
        "sets": {},
    }
    for name in sorted({one.set for one, is_known in zip(opinions, known, strict=True) if is_known}):
        result["sets"][name] = {}
        for who, values in ratings.items():
            index = [k for k, one in enumerate(opinions) if one.set == name and np.isfinite(values[k])]
            if index:
                result["sets"][name][who] = figures(values[index], [opinions[k] for k in index], name)
        if part := left_out.get(name):
            held = [opinions[k] for k in part["held"]]
            found = figures(np.array(part["ratings"]), held, name)
            result["sets"][name]["family_left_out"] = found | {key: part[key] for key in ("steps", "seconds", "taught")}
    write_result("people", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one, again, all_ = (commands.add_parser(name) for name in ("run", "rate", "table"))
    one.set_defaults(do=run)
    again.set_defaults(do=rate_held_out)
    all_.set_defaults(do=table)
    for each in (one, again):
        which = each.add_mutually_exclusive_group(required=True)
        which.add_argument("--fold", help="K/N")
        which.add_argument("--without", help="a set that is left out")
        each.add_argument("--threads", type=int, default=1)
        each.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    one.add_argument("--photos", type=Path, nargs="+", required=True)
    one.add_argument("--seconds", type=float, default=800.0)
    one.add_argument("--moved", type=float, default=0.25, help="share of steps with moved images")
    one.add_argument("--pairs", type=Path, help="restorations and pools, see restored_pairs.py")
    one.add_argument("--hold-language", action="store_true", help="teach the tower alone")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--words", type=int, default=0, help="first rounds, and as many with local damage, per step")
    one.add_argument("--second", type=int, default=0, help="second rounds per step")
    one.add_argument("--ladders", type=int, help="ladders per step (default: 4 on a CPU, 8 on a GPU)")
    one.add_argument(
        "--learning-rate", type=float, default=PeopleConfig.learning_rate, help="peak, of the language side"
    )
    one.add_argument("--drawn", type=Path, help="folder of batches, see train_iqa.nano.drawn (default: draws its own)")
    for each in (one, all_):
        each.add_argument("--start", required=True, help="checkpoint that has seen no person's score")
    for each in (one, again, all_):
        each.add_argument("--people", type=Path, required=True)
        each.add_argument("--out", type=Path, default=Path("runs/people"))
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
