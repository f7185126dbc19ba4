"""The reward server over HTTP: bit-equal replies, a replica killed under load, and throughput.

python benchmarks/serving.py --images DIR [--requests 200] [--replicas 2] [--threads 1] [--model nano]

Needs the extra `serve`. Refused requests (oversized, malformed, unauthorised, pickle, slow):
tests/zoomiqa_reward/test_serving_refusals.py.
"""

import argparse
import contextlib
import os
import secrets
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import write_result
from torch import Tensor

from train_iqa.nano.synthetic import list_photographs
from zoomiqa_reward import ZoomIQA, ZoomIQAReward
from zoomiqa_reward.images import load_image
from zoomiqa_reward.serving import RemoteReward, RewardServer, RewardSpec, ServeConfig

SIDES = ((224, 224), (112, 168), (168, 112), (96, 96))
"""Heights and widths of the crops, in turn: mixed shapes in every batch."""
CLIENTS = 32
"""Requests under way at once."""


def mixed(folder: Path, count: int) -> list[Tensor]:
    """Return crops of photographs, every second one as 8 bits (travels as PNG), the others as odd floats."""
    images = []
    paths = list_photographs(folder)
    for k in range(count):
        height, width = SIDES[k % len(SIDES)]
        crop = load_image(paths[k % len(paths)])[:, :height, :width]
        images.append(crop if k % 2 else crop * 0.999)
    return images


def one_by_one(ask: Any, images: list[Tensor]) -> tuple[Tensor, float]:
    """Return the values of one call per image, and the seconds taken."""
    began = time.monotonic()
    value = torch.cat([ask(image).value for image in images])
    return value, time.monotonic() - began


def concurrent(url: str, token: str, images: list[Tensor], *, batched: bool) -> tuple[Tensor, float]:
    """Return the values of one request per image, `CLIENTS` at a time, and the seconds taken."""
    with RemoteReward(url, token=token, batched=batched) as remote, ThreadPoolExecutor(CLIENTS) as pool:
        began = time.monotonic()
        value = torch.cat([scores.value for scores in pool.map(remote, images)])
        return value, time.monotonic() - began


def replica_pids(app_name: str) -> list[int]:
    """Return the processes of a server's replicas, by the titles that Ray gives them; Linux."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.joinpath("cmdline").read_bytes().startswith(f"ray::ServeReplica:{app_name}".encode()):
                found.append(int(process.name))
    return found


def kill_under_load(server: RewardServer, token: str, images: list[Tensor], expected: Tensor) -> dict[str, Any]:
    """Kill one replica while requests without and with retries are answered; compare every value."""
    url, pids = server.url, replica_pids(server.app_name)
    done = {1: 0, 4: 0}
    kinds: dict[str, int] = {}
    counts = {"wrong": 0, "lost_without_retries": 0, "lost_with_retries": 0, "without_a_rating": 0}
    lock = threading.Lock()

    def ask(attempts: int, place: int) -> None:
        scores = clients[attempts](images[place])
        with lock:
            done[attempts] += 1
            if not bool(scores.valid[0]) and bool(expected[place].isnan()):
                counts["without_a_rating"] += 1  # an image that shows nothing has none here either
            elif not bool(scores.valid[0]):
                counts["lost_without_retries" if attempts == 1 else "lost_with_retries"] += 1
                kinds[scores.info["kinds"][0]] = kinds.get(scores.info["kinds"][0], 0) + 1
            elif scores.value[0] != expected[place]:
                counts["wrong"] += 1

    with RemoteReward(url, token=token, attempts=1) as once, RemoteReward(url, token=token, attempts=8) as patient:
        clients = {1: once, 4: patient}
        with ThreadPoolExecutor(CLIENTS) as pool:
            tasks = [pool.submit(ask, attempts, place) for place in range(len(images)) for attempts in clients]
            while sum(done.values()) < len(tasks) // 4:
                time.sleep(0.05)
            os.kill(pids[0], signal.SIGKILL)
            for task in tasks:
                task.result()
    return {"replicas_before_kill": len(pids), "answers": sum(done.values()), **counts, "kinds": kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images = mixed(args.images, args.requests)
    iqa = ZoomIQA.from_pretrained(args.model, device="cpu")
    local = ZoomIQAReward(iqa)
    local(images[0])  # warm
    expected, local_s = one_by_one(local, images)
    token = secrets.token_urlsafe(32)
    config = ServeConfig(
        spec=RewardSpec(model=args.model, device="cpu"), port=0, replicas=args.replicas, threads=args.threads,
        tokens=(token,),
    )  # fmt: skip
    began = time.monotonic()
    with RewardServer(config) as server:
        start_s = time.monotonic() - began
        concurrent(server.url, token, images[:8], batched=False)  # warm
        strict, strict_s = concurrent(server.url, token, images, batched=False)
        batched, batched_s = concurrent(server.url, token, images, batched=True)
        killed = kill_under_load(server, token, images, expected)
    difference = (batched - expected).abs()
    same_gaps = torch.equal(batched.isnan(), expected.isnan())
    write_result(
        "serving",
        {
            "requests": len(images),
            "replicas": args.replicas,
            "threads": args.threads,
            "load_average": round(os.getloadavg()[0], 1),
            "strict_bit_equal": torch.allclose(strict, expected, rtol=0, atol=0, equal_nan=True),
            "batched_max_difference": float(difference.nan_to_num(0.0 if same_gaps else torch.inf).max()),
            "local_one_by_one_per_s": round(len(images) / local_s, 2),
            "strict_per_s": round(len(images) / strict_s, 2),
            "batched_per_s": round(len(images) / batched_s, 2),
            "start_s": round(start_s, 1),
            "replica_killed": killed,
        },
    )


if __name__ == "__main__":
    main()
