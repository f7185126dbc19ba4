"""Best-of-N's promises, kept: the same candidates at any N and batch size, nothing lost or doubled after kills, memory.

python benchmarks/candidates.py --image PHOTO [--kills 3] [--memory-px 1024] [--parts memory identity kills]

Identity: strict, N in {1, 4, 16}, batch in {1, 4}, compared pixel by pixel. Kills: `zoomiqa best-of-n` is killed
(SIGKILL) at random moments before its last candidate and started again until it ends; its candidates and scores must
equal those of a run that was left alone. Memory: an image of `--memory-px` a side is restored x4 and ranked in a
process of its own. Parts that are not asked for stay as the result file has them.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result
from PIL import Image

from restoration import Restorer, best_of_n
from restoration.degradation.classical import degrade_for_demo
from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image, save_png
from zoomiqa_reward.runs.json_lines import read_lines

PARTS = ("memory", "identity", "kills")


def identity(lq: Path, sizes: tuple[int, ...], batches: tuple[int, ...]) -> dict[str, Any]:
    """Return how many images were compared and how many differ from those of the largest run of single ones."""
    restorer, reward = Restorer.from_pretrained("nano"), ZoomIQAReward(ZoomIQA.from_pretrained("nano"))
    runs = {
        (n, batch): best_of_n(restorer, lq, reward, n=n, seed=5, batch_size=batch, keep=n, progress=False)
        for n in sizes for batch in batches
    }  # fmt: skip
    truth = runs[max(sizes), 1].candidates
    compared = different = 0
    for result in runs.values():
        for one, true in zip(result.candidates, truth, strict=False):
            compared += 1
            same = np.array_equal(np.asarray(one.image), np.asarray(true.image)) and one.score == true.score
            different += not same
    distinct = len({one.pixels for one in truth})
    return {"n": sizes, "batch": batches, "compared": compared, "different": different, "distinct_candidates": distinct}


def kills(lq: Path, count: int, n: int, seed: int) -> dict[str, Any]:
    """Return what killing and starting again left, against a run that was left alone."""
    with tempfile.TemporaryDirectory() as scratch:
        alone, broken = Path(scratch) / "alone", Path(scratch) / "broken"
        subprocess.run(_command(lq, alone, n), check=True, capture_output=True)
        rng, killed_at, lines = random.Random(seed), [], broken / "candidates.jsonl"
        for least in sorted(rng.sample(range(1, n - 1), count)):
            process = subprocess.Popen(_command(lq, broken, n), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and _count_lines(lines) < least:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 2))  # somewhere in the next candidate
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL or _count_lines(lines) >= n:
                raise RuntimeError("the run was over before it was killed: take a larger --n")
            killed_at.append(_count_lines(lines))
        subprocess.run(_command(lq, broken, n), check=True, capture_output=True)
        rows = [{row["index"]: row for row in read_lines(folder / "candidates.jsonl")} for folder in (alone, broken)]
        same = [all(rows[0][k][key] == rows[1][k][key] for key in ("seed", "score", "pixels")) for k in sorted(rows[0])]
        best = [json.loads((folder / "run.json").read_text())["ranking"][0]["index"] for folder in (alone, broken)]
        return {
            "n": n, "killed_after_lines": killed_at, "lines": _count_lines(lines), "same_candidates": sum(same),
            "same_best": best[0] == best[1], "best_png_equal": _same(alone / "best.png", broken / "best.png"),
        }  # fmt: skip


def memory(px: int, n: int) -> dict[str, Any]:
    """Return peak resident memory of a fresh process that restores a px x px image x4, `n` times, and ranks."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (px // 16, px // 16, 3), dtype=np.uint8))
        small.resize((px, px), Image.Resampling.BICUBIC).save(Path(scratch) / "lq.png")
        subprocess.run(_command(Path(scratch) / "lq.png", Path(scratch) / "run", n), check=True, capture_output=True)
        with Image.open(Path(scratch) / "run" / "best.png") as best:
            size = best.size
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"input_px": px, "output": size, "n": n, "peak_gib": peak, "seconds": round(time.monotonic() - began, 1)}


def _command(lq: Path, out: Path, n: int) -> list[str]:
    call = "import sys; from zoomiqa_reward.cli.main import main; sys.exit(main())"
    return [sys.executable, "-c", call, "best-of-n", str(lq), "--n", str(n), "--seed", "5", "--out", str(out)]


def _count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, required=True, help="a photograph; it is degraded x4 first")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--memory-px", type=int, default=1024)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    image = load_image(args.image)[:, :384, :384]
    with tempfile.TemporaryDirectory() as scratch:
        lq = save_png(degrade_for_demo(image, scale=4), Path(scratch) / "lq.png")
        made = {
            "memory": lambda: memory(args.memory_px, 2),
            "identity": lambda: identity(lq, (1, 4, args.n), (1, 4)),
            "kills": lambda: kills(lq, args.kills, args.n, seed=1),
        }
        file = RESULTS / "candidates.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        result = {name: made[name]() if name in args.parts else known[name] for name in PARTS}
    write_result("candidates", result)


if __name__ == "__main__":
    main()
