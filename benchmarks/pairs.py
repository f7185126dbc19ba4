"""The pair mode against people: agreement, calibration and asymmetry on scenes that its temperature was not fitted to.

python benchmarks/pairs.py --people DIR [--out runs/pairs] [--sets srij tid2013] [--scenes 14]

Every second scene of the sets with many images per scene fits the temperature, the others are measured; a set of one
scene is measured only. Pairs are those of one scene whose means of people's scores differ. The ratings are kept in
`--out`, so a run that was stopped goes on. nano has learnt from these scores: only the temperature is held out.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import bootstrap, write_result
from tqdm import tqdm

from train_iqa.nano.people import SCENE_IMAGES, Opinion, read_opinions
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import load_image
from zoomiqa_reward.model.pairs import fit_temperature, log_odds_of, probability_of
from zoomiqa_reward.runs.json_lines import append_line, read_lines
from zoomiqa_reward.runs.outputs import part_folder

SURE = 0.9


def rated(iqa: ZoomIQA, opinions: list[Opinion], folder: Path) -> list[dict[str, Any]]:
    """Return mean and std of each image, kept line by line."""
    file = part_folder(folder) / "ratings.jsonl"
    key = {"model": iqa.fingerprint}
    kept = {row["image"]: row for row in (read_lines(file) if file.exists() else []) if row["model"] == key["model"]}
    rows = []
    for one in tqdm(opinions):
        name = f"{one.set}/{one.image.name}"
        if name not in kept:
            ratings = iqa.rate([load_image(one.image)], strict=True)
            kept[name] = {"image": name, "mean": float(ratings.mean[0]), "std": float(ratings.std[0]), **key}
            append_line(file, kept[name])
        rows.append(kept[name])
    return rows


def pairs_of(opinions: list[Opinion], rows: list[dict[str, Any]], scene: str) -> dict[str, np.ndarray]:
    """Return both orders' log-odds at temperature 1, the difference of ratings and the outcome of a scene's pairs."""
    members = [k for k, one in enumerate(opinions) if one.scene == scene]
    pairs = [(i, j) for i, j in itertools.combinations(members, 2) if opinions[i].mos != opinions[j].mos]
    first, second = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    mean, std = (torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in ("mean", "std"))
    return {
        "odds": log_odds_of(mean[first], std[first], mean[second], std[second], 1.0).numpy(),
        "back": log_odds_of(mean[second], std[second], mean[first], std[first], 1.0).numpy(),
        "difference": (mean[first] - mean[second]).numpy(),
        "better": np.array([opinions[i].mos > opinions[j].mos for i, j in pairs]),
        "apart": np.array([abs(opinions[i].mos - opinions[j].mos) for i, j in pairs]),
    }


def measures(scenes: list[dict[str, np.ndarray]], temperature: float) -> dict[str, Any]:
    """Return what the held scenes say of the pair mode; intervals over scenes where there are several."""

    def together(chosen: np.ndarray) -> dict[str, np.ndarray]:
        return {key: np.concatenate([scenes[k][key] for k in chosen]) for key in scenes[0]}

    def agreement(values: np.ndarray, better: np.ndarray) -> float:
        return float(np.where(values == 0, 0.5, (values > 0) == better).mean())

    def probability(odds: np.ndarray) -> np.ndarray:
        return probability_of(torch.from_numpy(odds / temperature)).numpy()

    every = np.arange(len(scenes))
    held = together(every)
    p, back = probability(held["odds"]), probability(held["back"])
    right = np.where(held["better"], p, 1 - p)
    sure = np.maximum(p, 1 - p) >= SURE
    bins = np.minimum((np.maximum(p, 1 - p) - 0.5) // 0.1, 4)
    correct = (p > 0.5) == held["better"]
    apart = held["apart"] >= 0.5
    result = {
        "scenes": len(scenes), "pairs": len(p),
        "agreement_of_probability": agreement(p - 0.5, held["better"]),
        "agreement_of_difference": agreement(held["difference"], held["better"]),
        "agreement_mos_0.5_apart": agreement((p - 0.5)[apart], held["better"][apart]),
        "largest_asymmetry": float(np.abs(p + back - 1).max()),
        "negative_log_likelihood": float(-np.log(np.maximum(right, 1e-12)).mean()),
        "brier": float(((p - held["better"]) ** 2).mean()),
        "calibration_error": float(sum(
            abs(np.maximum(p, 1 - p)[bins == k].mean() - correct[bins == k].mean()) * (bins == k).mean()
            for k in range(5) if (bins == k).any()
        )),
        f"share_at_least_{SURE}": float(sure.mean()),
        f"agreement_at_least_{SURE}": float(correct[sure].mean()),
        "agreement_below": float(correct[~sure].mean()),
    }  # fmt: skip
    if len(scenes) > 1:
        result["agreement_95"] = bootstrap(
            lambda chosen: agreement((t := together(chosen))["odds"], t["better"]), len(scenes)
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"))
    parser.add_argument("--sets", nargs="+", default=["srij", "tid2013"])
    parser.add_argument("--scenes", type=int, help="Of each set, only the first so many, in order of their names.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    opinions = [one for one in read_opinions(args.people) if one.set in args.sets]
    taken = {name: sorted({one.scene for one in opinions if one.set == name})[: args.scenes] for name in args.sets}
    opinions = [one for one in opinions if one.scene in taken[one.set]]
    rows = rated(ZoomIQA.from_pretrained("nano"), opinions, args.out)
    measured = [k for k, row in enumerate(rows) if row["mean"] is not None and np.isfinite(row["mean"])]
    opinions, rows = [opinions[k] for k in measured], [rows[k] for k in measured]
    fitted: list[dict[str, np.ndarray]] = []
    held: dict[str, list[dict[str, np.ndarray]]] = {}
    for name in args.sets:
        scenes = sorted({one.scene for one in opinions if one.set == name})
        counts = {scene: sum(one.scene == scene for one in opinions) for scene in scenes}
        scenes = [scene for scene in scenes if counts[scene] >= SCENE_IMAGES]
        for index, scene in enumerate(scenes):
            is_fitted = len(scenes) > 1 and index % 2 == 0
            (fitted if is_fitted else held.setdefault(name, [])).append(pairs_of(opinions, rows, scene))
    temperature = fit_temperature(
        np.concatenate([pairs["odds"] for pairs in fitted]).tolist(),
        np.concatenate([pairs["better"] for pairs in fitted]).tolist(),
    )
    write_result(
        "pairs",
        {
            "model": "nano", "images": len(rows), "fitted_scenes": len(fitted), "temperature": temperature,
            "held": {name: measures(scenes, temperature) for name, scenes in held.items()},
        },
    )  # fmt: skip
    print(json.dumps({"temperature": temperature}))


if __name__ == "__main__":
    main()
