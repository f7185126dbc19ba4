"""The embedded x4 restorer against doing nothing: bicubic, and bicubic of an input sharpened by a fixed amount.

python benchmarks/restorer.py --hr DIR [--sets set5 set14 urban30] [--presets moderate] [--steps 4]
    [--temperatures 0.5] [--share 0/2] [--out runs/restorer] [--sheet FILE.png]
python benchmarks/restorer.py --hr DIR --sets cid22 clic2025 sunhays --held-out --steps 2 4 8 --temperatures 0 0.3 0.5 1
    --out runs/restorer_held_out --name restorer_held_out

DIR holds one folder of clean photographs a set. Each photograph (its middle, at most `--max-px` a side) is degraded x4
with a seed of its own and restored once per setting. `--held-out` takes the photographs that the embedded weights did
not learn from (index % 10 == 7 of each folder in order of name; those of 1000 px and more are halved first): settings
are chosen on them. Every value stands less bicubic's of the same photograph, with its 95 % interval over photographs.
The row `truth` has the photograph's own LR-consistency: what lies above it keeps noise and JPEG traces of the input.
Resumable: one JSON line per photograph and preset in `--out`, which several processes (`--share 0/2`) can fill.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from PIL import Image
from tqdm import tqdm

from restoration.degradation.pipeline import degrade
from restoration.degradation.presets import find_preset
from restoration.evaluation.measuring import bicubic
from restoration.evaluation.statistics import mean_interval
from restoration.metrics.registry import fsim, lr_consistency, psnr_y, ssim_y, vif
from restoration.nano.pipeline import SCALE, STEPS, TEMPERATURE
from restoration.restorer.image_io import sharpened
from restoration.restorer.restorer import Restorer
from restoration.restorer.rng import candidate_seed
from zoomiqa_reward.images.loading import load_image, save_png, to_pil
from zoomiqa_reward.runs.json_lines import append_line, read_lines

JUDGES = ("psnr_y", "fsim", "vif", "ssim_y", "lr_consistency")
SHARPENED = (0.25, 0.5, 1.0)
"""Fixed amounts of the baseline."""
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp")
LARGE_PX = 1000
HELD_OUT = 7
SHEET_ROWS, SHEET_PX = 8, 160


def photographs(folder: Path, sets: list[str], *, held_out: bool) -> list[Path]:
    """Return the photographs of the sets in order of name. Raises ValueError for an empty set."""
    found = []
    for name in sets:
        files = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        mine = [path for k, path in enumerate(files) if not held_out or k % 10 == HELD_OUT]
        if not mine:
            raise ValueError(f"{folder / name}: no photographs; --sets names folders inside --hr")
        found += mine
    return found


def ground_truth(path: Path, largest: int, *, halve: bool) -> torch.Tensor:
    """Return the middle of a photograph, CHW, sides at most `largest` and multiples of `SCALE`."""
    with Image.open(path) as file:
        photograph = file.convert("RGB")
    if halve and min(photograph.size) >= LARGE_PX:
        photograph = photograph.reduce(2)
    image = load_image(photograph)
    sides = [min(side, largest) // SCALE * SCALE for side in image.shape[1:]]
    top, left = ((whole - part) // 2 for whole, part in zip(image.shape[1:], sides, strict=True))
    return image[:, top : top + sides[0], left : left + sides[1]]


def judged(image: torch.Tensor, hr: torch.Tensor, lq: torch.Tensor, preset: str) -> dict[str, float]:
    """Return every judge's value of the 8-bit image."""
    image = load_image(to_pil(image))
    blur_px = 0.0 if find_preset(preset).is_clean else 1.0
    found = {"fsim": fsim(image, hr), "vif": vif(image, hr), "psnr_y": psnr_y(image, hr), "ssim_y": ssim_y(image, hr)}
    return found | {"lr_consistency": lr_consistency(image, lq, blur_px=blur_px)}


def measured(
    hr: torch.Tensor, index: int, preset: str, restorers: dict[str, Restorer], known: dict[str, Any]
) -> dict[str, Any]:
    """Return one photograph's values: those known, and those of the rows that are missing."""
    lq, _ = degrade(hr, preset, seed=index, scale=SCALE)
    makers: dict[str, Any] = {"bicubic": lambda: bicubic(lq, SCALE)}
    for amount in SHARPENED:
        makers[f"bicubic of the input sharpened by {amount:g}"] = lambda a=amount: bicubic(sharpened(lq, a), SCALE)
    for name, restorer in restorers.items():
        makers[name] = lambda one=restorer: next(iter(one.restore(lq, [candidate_seed(0, 0)]))).image
    rows = dict(known)
    for name, make in makers.items():
        if name not in rows:
            began = time.perf_counter()
            image = make()
            rows[name] = {"seconds": time.perf_counter() - began} | judged(image, hr, lq, preset)
    if "truth" not in rows:
        blur_px = 0.0 if find_preset(preset).is_clean else 1.0
        rows["truth"] = {"lr_consistency": lr_consistency(hr, lq, blur_px=blur_px)}
    return rows


