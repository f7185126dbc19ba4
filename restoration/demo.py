"""Degrade a photograph, restore it eight times by diffusion, rate all, explain the best three, keep the best.

    python -m restoration.demo                               a photograph that scikit-image brings
    python -m restoration.demo --image photo.jpg             your own; a copy of it is degraded
    python -m restoration.demo --image small.jpg --as-is     your own low-quality image, as it is

Everything runs on a CPU with the embedded model and without a network.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from restoration.degradation.classical import degrade_for_demo
from restoration.evaluation.measuring import bicubic
from restoration.metrics.registry import fsim
from restoration.restorer.restorer import Restorer
from restoration.selection.best_of_n import Cascade, best_of_n
from restoration.selection.pool import varied_pool
from restoration.selection.result import BestOfN
from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images.loading import load_image, save_png, to_pil
from zoomiqa_reward.runs.json_lines import plain, write_json
from zoomiqa_reward.runs.program import Parser, run_program

PHOTOGRAPH = "astronaut.png"
"""Public domain (NASA), 512 x 512, part of scikit-image's wheel: nothing is downloaded."""
MAX_SIDE_PX = 640
"""Longest side of the restored images; a larger photograph is shrunk (a low-quality one as is: cropped) first."""
SCALE = 4
NUM_CANDIDATES = 8
NUM_EXPLAINED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return 0, or 1 with one line on stderr when an input or the output cannot be used."""
    parser = Parser(prog="python -m restoration.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--image", type=Path, help="your own photograph")
    parser.add_argument("--as-is", action="store_true", help="take the image itself as the low-quality input")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="a folder is made in it (default: demo)")
    parser.add_argument("--model", default="nano", help="the judge: 'nano', a hub id or a folder")
    parser.add_argument("--restorer", default="nano", help="x4 pipeline: 'nano', a hub id or a folder")
    parser.add_argument("--device", help="cpu, cuda, ...")
    args = parser.parse_args(argv)
    if args.as_is and args.image is None:
        parser.error("--as-is needs --image")
    return run_program("demo", lambda: _work(args))


def _work(args: argparse.Namespace) -> int:
    file = args.image or bundled_photograph()
    image_hr, image_lq = prepare(load_image(file), as_is=args.as_is)
    iqa = ZoomIQA.from_pretrained(args.model, device=args.device)
    restorers = varied_pool(args.restorer, scale=SCALE, device=args.device, size=NUM_CANDIDATES)
    out = args.out / file.stem
    result = run(iqa, restorers, image_lq, out)
    report = compare(iqa, result, image_lq, image_hr)
    write_json(out / "comparison.json", report)
    if image_hr is not None:
        save_png(image_hr, out / "original.png")
    show(result, report, out)
    return 0


def bundled_photograph() -> Path:
    """Return the path of the photograph inside scikit-image's wheel. Raises ImportError naming the extra."""
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError("the photograph comes with scikit-image: pip install 'zoomiqa-reward[demo]'") from error
    return Path(skimage.data.__file__).parent / PHOTOGRAPH


def prepare(image: Tensor, *, as_is: bool) -> tuple[Tensor | None, Tensor]:
    """Return (original or None, low-quality input), both CHW, so that restorations stay within `MAX_SIDE_PX`."""
    if as_is:
        height, width = (min(side, MAX_SIDE_PX // SCALE) for side in image.shape[1:])
        top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
        return None, image[:, top : top + height, left : left + width]
    if max(image.shape[1:]) > MAX_SIDE_PX:
        thumbnail = to_pil(image)
        thumbnail.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        image = load_image(thumbnail)
    height, width = (side // SCALE * SCALE for side in image.shape[1:])
    original = image[:, :height, :width]
    return original, degrade_for_demo(original, scale=SCALE)


def run(iqa: ZoomIQA, restorers: list[Restorer], image_lq: Tensor, out: Path) -> BestOfN:
    """Draw, rate, and explain the best; an interrupted run continues."""
    explain = Cascade(reward=ZoomIQAReward(iqa, mode="reason"), top=NUM_EXPLAINED)
    return best_of_n(restorers, image_lq, ZoomIQAReward(iqa), n=NUM_CANDIDATES, out=out, cascade=explain)


def compare(iqa: ZoomIQA, result: BestOfN, image_lq: Tensor, image_hr: Tensor | None) -> dict[str, Any]:
    """Return what `comparison.json` holds: ratings, None where there is none, and FSIM where the original is known."""
    images = {"bicubic": bicubic(image_lq, SCALE), "chosen": load_image(result.best.image)}
    if image_hr is not None:
        images["original"] = image_hr
    ratings = {name: float(iqa.rate([image], strict=True).mean[0]) for name, image in images.items()}
    report: dict[str, Any] = {"rating": plain(ratings)}
    if image_hr is not None:
        drawn = [
            fsim(load_image(candidate.image), image_hr) for candidate in result.candidates if candidate.has_image()
        ]
        report["fsim"] = {name: fsim(images[name], image_hr) for name in ("bicubic", "chosen")}
        report["fsim"] |= {"mean_of_candidates": sum(drawn) / len(drawn), "best_of_candidates": max(drawn)}
    return report


def show(result: BestOfN, report: dict[str, Any], out: Path) -> None:
    """Print what came out and what to look at."""
    for name, rating in report["rating"].items():
        print(f"rating of {name + ':':10} {'not measured' if rating is None else f'{rating:.2f} of 5'}")
    if "fsim" in report:
        similarity = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in report["fsim"].items())
        print(f"FSIM to the original, which no rating saw: {similarity}")
    if result.best.explanation is not None:
        print(f"chosen: seed {result.best.seed}; in the model's words: {result.best.explanation.rationale}")
    for note in result.notes:
        print(f"note: {note}")
    print(
        f"""
Look at
  {out / "sheet.png"}     the input and the candidates, best first: ratings, reason, region of round 2
  {out / "best.png"}      the chosen one; {out / "input.png"} is what was restored
  {out / "run.json"}      seeds, scores, versions; {out / "candidates"} holds all images"""
    )


if __name__ == "__main__":
    sys.exit(main())
