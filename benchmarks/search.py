"""Search beyond best-of-N: quality and rating against time, for best-of-N, noise search and fusion.

python benchmarks/search.py --hr DIR/urban30 [--preset moderate] [--n 12] [--per-round 4] [--count 30]
    [--pools varied seeds] [--out runs/search]

Each clean photograph of DIR (its middle, at most 256 px a side) is degraded x4 with a seed of its own and restored by
each way with N = 4, 8, ..., `--n` restorations. Best-of-N and the search draw one by one, so the result and the time at
each N are those of one run of that N: the clock is read after each candidate. Fusion takes best-of-N's candidates at
that N, and adds the time of its maps and of its own score. Bicubic and one default candidate stand in the same table.
`varied` is the pool of `zoomiqa best-of-n`; `seeds` is the restorer alone, whose candidates differ in their noise.
`fusion` is the better rated of the fused image and the best candidate; `fusion, always` is the fused image itself.
VIF, FSIM and PSNR-Y are measured on the chosen image; no way sees them. Intervals: 95 %, photographs resampled;
differences are paired with best-of-N at the same N. Resumable: one JSON line per photograph and pool in `--out`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from best_of_n import middle
from common import write_result

from restoration import Restorer
from restoration.degradation import degrade
from restoration.evaluation.measuring import bicubic
from restoration.evaluation.statistics import mean_interval, paired_test
from restoration.metrics import fsim, lr_consistency, psnr_y, vif
from restoration.search.fusion import SOFTNESS_FRAC, TOP, fuse_candidates
from restoration.search.noise_search import AMOUNT, NoiseLoop
from restoration.selection.best_of_n import pool as pool_of
from restoration.selection.candidate_loop import CandidateLoop
from restoration.selection.candidates import Candidate, ranked
from restoration.selection.pool import varied_pool
from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image, to_pil
from zoomiqa_reward.images.loading import hash_pixels
from zoomiqa_reward.model.ratings import Ratings
from zoomiqa_reward.runs.json_lines import append_line, read_lines
from zoomiqa_reward.runs.progress import progress

METRICS = {"vif": vif, "fsim": fsim, "psnr_y": psnr_y}
MEASURES = (*METRICS, "rating", "lr_consistency")
SCALE = 4


def sizes(n: int, per_round: int) -> list[int]:
    """Return the numbers of restorations at which the ways are compared: whole rounds."""
    return list(range(per_round, n + 1, per_round))


def best_of(candidates: list[Candidate]) -> Candidate:
    """Return the candidate of rank 1."""
    return next(one for one in ranked(candidates) if one.rank == 1)


def measured(image: Any, hr: Any, lq: Any, rating: float, seconds: float) -> dict[str, float]:
    """Return one cell of the table for one photograph."""
    values = {name: metric(image, hr) for name, metric in METRICS.items()}
    return values | {"rating": rating, "lr_consistency": lr_consistency(image, lq), "seconds": round(seconds, 3)}


def clocked(loop: CandidateLoop, n: int) -> list[float]:
    """Draw all candidates; return the seconds until each was there with its score."""
    began, clock = time.perf_counter(), []
    for _ in loop.draw_each(n):
        clock.append(time.perf_counter() - began)
    return clock


class Remembering:
    """The judge of views; a map that it made before is not made again, but its time counts again."""

    def __init__(self, iqa: ZoomIQA) -> None:
        self.iqa, self.checkpoint = iqa, iqa.checkpoint
        self.made: dict[str, tuple[Ratings, float]] = {}
        self.spared_s = 0.0
        """Time of maps that were remembered, since it was last set to 0."""

    def rate(self, images: Any, **options: Any) -> Ratings:
        """Return the ratings of all views of a map."""
        key = "".join(map(hash_pixels, images))
        if key in self.made:
            self.spared_s += self.made[key][1]
        else:
            began = time.perf_counter()
            ratings = self.iqa.rate(images, **options)
            self.made[key] = (ratings, time.perf_counter() - began)
        return self.made[key][0]


def measure_photograph(
    path: Path, index: int, name: str, restorers: list[Restorer], reward: Any, args: Any
) -> dict[str, Any]:
    """Return one photograph's line: each way at each N."""
    hr = middle(load_image(path), args.max_px)
    lq, _ = degrade(hr, args.preset, seed=args.seed + index, scale=SCALE)
    given, sources = {"lq": lq, "hr": None}, pool_of(restorers, None)
    began = time.perf_counter()
    enlarged = load_image(to_pil(bicubic(lq, SCALE)))
    seconds = time.perf_counter() - began
    cells = {"bicubic": measured(enlarged, hr, lq, float(reward([enlarged]).value[0]), seconds)}
    plain = CandidateLoop(sources, given, reward, args.seed, None, args.n, None)
    noise = NoiseLoop(sources, given, reward, args.seed, None, args.n, args.per_round, args.amount)
    clocks = {"best_of_n": clocked(plain, args.n), "noise": clocked(noise, args.n)}
    first = plain.candidates[0]
    cells["one"] = measured(load_image(first.image), hr, lq, first.score, first.seconds)  # nothing is rated for it
    fused_chosen, rater = {}, Remembering(reward.iqa)
    for n in sizes(args.n, args.per_round):
        for way, loop in (("best_of_n", plain), ("noise", noise)):
            best = best_of(loop.candidates[:n])
            cells[f"{way} {n}"] = measured(load_image(best.image), hr, lq, best.score, clocks[way][n - 1])
        began, rater.spared_s = time.perf_counter(), 0.0
        fused = fuse_candidates(plain.candidates[:n], lq, reward, top=TOP, softness=args.softness, rater=rater)
        seconds = clocks["best_of_n"][n - 1] + time.perf_counter() - began + rater.spared_s
        chosen, score = (fused.fused, fused.score) if fused.is_chosen else (fused.best.image, fused.best.score)
        cells[f"fusion {n}"] = measured(load_image(chosen), hr, lq, score, seconds)
        always = load_image(fused.fused)
        cells[f"fusion, always {n}"] = measured(always, hr, lq, fused.score, seconds)
        fused_chosen[str(n)] = fused.is_chosen
    return {"index": index, "pool": name, "image": path.name, "cells": cells, "fused_chosen": fused_chosen}


