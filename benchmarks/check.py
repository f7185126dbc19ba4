"""What `zoomiqa check` says about the embedded model, NIQE and Laplacian variance.

python benchmarks/check.py direct|reason|sampled|niqe|laplacian [PHOTOGRAPHS...] [--model nano] [--count 4]
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
from zoomiqa_reward.check import bundled_photographs, find_reward, ladder_figure, load_photographs, run_check

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
    for ladder in found["measures"]["ladders"]:
        del ladder["rows"]
    return {
        "reward": found["reward"], "fingerprint": found["fingerprint"], "crop_px": crop_px,
        "photographs": [Path(name).name for name in report.photographs], "num_failed": len(report.errors),
        "notes": found["notes"], "verdicts": found["verdicts"], "measures": found["measures"],
    }  # fmt: skip


def figure(value: float | None, digits: int = 2) -> str:
    """Return a number for the table; a dash stands for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def ladder(kind: str) -> Callable[[dict[str, Any]], str]:
    """Return what reads one ladder's order from a result's measures."""
    return lambda m: next(figure(one["pairs_in_order"]) for one in m["ladders"] if one["kind"] == kind)


def transport(place: int) -> Callable[[dict[str, Any]], str]:
    """Return what reads one transport's change and kept order from a result's measures."""
    return lambda m: " / ".join(figure(m["transports"][place][key]) for key in ("change_to_spread", "order_kept"))


def rise(measures: dict[str, Any]) -> str:
    """Return the adversarial rise, or why there is none."""
    ascent = measures["ascent"]
    return ascent["error"] or figure(ascent["rise_to_spread"])


ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "photographs": lambda m: str(m["num_photographs"]),
    "pairs in order, all ladders": lambda m: figure(m["pairs_in_order"]),
    "pairs far apart": lambda m: figure(m["far_pairs_in_order"]),
    **{f"ladder `{kind}`": ladder(kind) for kind in ("blur", "noise", "jpeg", "downsample", "oversharpen", "detail")},
    "repeat deviation": lambda m: figure(m["repeat_deviation"], 3),
    "noise to signal": lambda m: figure(m["noise_to_signal"]),
    "PNG: change / order kept": transport(0),
    "JPEG 75": transport(1),
    "resize 7/8": transport(2),
    "rise by 2/255, in spreads": rise,
    "measured": lambda m: figure(m["measured_share"]),
    "images per second": lambda m: figure(m["images_per_s"], 1),
}


def markdown() -> str:
    """Return the table of every reward that has been checked."""
    results = {name: RESULTS / f"check_{name}.json" for name in TITLES}
    found = {name: json.loads(path.read_text()) for name, path in results.items() if path.exists()}
    lines = ["| | " + " | ".join(TITLES[name] for name in found) + " |", "|---" * (len(found) + 1) + "|"]
    for title, read in ROWS.items():
        lines.append(f"| {title} | " + " | ".join(read(result["measures"]) for result in found.values()) + " |")
    for use in ("best-of-n", "dpo", "gradients"):
        lines.append(f"| **{use}** | " + " | ".join(r["verdicts"][use]["verdict"] for r in found.values()) + " |")
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
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--crop-px", type=int, default=224)
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
