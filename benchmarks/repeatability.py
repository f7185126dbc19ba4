"""The same image, the same rating: strict in any company and in another process, batched against strict.

python benchmarks/repeatability.py --images DIR [--model nano] [--count 64]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from common import write_result

from train_iqa.nano.synthetic import list_photographs
from zoomiqa_reward import ZoomIQA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--reason-count", type=int, default=100)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    paths = list_photographs(args.images)
    iqa = ZoomIQA.from_pretrained(args.model)
    first = paths[: args.count]
    strict = iqa.rate(first, strict=True)
    if args.child:
        print(json.dumps([m.hex() for m in strict.mean.tolist()]))
        return
    alone = torch.cat([iqa.rate([p], strict=True).mean for p in first])
    backwards = iqa.rate(first[::-1], strict=True).mean.flip(0)
    command = [sys.executable, __file__, "--images", str(args.images), "--model", args.model, "--child"]
    child = subprocess.run([*command, "--count", str(args.count)], capture_output=True, text=True, check=True)
    other = json.loads(child.stdout.strip().splitlines()[-1])
    batched = iqa.rate(first, strict=False)
    texts = [
        ["".join(t.text for t in a.turns) for a in iqa.assess(paths[: args.reason_count], strict=s)]
        for s in (True, False)
    ]
    same = [a == b for a, b in zip(*texts, strict=True)]
    write_result(
        "repeatability",
        {
            "images": len(first),
            "strict_equal_second_call_alone": bool(torch.equal(alone, strict.mean)),
            "strict_equal_in_other_order": bool(torch.equal(backwards, strict.mean)),
            "strict_equal_in_other_process": [m.hex() for m in strict.mean.tolist()] == other,
            "batched_direct_max_difference": float((batched.mean - strict.mean).abs().max()),
            "batched_reason_images": len(same),
            "batched_reason_same_text_share": sum(same) / len(same),
        },
    )


if __name__ == "__main__":
    main()
