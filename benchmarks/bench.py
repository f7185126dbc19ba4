"""What measuring costs: host calls of a thin 7B, and speed and memory of the embedded model against the plain way.

make bench            or: python benchmarks/bench.py [--parts PART ...] [--images 64]

Ways are timed in turn, round by round, and compared within a round: on a shared machine a ratio holds, a time does not.
CPU seconds are those of this process. Prints a table and writes results/bench.json, part by part, so that a part can be
repeated. Parts:
counts     thin 7B (tests/support/thin_7b.py): operators, attention calls, synchronisations and host time of the vision
           tower, one `direct`, one prompt and one step of an answer, plain against fast
words      images of mixed sizes: `reason` plain and fast, `direct`, and whether the words are the same
niqe       one image of 512 px: `direct` against NIQE
large      one image of 4000 x 3000 px: seconds, and memory over the idle process
growth     `direct` and `reason` with more images in a batch, and `direct` with more pixels
best_of_8  eight candidates of the embedded restorer: time of rating over time of drawing
learning   one forward and backward pass of RL over eight answers to one image, prompt shared, against rows of their own
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from photographs import photograph
from plain_way import plain_write
from thin_7b import LEAST, LEAST_SIDES, SIDES, SMALL_SIDES, SMALL_WINDOW, Counts, counted, thin_7b
from tiny import make_image

from train_iqa.rows.completions import Batch, TrainingRow, answer_logprobs, collate_completions
from train_iqa.rows.shared_prompts import collate_shared
from train_iqa.training.policy import TuningConfig, make_trainable
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.model.decode import BLOCK, write_answers
from zoomiqa_reward.model.decoding import sampling_of
from zoomiqa_reward.model.direct import leaf_logprobs, rate_direct, trie_of
from zoomiqa_reward.model.generate import SampledChoice, Sampling, generate, plain_new_ids
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.numerics import canonical_numerics
from zoomiqa_reward.model.plain import plain_leaf_logprobs
from zoomiqa_reward.model.reading import SharedReading
from zoomiqa_reward.model.reason import assess_images
from zoomiqa_reward.model.tower import read_images
from zoomiqa_reward.model.turns import round1

Ways = dict[str, Callable[[], Any]]


def in_turn(ways: Ways, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return (wall, CPU) seconds of each way in each round; each runs once before that."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            if number:
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return taken


def compared(ways: Ways, rounds: int, base: str) -> dict[str, Any]:
    """Return for each way the median seconds, and how many times it goes into `base`'s, as a median over rounds."""
    taken = in_turn(ways, rounds)
    found = {}
    for name, pairs in taken.items():
        ratios = [other[1] / own[1] for own, other in zip(pairs, taken[base], strict=True)]
        found[name] = {
            "wall_s": round(statistics.median(wall for wall, _ in pairs), 4),
            "cpu_s": round(statistics.median(cpu for _, cpu in pairs), 4),
            f"times_faster_than_{base}": round(statistics.median(ratios), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return found


def _row(checkpoint: Any, size: tuple[int, int]) -> Any:
    return make_row(checkpoint, round1(checkpoint.protocol, make_image(0, *size)))


def _plain(counts: Counts) -> dict[str, Any]:
    return {"operators": counts.operators, "attention_calls": counts.attentions,
            "synchronisations": counts.synchronisations}  # fmt: skip


@torch.no_grad()
def counts(args: argparse.Namespace) -> dict[str, Any]:
    """Host calls at the real size, and host time where the arithmetic is small (`thin_7b`)."""
    checkpoint, small = thin_7b(), thin_7b(window_size=SMALL_WINDOW)
    trie, row, few = trie_of(checkpoint), _row(checkpoint, SIDES), _row(small, SMALL_SIDES)
    shared = SharedReading()

    def direct() -> None:
        shared.forget_images()
        leaf_logprobs(checkpoint, trie, [row], shared)

    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "tower": (lambda: _library_tower(checkpoint, row), lambda: _own_tower(checkpoint, row)),
        "direct, further image of a call": (lambda: plain_leaf_logprobs(checkpoint, trie, [row]), direct),
        "prompt of an answer": (lambda: _plain_answer(checkpoint, row, 1), lambda: _answer(checkpoint, row, 1)),
    }
    found: dict[str, Any] = {
        name: {"plain": _plain(counted(plain, repeats=0)), "fast": _plain(counted(fast, repeats=0))}
        for name, (plain, fast) in calls.items()
    }
    short = _row(checkpoint, (112, 112))
    steps = {}
    for name, way in (("plain", _plain_answer), ("fast", _answer)):
        low, high = (_plain(counted(lambda n=n, way=way: way(checkpoint, short, n), repeats=0)) for n in (8, 40))
        steps[name] = {key: (high[key] - low[key]) / 32 for key in high}
    found["step of an answer"] = steps
    ways: Ways = {"plain": lambda: _library_tower(small, few), "fast": lambda: _own_tower(small, few)}
    found["host_time_tower_small_arithmetic"] = compared(ways, args.rounds * 3, "plain")
    least = thin_7b(**LEAST)
    one = _row(least, LEAST_SIDES)
    ways = {"plain": lambda: _library_tower(least, one), "fast": lambda: _own_tower(least, one)}
    found["host_time_tower_least_arithmetic"] = compared(ways, args.rounds * 3, "plain")
    longer = {
        f"{name} {n}": (lambda n=n, way=way: way(checkpoint, short, n))
        for name, way in (("plain", _plain_answer), ("fast", _answer)) for n in (BLOCK, 5 * BLOCK)
    }  # fmt: skip
    taken = in_turn(longer, args.rounds * 3)
    per = {}
    for name in steps:
        pairs = zip(taken[f"{name} {BLOCK}"], taken[f"{name} {5 * BLOCK}"], strict=True)
        per[name] = [(more[1] - less[1]) / (4 * BLOCK) for less, more in pairs]
    found["host_time_step"] = {
        **{f"{name}_cpu_ms": round(1e3 * statistics.median(values), 3) for name, values in per.items()},
        "fast_over_plain": round(
            statistics.median(a / b for a, b in zip(per["fast"], per["plain"], strict=True)), 3
        ),
    }  # fmt: skip
    return found


def _library_tower(checkpoint: Any, row: Any) -> Any:
    return checkpoint.model.model.get_image_features(row.pixel_values, row.image_grid_thw)


def _own_tower(checkpoint: Any, row: Any) -> Any:
    _, height, width = row.image_grid_thw[0].tolist()
    return read_images(checkpoint.model, row.pixel_values[None], (height, width))


def _plain_answer(checkpoint: Any, row: Any, count: int) -> Any:
    return plain_new_ids(checkpoint, [row], Sampling(max_new_tokens=count))


def _answer(checkpoint: Any, row: Any, count: int) -> Any:
    choice = SampledChoice(checkpoint, Sampling(max_new_tokens=count), 1)
    return write_answers(checkpoint, [row], choice, max_new_tokens=count, ends=[])


def require_valid(ratings: Any) -> None:
    """Raise SystemExit if an image was not measured: the time of a refusal is no figure."""
    if not bool(ratings.valid.all()):
        raise SystemExit(f"not measured: {[why for why in ratings.errors if why]}")


def _mixed(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(120, 420, (count, 2), generator=generator).tolist()
    return [photograph(seed, *size) for seed, size in enumerate(sizes)]


@torch.no_grad()
def words(args: argparse.Namespace) -> dict[str, Any]:
    """`reason` in both ways and `direct`, on images of mixed sizes."""
    iqa = ZoomIQA.from_pretrained("nano", device="cpu")
    checkpoint, images = iqa.checkpoint, _mixed(args.images)
    require_valid(iqa.rate(images))
    sampling, kept = sampling_of(checkpoint.protocol, 0.0, None, None), {}

    def ask(name: str, write: Any) -> None:
        kept[name] = assess_images(checkpoint, images, sampling=sampling, write=write, batch_size=args.batch)

    ways: Ways = {
        "plain": lambda: ask("plain", plain_write),
        "reason": lambda: ask("reason", generate),
        "direct": lambda: rate_direct(checkpoint, iqa.trie, images),
        "direct, whole image": lambda: rate_direct(_glance(iqa).checkpoint, iqa.trie, images),
    }
    with canonical_numerics():
        found = compared(ways, args.rounds, "plain")
    texts = {name: [turn.text for [one] in answers for turn in one.turns] for name, answers in kept.items()}
    same = sum(a == b for a, b in zip(texts["plain"], texts["reason"], strict=False))
    found["answers"] = {"written": len(texts["plain"]), "same_words": same, "batch": args.batch, "images": args.images}
    return found


def _glance(iqa: ZoomIQA) -> ZoomIQA:
    return iqa.with_views(iqa.protocol.views.whole())


@torch.no_grad()
def niqe(args: argparse.Namespace) -> dict[str, Any]:
    """One image of 512 px."""
    from restoration.metrics import niqe as by_niqe

    iqa, image = ZoomIQA.from_pretrained("nano", device="cpu"), photograph(0, 512, 512)
    half = ZoomIQA.from_pretrained("nano", device="cpu", dtype="bfloat16")
    for one in (iqa, half):
        require_valid(one.rate([image], strict=True))
    ways: Ways = {
        "niqe": lambda: by_niqe(image),
        "direct": lambda: iqa.rate([image], strict=True),
        "direct, bfloat16": lambda: half.rate([image], strict=True),
        "direct, whole image": lambda: _glance(iqa).rate([image], strict=True),
    }
    return compared(ways, args.rounds * 3, "niqe")


def large(args: argparse.Namespace) -> dict[str, Any]:
    """One image of 4000 x 3000 px, by `memory.py` in a process of its own, in float32 and in bfloat16."""
    import subprocess

    def measured(*options: str) -> dict[str, Any]:
        command = [sys.executable, str(Path(__file__).with_name("memory.py")), *options]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return json.loads(out[out.index("{") :])

    half = measured("--dtype", "bfloat16", "--name", "memory_bfloat16")
    return measured() | {f"{key}_bfloat16": half[key] for key in ("rating", "peak_over_idle_mib", "seconds")}


@torch.no_grad()
def growth(args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds per image."""
    iqa = ZoomIQA.from_pretrained("nano", device="cpu")
    found: dict[str, Any] = {}
    for count in (1, 4, 8):
        images = [photograph(seed, 224, 224) for seed in range(count)]
        require_valid(iqa.rate(images))
        ways: Ways = {"direct": lambda images=images: iqa.rate(images, batch_size=8),
                      "reason": lambda images=images: iqa.assess(images, batch_size=8)}  # fmt: skip
        for name, times in in_turn(ways, args.rounds).items():
            found[f"{name}, batch of {count}"] = round(statistics.median(cpu for _, cpu in times) / count, 4)
    for side in (256, 512, 1024):
        image = photograph(0, side, side)
        require_valid(iqa.rate([image]))
        times = in_turn({"direct": lambda image=image: iqa.rate([image])}, args.rounds)["direct"]
        found[f"direct, {side} px"] = round(statistics.median(cpu for _, cpu in times), 4)
    return found


def best_of_8(args: argparse.Namespace) -> dict[str, Any]:
    """Time of rating eight candidates over the time of drawing them, by the embedded pair at its defaults."""
    from restoration import Restorer

    iqa, restorer = ZoomIQA.from_pretrained("nano", device="cpu"), Restorer.from_pretrained("nano")
    half = ZoomIQA.from_pretrained("nano", device="cpu", dtype="bfloat16")
    image = photograph(0, 64, 64)
    drawn = [one.image for one in restorer.restore(image, range(8))]
    for one in (iqa, half):
        require_valid(one.rate(drawn, strict=True))
    ways: Ways = {
        "drawing": lambda: list(restorer.restore(image, range(8))),
        "rating": lambda: iqa.rate(drawn, strict=True),
        "rating_bfloat16": lambda: half.rate(drawn, strict=True),
    }
    taken = in_turn(ways, args.rounds)
    found = {f"{name}_cpu_s": round(statistics.median(cpu for _, cpu in times), 3) for name, times in taken.items()}
    for name in ("rating", "rating_bfloat16"):
        shares = [b[1] / a[1] for a, b in zip(taken["drawing"], taken[name], strict=True)]
        found[f"{name}_over_drawing"] = round(statistics.median(shares), 3)
    return found


def learning(args: argparse.Namespace) -> dict[str, Any]:
    """RL's pass over eight answers of 128 tokens, of the embedded model and of the thin 7B at the real size."""
    nano, found = ZoomIQA.from_pretrained("nano", device="cpu").checkpoint, {}
    for name, checkpoint, size in (("nano, 224 px", nano, (224, 224)), ("thin 7B", thin_7b(), SIDES)):
        make_trainable(checkpoint.model, TuningConfig(lora_rank=0))
        prompt, generator = _row(checkpoint, size), torch.Generator().manual_seed(0)
        ids = torch.randint(20, 900, (8, 128), generator=generator)
        rows = [
            TrainingRow(prompt=prompt, completion_ids=one, targets=torch.ones(128, dtype=torch.bool)) for one in ids
        ]

        def learn(collated: Callable[..., Batch], checkpoint: Any = checkpoint, rows: list[TrainingRow] = rows) -> None:
            answer_logprobs(checkpoint.model, collated(checkpoint, rows))[0].sum().backward()
            checkpoint.model.zero_grad()

        ways = {"rows": partial(learn, collate_completions), "shared": partial(learn, collate_shared)}
        found[name] = compared(ways, args.rounds, "rows")
        found[name]["tokens"] = {
            way: math.prod(collated(checkpoint, rows).inputs["input_ids"].shape)
            for way, collated in (("rows", collate_completions), ("shared", collate_shared))
        }
    return found


PARTS = {part.__name__: part for part in (counts, words, niqe, large, growth, best_of_8, learning)}


def show(value: Any, indent: str = "") -> None:
    """Print nested results as a table."""
    for key, one in value.items():
        if isinstance(one, dict) and any(isinstance(inner, dict) for inner in one.values()):
            print(f"{indent}{key}")
            show(one, indent + "  ")
        else:
            text = ", ".join(f"{k} {v}" for k, v in one.items()) if isinstance(one, dict) else one
            print(f"{indent}{key:<36}{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--images", type=int, default=64, help="of mixed sizes, in part `words`")
    parser.add_argument("--batch", type=int, default=8, help="answers written together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    file = RESULTS / "bench.json"
    before = json.loads(file.read_text()) if file.is_file() else {}
    result = {name: part for name, part in before.items() if name in PARTS}
    for name in args.parts:
        result[name] = {"threads": args.threads, **PARTS[name](args)}
        print(f"\n{name}")
        show(result[name])
        write_result("bench", result, show=False)


if __name__ == "__main__":
    main()
