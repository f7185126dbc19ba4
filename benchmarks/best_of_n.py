"""What choosing among 8 candidates of the embedded x4 model is worth, judged by FSIM and VIF against the ground truth.

python benchmarks/best_of_n.py --hr DIR [--sets set5 set14 urban30] [--preset moderate] [--n 8]
    [--pool seeds --name best_of_n_seeds --out runs/best_of_n_seeds]
python benchmarks/best_of_n.py --hr DIR --sets test --every 3 --name best_of_n_chosen --out runs/best_of_n_chosen
python benchmarks/best_of_n.py --hr DIR --sets test --not-every 3 --name best_of_n_many --out runs/best_of_n_many
python benchmarks/best_of_n.py --hr DIR --add runs/best_of_n_many --name best_of_n_all

DIR holds one folder of clean photographs per set. Each photograph (its middle, at most 256 px per side) is degraded x4
with a seed of its own, restored `--n` times by the members of `varied_pool` (candidate 0 is the default restorer, 1 is
bicubic; `--pool seeds`: the default restorer alone, another noise each time), and every candidate is scored once by
`direct`, by `reason` and by NIQE, and judged by FSIM, VIF and PSNR-Y. The choices are made from that table afterwards.
`--every 3` takes photographs 1, 4, 7, ... of each set alone: of BSDS500's test part, those on which the pool and the
consensus were chosen. `--not-every 3` takes the others. `--add` also counts the lines of a finished run with the same
settings and other photographs.
Resumable: one JSON line per photograph in `--out`, which several processes (`--share 0/2`, `--share 1/2`) can fill.
Lines of other weights or settings are not used.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from tqdm import tqdm

from restoration import Restorer
from restoration.degradation import degrade
from restoration.evaluation.measuring import bicubic
from restoration.evaluation.statistics import (
    best_mean_worst,
    captured_gain,
    group_std,
    mean_interval,
    paired_test,
    regret,
    selected,
    within_srcc,
)
from restoration.metrics import fsim, niqe, psnr_y, vif
from restoration.restorer.image_io import sharpened
from restoration.restorer.rng import candidate_seed
from restoration.selection.pool import varied_pool
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import load_image, to_pil
from zoomiqa_reward.images.listing import list_images
from zoomiqa_reward.protocol.spec import ViewPolicy
from zoomiqa_reward.rewards.consensus import CONSENSUS, distances_from_mean
from zoomiqa_reward.runs.json_lines import append_line, read_lines

JUDGES = {"fsim": fsim, "vif": vif, "psnr_y": psnr_y}
SCALE = 4
SHARPENED = 0.5
"""Fixed amount of the baseline that sharpens the input and enlarges it."""
CASCADE_TOPS = (1, 2, 3)
CONSENSUS_GRID = (0.0, 0.02, 0.03, 0.04, 0.05, 0.055, 0.06, 0.065, 0.07, 0.075, 0.08, 0.09, 0.1)
"""Weights of the consensus. `--every 3` chooses the one whose smaller t of the gains in FSIM and VIF is largest."""
WAYS = ("direct", "glance", "reason", "niqe")
"""To choose; `glance` is `direct` that reads the whole image once, and the cascade's first stage."""
CHOOSERS = ("direct", "agreed", "nearest", "reason", "niqe")
"""Those of the tables; `agreed` is `direct` with the consensus of best-of-N, `nearest` the consensus alone."""


def photographs(folder: Path, every: int | None, not_every: int | None) -> list[Path]:
    """Return the images of a set in the order of their names: all, every K-th alone, or all but those."""
    paths = list_images(folder)
    if every:
        return paths[::every]
    return [path for k, path in enumerate(paths) if not not_every or k % not_every]


