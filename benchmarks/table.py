"""Write the README's table of figures from the result files: `python benchmarks/table.py`.

A test compares the README with what this prints, so a figure there is always one that a benchmark wrote.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START, END = "<!-- figures -->", "<!-- /figures -->"


def load(name: str) -> dict[str, Any]:
    """Return one result file."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def interval(result: dict[str, Any], key: str) -> str:
    """Return `0.812 [0.79, 0.83]`."""
    low, high = result[f"{key}_95"]
    return f"{result[key]:.3f} [{low:.2f}, {high:.2f}]"


def rows() -> list[tuple[str, str, str]]:
    """Return (what, figure, result file)."""
    found: list[tuple[str, str, str]] = []
    s = load("nano_synthetic")
    where = f"{s['images']} degraded BSDS500 test photographs"
    for target, name in (("pseudo_mos", "pseudo-MOS"), ("fsim", "held-out FSIM")):
        figure = f"{interval(s, f'srcc_direct_{target}')}; NIQE {interval(s, f'srcc_niqe_{target}')}"
        found.append((f"SRCC of `direct` with {name}, {where}", figure, "nano_synthetic"))
    found += [
        ("readable answers in `reason`", f"{s['readable_share']:.1%}", "nano_synthetic"),
        ("SRCC of `direct` with `reason`", f"{s['srcc_direct_reason']:.3f}", "nano_synthetic"),
        (
            "zoom rate: all, local damage, global damage",
            f"{s['zoom_rate']:.0%}, {s['zoom_rate_local']:.0%}, {s['zoom_rate_global']:.0%}",
            "nano_synthetic",
        ),
        (
            "IoU of the named box with the true region (central box)",
            f"{s['iou_named']:.3f} ({s['iou_central']:.3f}); by area tercile "
            + ", ".join(
                f"{s[f'iou_tercile_{k}']['named']:.2f} ({s[f'iou_tercile_{k}']['central']:.2f})" for k in (1, 2, 3)
            ),
            "nano_synthetic",
        ),
    ]
    m = load("sr_mos")
    for key, name in (
        ("srcc_overall", "SRCC overall"),
        ("srcc_within_scene", "SRCC within a scene"),
        ("pair_accuracy", "pair accuracy, MOS 0.5 apart"),
        ("regret_scene", f"MOS lost by its pick (random {m['random_regret_scene']:.2f})"),
        ("regret_pools_of_4", "MOS lost by its pick of 4"),
    ):
        figure = f"{interval(m['direct'], key)}; NIQE {interval(m['niqe'], key)}"
        found.append((f"human MOS of {m['images']} super-resolved pictures: {name}", figure, "sr_mos"))
    r = load("repeatability")
    strict = all(v for k, v in r.items() if k.startswith("strict_equal"))
    found += [
        ("strict: bit-equal in any order, company, process", "yes" if strict else "NO", "repeatability"),
        (
            "batched: largest difference of `direct`; same text in `reason`",
            f"{r['batched_direct_max_difference']:.1e}; {r['batched_reason_same_text_share']:.0%}",
            "repeatability",
        ),
    ]
    memory = load("memory")
    size = " x ".join(map(str, memory["pixels"]))
    figure = f"{memory['peak_over_idle_mib'] / 1024:.2f} GiB, {memory['seconds']:.0f} s"
    found.append((f"{size} image: peak memory over idle, time", figure, "memory"))
    ladders = load("ladders")
    for name in ("blur", "noise", "jpeg", "downsample"):
        ladder = ladders[name]
        steps = " > ".join(f"{v:.2f}" for v in ladder["mean_ratings"])
        found.append((f"mean rating down a ladder of {name}", steps, "ladders"))
    return found


def markdown() -> str:
    """Return the table."""
    lines = ["| what (95 % intervals in brackets) | nano | made by |", "|---|---|---|"]
    lines += [f"| {what} | {figure} | [`{name}`](benchmarks/{name}.py) |" for what, figure, name in rows()]
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(START)
    after = rest.split(END)[1] if END in rest else rest
    readme.write_text(f"{before}{START}\n{markdown()}\n{END}{after}")


if __name__ == "__main__":
    main()
