"""nano on degraded photographs that it never saw: rank correlation, readable answers, zooms and boxes.

python benchmarks/nano_synthetic.py --images BSDS500/test [--model nano] [--count 400] [--seed 9]
python benchmarks/nano_synthetic.py --images PHOTOS --held-out --name nano_held_out

The second looks at the photographs that training held out, to choose by: `iou_margins` says what a box would be worth
that is wider by a fraction of the sides at each edge than the one in the words (`Protocol.box_margin`).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from common import bootstrap, srcc, write_result
from PIL import Image
from readable import is_readable
from tqdm import tqdm

from restoration.metrics import fsim, niqe, vif
from train_iqa.nano.degradations import degrade, sample_box, sample_steps
from train_iqa.nano.labels import LabelScale, pseudo_mos
from train_iqa.nano.synthetic import hold_out, list_photographs
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.protocol import box_shares, read_route

CENTRAL = (0.25, 0.25, 0.75, 0.75)
LONGEST_PX = 481
"""Longest side of an image, that of BSDS500's; a larger photograph is reduced first."""
MARGINS = (0.0, 0.01, 0.02, 0.03, 0.04)


def iou(a, b):
    """Return intersection over union of two boxes (left, top, right, bottom)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def told_box(assessment):
    """Return the box that round 1 told, None where it asks for no closer look or nothing was asked."""
    turn = assessment.turns[0] if assessment.turns else None
    return None if turn is None or turn.tool == "final" else turn.bbox


def box_in_words(assessment, image, margin):
    """Return the box in the words of round 1, wider by `margin`, None as `told_box`."""
    if told_box(assessment) is None:
        return None
    height, width = image.shape[1:]
    return box_shares(read_route(assessment.turns[0].text).bbox, width, height, margin)


def mean_iou(boxes, true):
    """Return the mean IoU; where no box is told it is 0."""
    return float(np.mean([iou(b, t) if b else 0.0 for b, t in zip(boxes, true, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=9)
    parser.add_argument("--scale", type=Path, default=None, help="label scale (default: the embedded one)")
    parser.add_argument("--name", default="nano_synthetic")
    parser.add_argument("--skip-reason", action="store_true")
    parser.add_argument("--held-out", action="store_true", help="only the photographs that training held out")
    args = parser.parse_args()
    scale_file = args.scale or Path(__file__).parents[1] / "zoomiqa_reward/checkpoints/nano/label_scale.json"
    scale = LabelScale.load(scale_file)
    paths, rng = list_photographs(args.images), np.random.default_rng(args.seed)
    paths = hold_out(paths)[1] if args.held_out else paths
    images, references, records = [], [], []
    for k in range(args.count):
        with Image.open(paths[k % len(paths)]) as photograph:
            photograph.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
            clean = np.asarray(photograph.convert("RGB"), dtype=np.float32) / 255
        image, record = degrade(clean, sample_steps(rng), rng, sample_box(rng) if k % 5 < 2 else None)
        images.append(torch.from_numpy(image).permute(2, 0, 1).contiguous())
        references.append(torch.from_numpy(clean).permute(2, 0, 1).contiguous())
        records.append(record)
    labels = pseudo_mos(images, references, scale)
    pairs = list(zip(images, references, strict=True))
    fsims = np.array([fsim(i, r) for i, r in tqdm(pairs, desc="FSIM")])
    vifs = np.array([vif(i, r) for i, r in tqdm(pairs, desc="VIF")])
    niqes = -np.array([niqe(i) for i in tqdm(images, desc="NIQE")])
    iqa = ZoomIQA.from_pretrained(args.model)
    direct = np.array([float(iqa.rate([i], strict=True).mean[0]) for i in tqdm(images, desc="direct")])
    local = np.array([r.box is not None for r in records])
    result = {"images": len(images), "seed": args.seed, "model": iqa.name, "local_share": float(local.mean())}
    # How far a judge is independent of the labels: FSIM is nearly one of them.
    result |= {f"srcc_labels_{name}": srcc(labels, truth) for name, truth in (("fsim", fsims), ("vif", vifs))}
    for name, values in (("direct", direct), ("niqe", niqes)):
        for target, truth in (("pseudo_mos", labels), ("fsim", fsims), ("vif", vifs)):
            result[f"srcc_{name}_{target}"] = srcc(values, truth)
            result[f"srcc_{name}_{target}_95"] = bootstrap(lambda k, v=values, t=truth: srcc(v[k], t[k]), len(images))
    result["srcc_direct_pseudo_mos_global"] = srcc(direct[~local], labels[~local])
    result["srcc_direct_pseudo_mos_local"] = srcc(direct[local], labels[local])
    if not args.skip_reason:
        assessments = [iqa.assess([i])[0] for i in tqdm(images, desc="reason")]
        valid = np.array([a.valid for a in assessments])
        ratings = np.array([a.rating for a in assessments])
        zoomed = np.array([len(a.turns) > 1 for a in assessments])
        result |= {
            "readable_share": float(np.mean([is_readable(a) for a in assessments])),
            "srcc_reason_pseudo_mos": srcc(ratings[valid], labels[valid]),
            "srcc_reason_fsim": srcc(ratings[valid], fsims[valid]),
            "srcc_direct_reason": srcc(direct[valid], ratings[valid]),
            "zoom_rate": float(zoomed.mean()),
            "zoom_rate_local": float(zoomed[local].mean()),
            "zoom_rate_global": float(zoomed[~local].mean()),
        }
        # Every local image counts; one whose answer names no box scores 0.
        where = np.flatnonzero(local)
        true = [records[k].box for k in where]
        boxes = [told_box(assessments[k]) for k in where]
        named = np.array([iou(b, t) if b else 0.0 for b, t in zip(boxes, true, strict=True)])
        central = np.array([iou(CENTRAL, t) for t in true])
        area = np.array([(t[2] - t[0]) * (t[3] - t[1]) for t in true])
        edges = np.quantile(area, [0, 1 / 3, 2 / 3, 1])
        result["iou_named"], result["iou_central"] = float(named.mean()), float(central.mean())
        result["iou_named_95"] = bootstrap(lambda k: float(named[k].mean()), len(named))
        result["iou_margins"] = {
            str(margin): mean_iou([box_in_words(assessments[k], images[k], margin) for k in where], true)
            for margin in MARGINS
        }
        result["iou_named_where_zoomed"] = float(named[[b is not None for b in boxes]].mean())
        for k in range(3):
            inside = (area >= edges[k]) & (area <= edges[k + 1])
            result[f"iou_tercile_{k + 1}"] = {
                "area": [float(edges[k]), float(edges[k + 1])],
                "named": float(named[inside].mean()),
                "central": float(central[inside].mean()),
            }
    write_result(args.name, result)


if __name__ == "__main__":
    main()
