"""Degrade a photograph, restore it in ten classical ways, rate, explain and rank the results.

    python -m restoration.demo --out demo/                         a photograph that scikit-image brings
    python -m restoration.demo --image photo.jpg --out demo/       your own; a copy of it is degraded
    python -m restoration.demo --image small.jpg --as-is --out demo/   your own low-quality image, as it is

Everything runs on a CPU with the embedded model and without a network.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from restoration.classical import classical_candidates, degrade_for_demo
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.commands.measure import words
from zoomiqa_reward.commands.measuring import measure
from zoomiqa_reward.commands.output import progress, table
from zoomiqa_reward.commands.placing import explained, place, write_sheet
from zoomiqa_reward.images import load_image, save_png, to_pil

PHOTOGRAPH = "astronaut.png"
"""Public domain (NASA), 512 x 512, part of scikit-image's wheel: nothing is downloaded."""
MAX_SIDE_PX = 640
"""Longest side of the restored pictures; a larger photograph is shrunk (a low-quality one as is: cropped) first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return 0, or 1 with one line on stderr when an input or the output cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m restoration.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--image", type=Path, help="your own photograph")
    parser.add_argument("--as-is", action="store_true", help="take the image itself as the low-quality input")
    parser.add_argument("--scale", type=int, default=4, choices=(2, 3, 4), help="how many times larger to restore")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (default: demo)")
    parser.add_argument("--model", default="nano", help="'nano', a hub id or a folder")
    parser.add_argument("--device", help="cpu, cuda, ...")
    args = parser.parse_args(argv)
    if args.as_is and args.image is None:
        parser.error("--as-is needs --image")
    try:
        image = load_image(args.image or bundled_photograph())
        image_hr, image_lq = prepare(image, args.scale, as_is=args.as_is)
        iqa = ZoomIQA.from_pretrained(args.model, device=args.device)
        report = run(iqa, image_lq, image_hr, args.scale, args.out)
    except (ValueError, OSError, ImportError) as error:  # ImageError is a ValueError
        print(f"demo: {error}", file=sys.stderr)
        return 1
    show(report, args.out)
    return 0


def bundled_photograph() -> Path:
    """Return the path of the photograph inside scikit-image's wheel. Raises ImportError naming the extra."""
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError("the photograph comes with scikit-image: pip install 'zoomiqa-reward[demo]'") from error
    return Path(skimage.data.__file__).parent / PHOTOGRAPH


def prepare(image: Tensor, scale: int, *, as_is: bool) -> tuple[Tensor | None, Tensor]:
    """Return (original or None, low-quality input), both CHW, so that restorations stay within `MAX_SIDE_PX`."""
    if as_is:
        height, width = (min(side, MAX_SIDE_PX // scale) for side in image.shape[1:])
        top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
        return None, image[:, top : top + height, left : left + width]
    if max(image.shape[1:]) > MAX_SIDE_PX:
        picture = to_pil(image)
        picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        image = load_image(picture)
    height, width = (side // scale * scale for side in image.shape[1:])
    original = image[:, :height, :width]
    return original, degrade_for_demo(original, scale=scale)


def run(iqa: ZoomIQA, image_lq: Tensor, image_hr: Tensor | None, scale: int, out: Path) -> dict[str, Any]:
    """Make, rate, rank and explain the candidates, write `out`, and return what stands in `ranking.json`."""
    found = classical_candidates(image_lq, scale)
    folder = out / "candidates"
    folder.mkdir(parents=True, exist_ok=True)
    save_png(image_lq, out / "input_lq.png")
    files = [str(save_png(candidate, folder / f"{name}.png")) for name, candidate in found.items()]
    # What is rated is the file that was saved, so `zoomiqa rank demo/candidates` gives these very numbers.
    placed, gap = place(list(progress(measure(iqa, files, mode="direct"), len(files), "rating", streaming=False)))
    placed = list(progress(explained(iqa, placed), len(files), "explaining", streaming=False))
    write_sheet(placed, out / "sheet.png")
    report = {
        "model": iqa.name, "fingerprint": iqa.fingerprint, "scale": scale, "original": None,
        "gap": gap if math.isfinite(gap) else None,
        "candidates": [one.measured.record.as_json() | {"rank": one.rank} | words(one.measured.assessment)
                       for one in placed],
    }  # fmt: skip
    if image_hr is not None:
        original = str(save_png(image_hr, out / "original.png"))
        report["original"] = next(measure(iqa, [original], mode="direct")).record.as_json()
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (out / "ranking.json").write_text(text + "\n", encoding="utf-8")
    table([one.measured.record for one in placed], [str(one.rank or "-") for one in placed])
    return report


def show(report: dict[str, Any], out: Path) -> None:
    """Print what came out and what to look at."""
    best = report["candidates"][0]
    if report["original"] is not None and report["original"]["valid"]:
        print(f"\nthe photograph before it was degraded: {report['original']['rating']:.2f} of 5")
    if best["valid"]:
        last = best["sections"][-1] if best["sections"] else {}
        sections = [f"{label}: {' '.join(text.split())}" for label, text in last.items()]
        print("\n".join([f"\nbest: {Path(best['image']).stem}, in the model's words:", *(f"  {s}" for s in sections)]))
    print(
        f"""
Look at
  {out / "sheet.png"}     the candidates, best first: rating, reason, the region that round 2 zoomed into
  {out / "ranking.json"}  the same in numbers, with both rounds' answers
  {out / "input_lq.png"}  what was restored; {out / "candidates"} holds the restorations
Again from the files: zoomiqa rank {out / "candidates"}"""
    )


if __name__ == "__main__":
    sys.exit(main())
