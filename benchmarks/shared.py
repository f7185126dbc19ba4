"""Many small images rated by several processes, some of which are killed, against one process: the same table?

python benchmarks/shared.py [--count 20000] [--processes 4] [--kill 2] [--model nano] [--batched]
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import write_result
from PIL import Image
from tqdm import trange

SIDE_PX = 32


def start(folder: Path, model: str, *options: str) -> subprocess.Popen[bytes]:
    """Start `zoomiqa score` on the images of the folder."""
    command = [sys.executable, "-m", "zoomiqa_reward.cli.main", "score", "in", "--model", model, "--device", "cpu"]
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            [*command, *options], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
        )


def make_images(folder: Path, count: int) -> None:
    """Write crops of a noise field with coarse and fine structure."""
    folder.mkdir()
    random_numbers = np.random.default_rng(0)
    small = random_numbers.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    field = np.asarray(Image.fromarray(small).resize((1200, 1200), Image.Resampling.BICUBIC)).astype(int)
    field = np.clip(field + random_numbers.integers(-9, 10, field.shape), 0, 255).astype(np.uint8)
    for index in trange(count, desc="images", disable=None):
        y, x = random_numbers.integers(0, 1200 - SIDE_PX, 2)
        Image.fromarray(field[y : y + SIDE_PX, x : x + SIDE_PX]).save(folder / f"{index:06}.png")


def kill_some(workers: list[subprocess.Popen[bytes]], parts: Path, count: int, blocks: int) -> list[int]:
    """Kill random workers at random shares of the work; return how many parts were there each time."""
    draw, killed = random.Random(0), []
    for share, worker in zip(
        sorted(draw.uniform(0.1, 0.6) for _ in range(count)), draw.sample(workers, count), strict=True
    ):
        while len(list(parts.glob("*.jsonl"))) < share * blocks:
            if worker.poll() is not None:
                raise SystemExit("a worker ended too early; see its log")
            time.sleep(0.05)
        worker.kill()
        worker.wait()
        killed.append(len(list(parts.glob("*.jsonl"))))
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kill", type=int, default=2)
    parser.add_argument("--model", default="nano", help="'nano' or a folder; a small model tests the sharing as well")
    parser.add_argument("--batched", action="store_true", help="several images per forward pass: faster")
    args = parser.parse_args()
    from zoomiqa_reward.runs.shared_work import block_size

    model = str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model
    folder = Path(tempfile.mkdtemp(prefix="shared-"))
    make_images(folder / "in", args.count)
    began = time.monotonic()
    options = ["--batched"] if args.batched else []
    workers = [start(folder, model, "--out", "many.csv", "--shared", *options) for _ in range(args.processes)]
    blocks = -(-args.count // block_size(args.count))
    killed = kill_some(workers, folder / "many.csv.parts", args.kill, blocks)
    codes = [worker.wait() for worker in workers]
    together_s = time.monotonic() - began
    began = time.monotonic()
    start(folder, model, "--out", "one.csv", *options).wait()
    alone_s = time.monotonic() - began
    many, one = (folder / "many.csv").read_bytes(), (folder / "one.csv").read_bytes()
    names = [line.split(b",", 1)[0] for line in many.splitlines()[1:]]
    result = {
        "images": args.count, "processes": args.processes, "parts_at_each_kill": killed, "parts": blocks,
        "exit_codes": codes, "rows": len(names), "rows_twice": len(names) - len(set(names)),
        "equal_to_one_process": many == one, "seconds_together": round(together_s, 1),
        "seconds_alone": round(alone_s, 1),
    }  # fmt: skip
    write_result("shared", result)
    shutil.rmtree(folder)
    if not (many == one and len(names) == len(set(names)) == args.count):
        sys.exit("the table is not that of one process")


if __name__ == "__main__":
    main()