def table(rows: list[dict[str, Any]], counts: list[int]) -> dict[str, Any]:
    """Return the mean of each cell with its interval, and its paired difference from best-of-N at the same N."""
    result: dict[str, Any] = {"cells": {}, "minus_best_of_n": {}, "minus_bicubic": {}}
    for cell in rows[0]["cells"]:
        values = {name: np.array([row["cells"][cell][name] for row in rows]) for name in (*MEASURES, "seconds")}
        result["cells"][cell] = {name: list(mean_interval(value)) for name, value in values.items()}
        way, _, n = cell.rpartition(" ")
        others = {"minus_bicubic": "bicubic"} if cell != "bicubic" else {}
        if way and way != "best_of_n":
            others["minus_best_of_n"] = f"best_of_n {n}"
        for key, other in others.items():
            result[key][cell] = {
                name: paired_test(values[name], [row["cells"][other][name] for row in rows]).difference
                for name in MEASURES
            }
    result["fused_chosen"] = {str(n): sum(row["fused_chosen"][str(n)] for row in rows) for n in counts}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--preset", default="moderate")
    parser.add_argument("--n", type=int, default=12)
    parser.add_argument("--per-round", type=int, default=4)
    parser.add_argument("--amount", type=float, default=AMOUNT)
    parser.add_argument("--softness", type=float, default=4 * SOFTNESS_FRAC)
    parser.add_argument("--pools", nargs="+", choices=("varied", "seeds"), default=["varied", "seeds"])
    parser.add_argument("--max-px", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--restorer", default="nano")
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    parser.add_argument("--name", default="search")
    args = parser.parse_args()
    paths = sorted(args.hr.glob("*.png"))[: args.count]
    if not paths:
        raise SystemExit(f"{args.hr}: no PNG files in it")
    iqa = ZoomIQA.from_pretrained(args.model)
    reward = ZoomIQAReward(iqa)
    pools = {"varied": lambda: varied_pool(args.restorer), "seeds": lambda: [Restorer.from_pretrained(args.restorer)]}
    settings = {
        "preset": args.preset, "n": args.n, "per_round": args.per_round, "amount": args.amount,
        "softness": args.softness, "max_px": args.max_px, "seed": args.seed, "judge": iqa.fingerprint,
        "restorer": Restorer.from_pretrained(args.restorer).fingerprint,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    lines = args.out / "photographs.jsonl"
    stored = {(row["pool"], row["index"]): row for row in read_lines(lines)}
    done = {key: row for key, row in stored.items() if row["settings"] == settings}
    if len(done) < len(stored):
        print(f"{len(stored) - len(done)} lines of other settings or weights in {lines} are not used", file=sys.stderr)
    result: dict[str, Any] = {"images": len(paths), "settings": settings, "model": iqa.name, "pools": {}}
    for name in args.pools:
        restorers = pools[name]()
        for index in progress(range(len(paths)), len(paths), f"photographs, {name}"):
            if (name, index) not in done:
                row = measure_photograph(paths[index], index, name, restorers, reward, args) | {"settings": settings}
                append_line(lines, row)
                done[name, index] = row
        rows = [done[name, index] for index in range(len(paths))]
        result["pools"][name] = table(rows, sizes(args.n, args.per_round))
    write_result(args.name, result)


if __name__ == "__main__":
    main()
