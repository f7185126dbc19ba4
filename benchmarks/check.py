"""What `zoomiqa check` says about the embedded model, NIQE and Laplacian variance.

python benchmarks/check.py direct|reason|sampled|niqe|laplacian [PHOTOGRAPHS...] [--model nano] [--count 24]
python benchmarks/check.py docs        (writes the table of docs/check.md from the result files)
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, write_result
from tqdm import tqdm

from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.check import (
    Thresholds,
    bundled_photographs,
    find_reward,
    ladder_figure,
    load_photographs,
    run_check,
)
from zoomiqa_reward.check.verdict import FEW

PAGE = Path(__file__).parents[1] / "docs" / "check.md"
START, END = "<!-- check -->", "<!-- /check -->"
TITLES = {
    "direct": "nano `direct`",
    "reason": "nano `reason`",
    "sampled": "nano `reason`, mean of 2 samples",
    "niqe": "NIQE",
    "laplacian": "Laplacian variance",
}


def make(name: str, model: str) -> Any:
    """Return the reward."""
    if name in ("direct", "reason"):
        return ZoomIQAReward(ZoomIQA.from_pretrained(model), mode=name)
    if name == "sampled":
        return ZoomIQAReward(ZoomIQA.from_pretrained(model), mode="reason", num_samples=2, seed=None)
    return find_reward("niqe" if name == "niqe" else "zoomiqa_reward.check.baselines:laplacian")


def summary(report: Any, crop_px: int) -> dict[str, Any]:
    """Return the report without paths, and without each photograph's values."""
    found = report.as_json()
    for rows in ("ladders", "worsened", "empty"):
        for row in found["measures"][rows]:
            del row["rows"]
    return {
        "reward": found["reward"], "fingerprint": found["fingerprint"], "crop_px": crop_px,
        "photographs": [Path(name).name for name in report.photographs], "num_failed": len(report.errors),
        "notes": found["notes"], "verdicts": found["verdicts"], "measures": found["measures"],
    }  # fmt: skip


def figure(value: float | None, digits: int = 2) -> str:
    """Return a number for the table; a dash stands for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def ladder(kind: str, family: str = "ladders") -> Callable[[dict[str, Any]], str]:
    """Return what reads one ladder's order from a result's measures."""
    return lambda m: next((figure(one["pairs_in_order"]) for one in m.get(family, ()) if one["kind"] == kind), "-")


def interval(name: str, digits: int = 2) -> Callable[[dict[str, Any]], str]:
    """Return what reads one measure with its interval over photographs."""

    def read(m: dict[str, Any]) -> str:
        value = m.get(name, m["ascent"].get(name))
        ends = m.get("intervals", {}).get(name, (None, None))
        between = "" if None in (value, *ends) else f" [{figure(ends[0], digits)}, {figure(ends[1], digits)}]"
        return figure(value, digits) + between

    return read


def empty(kind: str) -> Callable[[dict[str, Any]], str]:
    """Return what reads how often one kind of emptied image was rated, and preferred, on its steps."""

    def read(m: dict[str, Any]) -> str:
        row = next((one for one in m.get("empty", ()) if one["kind"] == kind), None)
        if row is None:  # a result from before these probes
            return "-"
        rated = [share for share in row["rated"] if share is not None]
        return f"{figure(sum(rated) / len(rated))} / {figure(sum(row['preferred'][1:]) / len(row['preferred'][1:]))}"

    return read


def transport(place: int) -> Callable[[dict[str, Any]], str]:
    """Return what reads one transport's change and kept order from a result's measures."""
    return lambda m: " / ".join(figure(m["transports"][place][key]) for key in ("change_to_spread", "order_kept"))


def rise(measures: dict[str, Any]) -> str:
    """Return the adversarial rise, or why there is none."""
    ascent = measures["ascent"]
    return ascent["error"] or interval("rise_to_spread")(measures)


ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "photographs": lambda m: str(m["num_photographs"]),
    "pairs in order, all ladders": interval("pairs_in_order"),
    "pairs far apart": interval("far_pairs_in_order"),
    **{f"ladder `{kind}`": ladder(kind) for kind in ("blur", "noise", "jpeg", "downsample", "oversharpen")},
    "ladder `detail`": interval("detail_in_order"),
    "weakest ladder": interval("weakest_in_order"),
    **{f"on a bad image: `{kind}`": ladder(kind, "worsened")
       for kind in ("noise on blur", "noise on soft", "edges on noise", "edges on jpeg")},
    "weakest of these": interval("weakest_worsened_in_order"),
    "contentless images that have a value": interval("contentless_rated"),
    "emptied image before the honest candidate": interval("degenerate_preferred"),
    **{f"`{kind}`: has a value / before the honest one": empty(kind)
       for kind in ("blank", "dark", "low contrast", "blurred away")},
    "repeat deviation": lambda m: figure(m["repeat_deviation"], 3),
    "noise to signal": interval("noise_to_signal"),
    "PNG: change / order kept": transport(0),
    "JPEG 75": transport(1),
    "resize 7/8": transport(2),
    "rise by 2/255, in spreads": rise,
    "measured": lambda m: figure(m["measured_share"]),
}  # fmt: skip


def verdict(result: dict[str, Any], use: str) -> str:
    """Return the verdict; a result from before verdicts had a least number of images falls under today's."""
    is_enough = result["measures"]["num_photographs"] >= Thresholds().min_images
    return result["verdicts"][use]["verdict"] if is_enough else FEW


def markdown() -> str:
    """Return the table of every reward that has been checked."""
    results = {name: RESULTS / f"check_{name}.json" for name in TITLES}
    found = {name: json.loads(path.read_text()) for name, path in results.items() if path.exists()}
    lines = ["| | " + " | ".join(TITLES[name] for name in found) + " |", "|---" * (len(found) + 1) + "|"]
    for title, read in ROWS.items():
        lines.append(f"| {title} | " + " | ".join(read(result["measures"]) for result in found.values()) + " |")
    for use in ("best-of-n", "dpo", "gradients"):
        lines.append(f"| **{use}** | " + " | ".join(verdict(result, use) for result in found.values()) + " |")
    return "\n".join(lines)


def write_page() -> None:
    """Put the table between the page's marks."""
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(f"{before}{START}\n{markdown()}\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reward", choices=[*TITLES, "docs"])
    parser.add_argument("photographs", nargs="*", help="clean ones; default: those of scikit-image")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--crop-px", type=int, default=288)
    parser.add_argument("--figure", type=Path, help="write the ladders here")
    args = parser.parse_args()
    if args.reward == "docs":
        write_page()
        return
    sources = (args.photographs or bundled_photographs())[: args.count]
    photographs, refused = load_photographs(sources, crop_px=args.crop_px)
    if refused:
        sys.exit("\n".join(reason for _, reason in refused))
    report = run_check(make(args.reward, args.model), tqdm(photographs, desc=args.reward))
    write_result(f"check_{args.reward}", summary(report, args.crop_px))
    if args.figure:
        ladder_figure(report, args.figure)


if __name__ == "__main__":
    main()
