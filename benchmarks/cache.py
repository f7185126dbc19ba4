"""The score cache: two processes on one file, 1000 images: nothing lost, nothing wrong, and how much faster.

python benchmarks/cache.py [--model nano] [--count 1000] [--side 56]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import write_result
from torch import Tensor

from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images.content import contentless
from zoomiqa_reward.rewards.cached import CachedReward

BATCH = 20


def make_images(count: int, side: int) -> list[Tensor]:
    """Return random images with content, the same in every process."""
    coarse = torch.rand(count, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    images = list(torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear"))
    if empty := sum(contentless(image) is not None for image in images):
        raise SystemExit(f"{empty} images would not be rated")
    return images


def child(args: argparse.Namespace) -> None:
    """Rate all images through the cache, starting at `--offset`, and print what came out."""
    images = make_images(args.count, args.side)
    order = [(args.offset + place) % args.count for place in range(args.count)]
    values = torch.zeros(args.count)
    reward = ZoomIQAReward(ZoomIQA.from_pretrained(args.model))
    with CachedReward(reward, args.file) as cached:
        _ = reward.fingerprint  # hashes the weights: not the cache's time
        began = time.time()
        for start in range(0, args.count, BATCH):
            places = order[start : start + BATCH]
            values[places] = cached([images[place] for place in places]).value
        stats = cached.stats
    print(json.dumps({"seconds": time.time() - began, "hits": stats.hits, "misses": stats.misses,
                      "entries": stats.entries, "bytes": stats.size_bytes, "values": values.tolist()}))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--side", type=int, default=56)
    parser.add_argument("--offset", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.file is not None:
        child(args)
        return
    images = make_images(args.count, args.side)
    reward = ZoomIQAReward(ZoomIQA.from_pretrained(args.model))
    began = time.time()
    expected = reward(images).value
    plain_s = time.time() - began
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            __file__,
            "--model",
            args.model,
            "--count",
            str(args.count),
            "--side",
            str(args.side),
        ]
        command += ["--file", str(Path(folder) / "scores.sqlite"), "--offset"]
        both = [
            subprocess.Popen([*command, str(offset)], stdout=subprocess.PIPE, text=True)
            for offset in (0, args.count // 2)
        ]
        cold = [json.loads(process.communicate()[0].strip().splitlines()[-1]) for process in both]
        done = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
        warm = json.loads(done.stdout.strip().splitlines()[-1])
    wrong = sum(int((torch.tensor(one["values"]) != expected).sum()) for one in (*cold, warm))
    write_result(
        "cache",
        {
            "images": args.count,
            "side_px": args.side,
            "wrong_values": wrong,
            "entries_lost": args.count - warm["entries"],
            "two_processes": [{key: one[key] for key in ("hits", "misses", "seconds")} for one in cold],
            "warm": {key: warm[key] for key in ("hits", "misses", "seconds")},
            "seconds_without_cache": plain_s,
            "speed_up_warm": plain_s / warm["seconds"],
            "bytes_an_entry": warm["bytes"] / max(warm["entries"], 1),
        },
    )


if __name__ == "__main__":
    main()
