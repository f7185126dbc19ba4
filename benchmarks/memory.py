"""Peak memory of rating one large image, over the process that has the model loaded and is idle.

python benchmarks/memory.py [--model nano] [--width 4000] [--height 3000] [--dtype bfloat16] [--name memory]
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from common import write_result
from PIL import Image

from zoomiqa_reward import ZoomIQA


def resident_mib() -> float:
    """Return the process' resident memory now."""
    text = Path("/proc/self/statm").read_text().split()
    return int(text[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--dtype", default=None, help="of the weights (default: the model's own)")
    parser.add_argument("--name", default="memory", help="of the result file")
    args = parser.parse_args()
    iqa = ZoomIQA.from_pretrained(args.model, dtype=args.dtype)
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (args.height // 20, args.width // 20, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.png"
        small.resize((args.width, args.height), Image.Resampling.BICUBIC).save(path)
        del small
        warm = iqa.rate([rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)], strict=True)
        if not bool(warm.valid[0]):  # library warm-up is not the image's memory
            raise SystemExit(f"the first image was not rated: {warm.errors[0]}")
        idle = resident_mib()
        began = time.time()
        ratings = iqa.rate([path], strict=True)
    result = {
        "dtype": str(iqa.checkpoint.dtype).removeprefix("torch."),
        "pixels": [args.width, args.height],
        "rating": float(ratings.mean[0]),
        "valid": bool(ratings.valid[0]),
        "idle_mib": round(idle),
        "peak_over_idle_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - idle),
        "seconds": round(time.time() - began, 1),
    }
    write_result(args.name, result)


if __name__ == "__main__":
    main()