def middle(image: Any, largest: int) -> Any:
    """Return the middle of a CHW image, sides at most `largest` and multiples of `SCALE`."""
    sides = [min(side, largest) // SCALE * SCALE for side in image.shape[1:]]
    top, left = ((whole - part) // 2 for whole, part in zip(image.shape[1:], sides, strict=True))
    return image[:, top : top + sides[0], left : left + sides[1]]


def measured(path: Path, row: dict[str, Any], pool: list[Restorer], iqa: ZoomIQA, args: argparse.Namespace) -> None:
    """Complete one photograph's line: scores and judgements of all candidates, seconds of each way to choose."""
    hr = middle(load_image(path), args.max_px)
    lq, _ = degrade(hr, args.preset, seed=args.seed + row["index"], scale=SCALE)
    plain = bicubic(lq, SCALE)
    seconds = row["seconds"] = dict.fromkeys(("restore", "direct", "glance", "reason", "niqe"), 0.0)
    glance = iqa.with_views(ViewPolicy.whole())

    def timed(what: str, call: Any) -> Any:
        began = time.perf_counter()
        found = call()
        seconds[what] += time.perf_counter() - began
        return found

    made = timed("restore", lambda: [
        load_image(to_pil(next(iter(pool[k % len(pool)].restore(lq, [candidate_seed(args.seed, k)]))).image))
        for k in range(args.n)
    ])  # fmt: skip
    answers = [timed("reason", lambda image=image: iqa.assess([image])[0]) for image in made]
    row |= {"image": f"{path.parent.name}/{path.name}", "pixels": list(hr.shape[1:])}
    row["direct"] = [float(timed("direct", lambda p=p: iqa.rate([p], strict=True)).mean[0]) for p in made]
    row["glance"] = [float(timed("glance", lambda p=p: glance.rate([p], strict=True)).mean[0]) for p in made]
    row["reason"] = [answer.rating if answer.valid else None for answer in answers]
    row["niqe"] = [-timed("niqe", lambda p=p: niqe(p)) for p in made]
    row["distance"] = distances_from_mean(made).tolist()
    for name, judge in JUDGES.items():
        row[name] = [judge(image, hr) for image in made]
        row[f"{name}_bicubic"] = judge(plain, hr)
        row[f"{name}_sharpened"] = judge(bicubic(sharpened(lq, SHARPENED), SCALE), hr)
    row["direct_bicubic"], row["direct_hr"] = (float(iqa.rate([p], strict=True).mean[0]) for p in (plain, hr))


def lines_of(folder: Path, processes: int, wanted: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the lines of each index whose settings are the wanted ones; lines of other weights are left out."""
    lines = [row for k in range(processes) for row in read_lines(folder / f"{k}.jsonl")]
    return {
        row["index"]: row for row in lines if row["index"] in wanted and row.get("settings") == wanted[row["index"]]
    }


def added(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of another run. Raises ValueError for one without lines, or with other settings."""
    rows = [row for file in sorted(folder.glob("*.jsonl")) for row in read_lines(file)]
    if not rows or any(row["settings"] | {"image": None} != settings | {"image": None} for row in rows):
        raise ValueError(f"{folder}: holds no lines of these settings and weights alone; name the folder of such a run")
    return sorted(rows, key=lambda row: row["index"])


def cascade(first: Any, reason: Any, top: int) -> Any:
    """Return scores whose order is the cascade's: the `top` by `first` in the order of `reason`, then the others."""
    place = (-first).argsort(axis=1, kind="stable").argsort(axis=1)
    return np.where(place < top, 100 + reason + 1e-4 * first, first)


def choices(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what each way to choose gives under each judge, and the cascade against full `reason`."""
    table = {name: np.array([row[name] for row in rows], dtype=float) for name in WAYS + tuple(JUDGES)}
    table["reason"] = np.nan_to_num(table["reason"], nan=0.0)  # an unreadable answer is last, as in best_of_n
    # Answers have two decimals: of equal ones the better `glance` rating decides, as in the cascade.
    far = np.array([row["distance"] for row in rows])
    ways = {name: table[name] for name in WAYS} | {"agreed": table["direct"] - CONSENSUS * far, "nearest": -far}
    ways |= {"reason": table["reason"] + 1e-4 * table["glance"]}
    ways |= {f"cascade_{top}": cascade(table["glance"], table["reason"], top) for top in CASCADE_TOPS}
    total = {name: sum(row["seconds"][name] for row in rows) for name in rows[0]["seconds"]}
    count = table["direct"].shape[1]
    result: dict[str, Any] = {}
    for judge in ("fsim", "vif"):
        scores = table[judge]
        result[judge] = {"pool": best_mean_worst(scores), "g_std": group_std(scores)}
        for name, way in ways.items():
            result[judge][name] = {
                "captured_gain": captured_gain(scores, way),
                "regret": regret(scores, way),
                "within_srcc": within_srcc(scores, way),
            }
        gains = [captured_gain(scores, draw).value for draw in np.random.default_rng(0).random((500, *scores.shape))]
        result[judge]["random"] = {
            "captured_gain": [float(np.mean(gains)), *map(float, np.percentile(gains, [2.5, 97.5]))],
            "regret": float((scores.max(axis=1) - scores.mean(axis=1)).mean()),
        }
        for top in CASCADE_TOPS:
            gap = paired_gain(scores, ways[f"cascade_{top}"], ways["reason"])
            time_share = (total["glance"] + top / count * total["reason"]) / total["reason"]
            result[judge][f"cascade_{top}"] |= {"minus_reason": gap, "time_over_reason": time_share}
    for name in JUDGES:
        plain = [row[f"{name}_bicubic"] for row in rows]
        result[f"{name}_mean_minus_bicubic"] = paired_test(table[name].mean(axis=1), plain).difference
        picked = paired_test(selected(table[name], table["direct"]), plain).difference
        result[f"{name}_chosen_minus_bicubic"] = picked
        for way in CHOOSERS:
            gain = paired_test(selected(table[name], ways[way]), table[name][:, 0]).difference
            result[f"{name}_{way}_minus_default"] = gain
        oracle = paired_test(table[name].max(axis=1), table[name][:, 0]).difference
        result[f"{name}_oracle_minus_default"] = oracle
        sharper = [row[f"{name}_sharpened"] for row in rows]
        result[f"{name}_sharpened_minus_bicubic"] = paired_test(sharper, plain).difference
    result["consensus_grid"] = consensus_grid(table, far)
    result["chosen"] = {way: np.bincount(ways[way].argmax(axis=1), minlength=count).tolist() for way in CHOOSERS}
    result["rating"] = {
        "pool": best_mean_worst(table["direct"]),
        "bicubic": mean_interval([row["direct_bicubic"] for row in rows]),
        "hr": mean_interval([row["direct_hr"] for row in rows]),
    }
    return result | {"seconds_an_image": {name: round(value / len(rows), 2) for name, value in total.items()}}


def consensus_grid(table: dict[str, Any], far: Any) -> dict[str, Any]:
    """Return for each weight of the consensus what the choice gains over the default, and t = mean / standard error."""
    grid = {}
    for weight in CONSENSUS_GRID:
        gains = {judge: selected(table[judge], table["direct"] - weight * far) - table[judge][:, 0] for judge in JUDGES}
        grid[f"{weight:g}"] = {
            judge: {"gain": mean_interval(gain), "t": float(gain.mean() / (gain.std(ddof=1) / len(gain) ** 0.5))}
            for judge, gain in gains.items()
        }
    return grid


def paired_gain(scores: Any, first: Any, second: Any, draws: int = 2000) -> list[float]:
    """Return the difference of two ways' captured gain and its 95 % interval, images resampled for both at once."""
    pool, oracle = scores.mean(axis=1), scores.max(axis=1)
    gained = selected(scores, first) - selected(scores, second)

    def difference(index: Any) -> float:
        return float(gained[index].sum() / (oracle - pool)[index].sum())

    rng, every = np.random.default_rng(0), np.arange(len(scores))
    drawn = [difference(rng.choice(every, len(every))) for _ in range(draws)]
    return [difference(every), *map(float, np.percentile(drawn, [2.5, 97.5]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["set5", "set14", "urban30"])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--every", type=int, metavar="K", help="only photographs 1, K + 1, 2 K + 1, ... of each set")
    which.add_argument("--not-every", type=int, metavar="K", help="all but photographs 1, K + 1, ... of each set")
    parser.add_argument("--preset", default="moderate")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--max-px", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--restorer", default="nano")
    parser.add_argument("--pool", choices=("varied", "seeds"), default="varied")
    parser.add_argument("--share", default="0/1", help="K/P: this is process K of P, each on its share of photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/best_of_n"))
    parser.add_argument("--add", type=Path, action="append", default=[], help="folder of a finished run; repeatable")
    parser.add_argument("--name", default="best_of_n")
    args = parser.parse_args()
    paths = [path for name in args.sets for path in photographs(args.hr / name, args.every, args.not_every)]
    iqa = ZoomIQA.from_pretrained(args.model)
    pool = varied_pool(args.restorer) if args.pool == "varied" else [Restorer.from_pretrained(args.restorer)]
    args.out.mkdir(parents=True, exist_ok=True)
    number, processes = map(int, args.share.split("/"))
    settings = {
        "preset": args.preset, "n": args.n, "max_px": args.max_px, "seed": args.seed, "judge": iqa.fingerprint,
        "pool": [one.fingerprint for one in pool],
    }  # fmt: skip
    wanted = {index: settings | {"image": f"{path.parent.name}/{path.name}"} for index, path in enumerate(paths)}
    known = lines_of(args.out, processes, wanted)
    for index in tqdm([k for k in range(number, len(paths), processes) if k not in known], desc=args.preset):
        row = {"index": index, "settings": wanted[index]}
        measured(paths[index], row, pool, iqa, args)
        append_line(args.out / f"{number}.jsonl", row)
    rows = [row for _, row in sorted(lines_of(args.out, processes, wanted).items())]
    if len(rows) < len(paths):
        print(f"{len(rows)} of {len(paths)} photographs are done; the other processes have the rest")
        return
    rows += [row for folder in args.add for row in added(folder, settings)]
    if len({row["settings"]["image"] for row in rows}) < len(rows):
        raise ValueError(f"--add {args.add}: holds photographs that are counted already")
    result = {
        "images": len(rows), "unreadable_answers": sum(row["reason"].count(None) for row in rows), "n": args.n,
        "preset": args.preset, "max_px": args.max_px, "model": iqa.name, "restorer": pool[0].name,
        "pool": args.pool, "sets": args.sets, "every": args.every, "not_every": args.not_every,
    }  # fmt: skip
    write_result(args.name, result | choices(rows))


if __name__ == "__main__":
    main()