def table(found: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Return per row: each judge less bicubic's with its interval, and the share of photographs above bicubic."""
    plain = {judge: np.array([rows["bicubic"][judge] for rows in found]) for judge in JUDGES}
    result: dict[str, Any] = {"bicubic": {judge: list(mean_interval(plain[judge])[:3]) for judge in JUDGES}}
    for name in names:
        result[name] = {}
        for judge in JUDGES:
            values = np.array([rows[name].get(judge, math.nan) for rows in found])
            if np.isfinite(values).all():
                gap = values - plain[judge]
                result[name][judge] = [*mean_interval(gap)[:3], float((gap > 0).mean())]
        seconds = [rows[name]["seconds"] for rows in found if "seconds" in rows[name]]
        if seconds:
            result[name]["seconds"] = float(np.median(seconds))
    return result


def sheet(paths: list[Path], preset: str, restorers: dict[str, Restorer], file: Path, *, halve: bool) -> None:
    """Write rows of bicubic, every restorer, and the truth."""
    lines = []
    for index in np.linspace(0, len(paths) - 1, min(SHEET_ROWS, len(paths))).round().astype(int):
        hr = ground_truth(paths[index], SHEET_PX, halve=halve)
        lq, _ = degrade(hr, preset, seed=int(index), scale=SCALE)
        made = [next(iter(one.restore(lq, [candidate_seed(0, 0)]))).image for one in restorers.values()]
        line = torch.cat([bicubic(lq, SCALE), *made, hr], dim=2)
        lines.append(torch.nn.functional.pad(line, (0, (len(made) + 2) * SHEET_PX - line.shape[2])))
    save_png(torch.cat(lines, dim=1), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["set5", "set14", "urban30"])
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--presets", nargs="+", default=["moderate"])
    parser.add_argument("--steps", type=int, nargs="+", default=[STEPS])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[TEMPERATURE])
    parser.add_argument("--restorer", default="nano")
    parser.add_argument("--max-px", type=int, default=256)
    parser.add_argument("--every", type=int, default=1, help="every K-th photograph only")
    parser.add_argument("--share", default="0/1", help="K/P: this is process K of P, each on its share of photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/restorer"))
    parser.add_argument("--name", default="restorer")
    parser.add_argument("--sheet", type=Path, help="PNG of some restorations, of the first preset")
    args = parser.parse_args()
    restorers = {
        f"steps {steps}, temperature {t:g}": Restorer.from_pretrained(args.restorer, steps=steps, temperature=t)
        for steps in args.steps for t in args.temperatures
    }  # fmt: skip
    paths = photographs(args.hr, args.sets, held_out=args.held_out)[:: args.every]
    fingerprints = {name: one.fingerprint for name, one in restorers.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    number, processes = map(int, args.share.split("/"))
    seen = [row for k in range(processes) for row in read_lines(args.out / f"{k}.jsonl")]
    known = {(row["image"], row["preset"]): row for row in seen}
    jobs = [(index, path, preset) for preset in args.presets for index, path in enumerate(paths)]
    for index, path, preset in tqdm(jobs[number::processes]):
        row = known.get((str(path.relative_to(args.hr)), preset), {"rows": {}, "fingerprints": {}})
        kept = {name: values for name, values in row["rows"].items()
                if row["fingerprints"].get(name) == fingerprints.get(name)}  # fmt: skip
        if set(kept) >= {"truth", *restorers}:
            continue
        rows = measured(ground_truth(path, args.max_px, halve=args.held_out), index, preset, restorers, kept)
        row = {"image": str(path.relative_to(args.hr)), "preset": preset, "rows": rows, "fingerprints": fingerprints}
        append_line(args.out / f"{number}.jsonl", row)
        known[row["image"], preset] = row
    if args.sheet is not None:
        sheet(paths, args.presets[0], restorers, args.sheet, halve=args.held_out)
    keys = {preset: [(str(path.relative_to(args.hr)), preset) for path in paths] for preset in args.presets}
    if any(key not in known for some in keys.values() for key in some):
        print("the other processes have the rest: run this command again when they are done")
        return
    names = ["truth", *(f"bicubic of the input sharpened by {a:g}" for a in SHARPENED), *restorers]
    write_result(args.name, {
        "images": len(paths), "sets": args.sets, "held_out": args.held_out, "max_px": args.max_px,
        "presets": {preset: table([known[key]["rows"] for key in some], names) for preset, some in keys.items()},
    })  # fmt: skip


if __name__ == "__main__":
    main()
