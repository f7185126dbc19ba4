"""Everything worth knowing of a lent GPU in 150 seconds: speed at the real size, strictness, memory.

python benchmarks/gpu.py [--seconds 150] [--out gpu.json] [--device cuda] [--thin]

A random Qwen2.5-VL-7B (bfloat16, 1008 x 756 px) and the embedded model. The most wanted parts come first; each prints a
line and rewrites the file when it is done, and a part that fails says why and the next begins. When the time is over,
the process ends with what it has. `--thin --device cpu` runs the same code on a thin 7B, which proves that it runs.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import torch  # noqa: E402
from common import weights  # noqa: E402
from photographs import photograph  # noqa: E402
from plain_way import plain_write  # noqa: E402
from sizes_7b import TEXT_7B, VISION_7B  # noqa: E402
from thin_7b import SIDES, counted, random_checkpoint, thin_7b  # noqa: E402
from tiny import make_image  # noqa: E402

from zoomiqa_reward import ZoomIQA  # noqa: E402
from zoomiqa_reward.model.budget import pass_pixels  # noqa: E402
from zoomiqa_reward.model.decode import write_answers  # noqa: E402
from zoomiqa_reward.model.direct import leaf_logprobs, rate_direct, trie_of  # noqa: E402
from zoomiqa_reward.model.generate import SampledChoice, Sampling, generate, plain_new_ids  # noqa: E402
from zoomiqa_reward.model.inputs import make_row  # noqa: E402
from zoomiqa_reward.model.numerics import canonical_numerics  # noqa: E402
from zoomiqa_reward.model.plain import plain_leaf_logprobs  # noqa: E402
from zoomiqa_reward.model.reading import SharedReading  # noqa: E402
from zoomiqa_reward.model.tower import read_images  # noqa: E402
from zoomiqa_reward.model.turns import round1  # noqa: E402

TOKENS = 48
"""Written in a round, by both ways; random weights end no answer."""


class Run:
    """What was measured so far, and how much time is left."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.lock = args, threading.Lock()
        command = f"python benchmarks/gpu.py --seconds {args.seconds:g} --out DIR/gpu.json"
        self.result: dict[str, Any] = {"command": command, "weights": weights()}
        threading.Thread(target=self._end_in_time, daemon=True).start()

    def left(self) -> float:
        return self.args.seconds - (time.monotonic() - BEGAN)

    def part(self, name: str, measure: Callable[[], Any], needed: float) -> None:
        """Measure, print and save; skip where fewer than `needed` seconds are left."""
        try:
            value = measure() if self.left() > needed else f"skipped: {self.left():.0f} s left, {needed:.0f} needed"
        except Exception as error:  # noqa: BLE001 - a part that fails must not cost the others
            value = {"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}
        self.save(name, value)
        if self.args.device == "cuda":
            torch.cuda.empty_cache()

    def save(self, name: str, value: Any) -> None:
        with self.lock:
            self.result[name] = value
            print(f"[{time.monotonic() - BEGAN:6.1f} s] {name}: {json.dumps(value)}", flush=True)
            self.args.out.write_text(json.dumps(self.result, indent=1) + "\n")

    def _end_in_time(self) -> None:
        while self.left() > 1:
            time.sleep(0.2)
        self.save("stopped", f"the {self.args.seconds:.0f} s are over")
        os._exit(0)

    def seconds(self, call: Callable[[], Any], repeats: int = 3) -> float:
        """Return the median of synchronised runs after one to warm up."""
        taken = []
        for number in range(repeats + 1):
            self.wait()
            began = time.perf_counter()
            call()
            self.wait()
            taken += [time.perf_counter() - began] if number else []
        return round(statistics.median(taken), 5)

    def wait(self) -> None:
        if self.args.device == "cuda":
            torch.cuda.synchronize()

    def peak(self, call: Callable[[], Any]) -> float:
        """Return GiB over what is allocated already."""
        if self.args.device != "cuda":
            return float("nan")
        idle = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return round((torch.cuda.max_memory_allocated() - idle) / 2**30, 2)


def bits(args: argparse.Namespace) -> dict[str, Any]:
    """Strict ratings of the embedded model: again, turned around, alone; float32 against the CPU; bfloat16."""
    images = [photograph(seed, 200 + 40 * seed, 260) for seed in range(4)]
    iqa = ZoomIQA.from_pretrained("nano", device=args.device, dtype="float32")
    first, again = (iqa.rate(images, strict=True).mean for _ in range(2))
    turned = iqa.rate(images[::-1], strict=True).mean.flip(0)
    trie = trie_of(iqa.checkpoint)
    logprobs = [rate_direct(iqa.checkpoint, trie, order, strict=True).logprobs for order in (images, images[::-1])]
    alone = torch.cat([iqa.rate([image], strict=True).mean for image in images])
    cpu = ZoomIQA.from_pretrained("nano", device="cpu").rate(images, strict=True).mean
    half = ZoomIQA.from_pretrained("nano", device=args.device, dtype="bfloat16").rate(images, strict=True).mean
    shown = [image.to(args.device).requires_grad_(True) for image in images[:2]]
    gradients = []
    for _ in range(2):
        gradients.append(torch.autograd.grad(iqa.rate(shown, strict=True, grad=True).mean.sum(), shown))
    if not bool(cpu.isfinite().all()):
        raise ValueError(f"not all images were rated: {cpu.tolist()}")
    return {
        "twice_equal": torch.equal(first, again), "turned_equal": torch.equal(first, turned),
        "turned_by": (first - turned).abs().tolist(),
        "turned_logprobs_equal": torch.equal(logprobs[0], logprobs[1].flip(0)),
        "alone_equal": torch.equal(first, alone), "float32_to_cpu": float((first - cpu).abs().max()),
        "bfloat16_to_float32": float((half - first).abs().max()),
        "gradient_twice_equal": all(torch.equal(*pair) for pair in zip(*gradients, strict=True)),
    }  # fmt: skip


class Large:
    """The 7B, or a thin one."""

    def __init__(self, run: Run) -> None:
        self.run, device = run, run.args.device
        if run.args.thin:
            self.checkpoint = thin_7b(device)
        else:
            self.checkpoint = random_checkpoint("7B", TEXT_7B, VISION_7B, device=device, dtype=torch.bfloat16)
        self.trie, self.shared = trie_of(self.checkpoint), SharedReading()
        self.rows = [
            make_row(self.checkpoint, round1(self.checkpoint.protocol, make_image(seed, *SIDES))) for seed in range(8)
        ]

    def direct(self, count: int) -> dict[str, float]:
        """Images a second, plain and fast; memory."""

        def fast() -> None:
            self.shared.forget_images()
            leaf_logprobs(self.checkpoint, self.trie, self.rows[:count], self.shared)

        plain_s = self.run.seconds(lambda: plain_leaf_logprobs(self.checkpoint, self.trie, self.rows[:count]), 2)
        fast_s = self.run.seconds(fast)
        return {"plain_images_s": round(count / plain_s, 2), "fast_images_s": round(count / fast_s, 2),
                "times": round(plain_s / fast_s, 2), "peak_gib": self.run.peak(fast)}  # fmt: skip

    def tower(self, count: int) -> dict[str, float]:
        """Seconds of the vision tower."""
        rows = self.rows[:count]
        _, height, width = rows[0].image_grid_thw[0].tolist()
        device = self.checkpoint.device
        patches = torch.stack([row.pixel_values for row in rows]).to(device)
        flat, grids = patches.flatten(0, 1), torch.cat([row.image_grid_thw for row in rows]).to(device)
        model = self.checkpoint.model
        return {"plain_s": self.run.seconds(lambda: model.model.get_image_features(flat, grids), 2),
                "fast_s": self.run.seconds(lambda: read_images(model, patches, (height, width)))}  # fmt: skip

    def step(self, count: int) -> dict[str, float]:
        """Milliseconds of a step of `count` answers, and the share of the limit that reading the weights sets."""
        rows = self.rows[:count]

        def fast(tokens: int) -> None:
            choice = SampledChoice(self.checkpoint, Sampling(max_new_tokens=tokens), count)
            write_answers(self.checkpoint, rows, choice, max_new_tokens=tokens, ends=[])

        def plain(tokens: int) -> None:
            plain_new_ids(self.checkpoint, rows, Sampling(max_new_tokens=tokens))

        found = {}
        for name, write in (("fast", fast), ("plain", plain)):
            few, many = (self.run.seconds(lambda n=n, write=write: write(n), 1) for n in (8, 8 + TOKENS))
            found[f"{name}_ms"] = round(1e3 * (many - few) / TOKENS, 2)
        text = self.checkpoint.model.model.language_model.layers
        weights = sum(tensor.numel() * tensor.element_size() for tensor in text.parameters())
        return {**found, "times": round(found["plain_ms"] / found["fast_ms"], 2),
                "read_gb_s": round(weights / found["fast_ms"] / 1e6, 1)}  # fmt: skip

    def words(self, count: int) -> dict[str, float]:
        """Seconds an image of one round of `TOKENS` tokens, prompt included."""
        rows, sampling = self.rows[:count], Sampling(max_new_tokens=TOKENS)
        plain_s = self.run.seconds(lambda: plain_write(self.checkpoint, rows, sampling), 1)
        fast_s = self.run.seconds(lambda: generate(self.checkpoint, rows, sampling), 1)
        return {"plain_s": round(plain_s / count, 4), "fast_s": round(fast_s / count, 4),
                "times": round(plain_s / fast_s, 2)}  # fmt: skip

    def calls(self) -> dict[str, Any]:
        """What the host does for one further image of a call."""
        shared = SharedReading()
        counts = counted(lambda: leaf_logprobs(self.checkpoint, self.trie, self.rows[:1], shared), repeats=0)
        return {"operators": counts.operators, "attentions": counts.attentions, "reads": counts.reads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--thin", action="store_true")
    run = Run(parser.parse_args())
    name = torch.cuda.get_device_name() if run.args.device == "cuda" else run.args.device
    run.save("machine", {"device": name, "torch": torch.__version__, "thin": run.args.thin})
    large: list[Large] = []
    with torch.no_grad(), canonical_numerics():
        run.part("7B made", lambda: large.append(Large(run)), 10)
        for model in large:
            run.save("pixels of a pass", pass_pixels(model.checkpoint))
            run.part("direct, 1 image", lambda: model.direct(1), 8)  # noqa: B023 - called at once
            run.part("direct, 8 images", lambda: model.direct(8), 12)  # noqa: B023
            run.part("step of 8 answers", lambda: model.step(8), 15)  # noqa: B023
            run.part("words of 8 answers", lambda: model.words(8), 12)  # noqa: B023
    run.part("bits of nano", lambda: bits(run.args), 6)
    with torch.no_grad(), canonical_numerics():
        for model in large:
            run.part("tower, 1 image", lambda: model.tower(1), 4)  # noqa: B023
            run.part("step of 1 answer", lambda: model.step(1), 12)  # noqa: B023
            run.part("host calls", model.calls, 5)
    run.save("seconds", round(time.monotonic() - BEGAN, 1))


if __name__ == "__main__":
    main()
