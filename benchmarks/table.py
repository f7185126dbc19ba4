"""Write the tables of figures of README, `docs/figures.md` and guides from result files: `python benchmarks/table.py`.

A test compares the pages with what this prints, so a figure there is always one that a benchmark wrote.
"""

import json
from pathlib import Path
from typing import Any

from common import weights
from doc_tables import BLOCKS
from judge_rows import held_out_rows, mos_rows, pair_rows, pair_table, people_rows, synthetic_rows
from restoration_rows import best_of_n_rows, candidates_rows, choice_rows, restorer_rows, search_rows
from training_rows import cost_rows, killed_rows, processes_rows, tune_kill_rows, tune_rows

ROOT = Path(__file__).parents[1]
SHARED_FILES = {"gpu_nano": "gpu"}
"""Parts whose rows come from another part's result."""


def file_of(name: str) -> Path:
    """Return where a part's result stands."""
    return ROOT / "benchmarks" / "results" / f"{SHARED_FILES.get(name, name)}.json"


def load(name: str) -> dict[str, Any]:
    """Return one result file."""
    return json.loads(file_of(name).read_text())


def readable_rows(r: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `readable`."""
    where = ", ".join(f"{name} {count}" for name, count in r["by_folder"].items())
    what = f"readable answers of `reason` in every round: development set ({where})"
    figure = f"{r['readable']} of {r['images']}"
    for side, small in r["middles"].items():
        what += f"; their middles of {side} px"
        figure += f"; {small['readable']} of {small['images']}"
    if file_of("check_reason").exists():
        what += "; damaged images of `zoomiqa check`"
        figure += f"; {load('check_reason')['measures']['measured_share']:.1%}"
    if file_of("best_of_n").exists():
        pool = load("best_of_n")
        answers = pool["images"] * pool["n"]
        what += "; candidates of best-of-N"
        figure += f"; {answers - pool['unreadable_answers']} of {answers}"
    return [(what, figure)]


def repeatability_rows(r: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `repeatability`."""
    strict = all(value for key, value in r.items() if key.startswith("strict_equal"))
    difference, same = r["batched_direct_max_difference"], r["batched_reason_same_text_share"]
    return [
        (
            "strict ratings on a CPU: bit-equal in any order, beside any images, in another process (not confirmed on "
            "a GPU)",
            "yes" if strict else "NO",
        ),
        (
            "batched against strict: largest difference of `direct`; same text in `reason`",
            f"{difference:.1e}; {same:.0%}",
        ),
    ]


def serving_rows(s: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `serving`."""
    killed, equal = s["replica_killed"], "yes" if s["strict_bit_equal"] else "NO"
    half = killed["answers"] // 2  # each image is asked for once without and once with retries
    losses = [f"{killed[f'lost_{how}_retries']} of {half}" for how in ("without", "with")]
    speeds = ", ".join(f"{s[key]:.1f}" for key in ("local_one_by_one_per_s", "strict_per_s", "batched_per_s"))
    return [
        (
            f"server: {s['requests']} requests, 32 under way at once, bit-equal to local; batched difference",
            f"{equal}; {s['batched_max_difference']:.0e}",
        ),
        (
            "server, one replica killed under load: wrong values; requests lost in one attempt; in up to 8 attempts",
            "; ".join([f"{killed['wrong']} of {killed['answers']}", *losses]),
        ),
        (f"images/s: local one by one, served strict, served batched ({s['replicas']} replicas)", speeds),
    ]


def memory_rows(memory: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `memory`."""
    size = " x ".join(map(str, memory["pixels"]))
    figure = f"{memory['peak_over_idle_mib'] / 1024:.2f} GiB, {memory['seconds']:.0f} s"
    half = ", bfloat16" if memory.get("dtype") == "bfloat16" else ""
    return [(f"{size} image{half}: peak memory above idle, time", figure)]


def gradients_rows(g: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `gradients`."""
    along = g["relative_error_along"]["length"]["3e-05"]
    ascents = [(step, g["ascent"][f"sign_{step}_of_255"]) for step in ("0.1", "2")]
    climbs = [
        f"by {step}/255: {one['raised']} of {one['of']}, mean change {one['mean_gain']:+.2f}" for step, one in ascents
    ]
    norms = g["relative_error_along"].values()
    cells = [f"{float(step):g}: " + ", ".join(f"{by[step]['median']:.1%}" for by in norms)
             for step in ("3e-05", "0.0001", "0.001", "0.01")]  # fmt: skip
    visible = g["relative_error_along"]["length"]["0.5"]
    memory = g["memory_of_one_gradient"]
    peaks = [f"{memory[name]['peak_over_idle_mib'] / 1024:.2f} GiB, {memory[name]['seconds']:.0f} s"
             for name in ("plain", "recompute")]  # fmt: skip
    return [
        (
            "relative error of the gradient's prediction of how the rating changes, for a step along it of Euclidean "
            f"norm 0.5 (a third of a grey level RMS), {g['images']} images",
            f"median {visible['median']:.0%}, largest {visible['largest']:.0%}",
        ),
        (
            f"the same for a step of 3e-5, {g['images']} images: relative error",
            f"median {along['median']:.1e}, largest {along['largest']:.1e}",
        ),
        (
            "the same for other steps (pixel values from 0 to 1), median: if the step is the largest change of a "
            "value; if it is the Euclidean norm",
            "; ".join(cells),
        ),
        (
            f"slope of finite differences on predictions, {g['directions_an_image']} directions per image: "
            "signs, step 3e-5; single pixels, step 1e-3",
            f"{g['slope_random_signs']['3e-05']:.4f}; {g['slope_single_pixels']['0.001']:.4f}",
        ),
        (
            f"{g['ascent']['steps']} steps along the gradient's signs: in how many images the rating rises",
            "; ".join(climbs),
        ),
        (
            f"gradient of a {memory['side_px']} px image: memory above idle, time; with recomputed activations",
            "; ".join(peaks),
        ),
    ]


def cache_rows(c: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `cache`."""
    return [
        (
            f"score cache, 2 processes, {c['images']} images: wrong values, lost entries, speed-up when warm",
            f"{c['wrong_values']}, {c['entries_lost']}, {c['speed_up_warm']:.0f} x",
        )
    ]


def ladder_rows(ladders: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `ladders`."""
    return [
        (
            f"mean rating from clean to worst, {name}",
            ", ".join(f"{v:.2f}" for v in ladders[name]["mean_ratings"]),
        )
        for name in ("blur", "noise", "jpeg", "downsample")
    ]


def remote_rows(r: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `remote_text`."""
    names = {"whole": "nothing resizes them", "resized": "the server resizes them",
             "resized_factor": "the client resizes them, `factor_px=28`"}  # fmt: skip
    return [
        (
            f"words by `transformers serve` against the local model, {side['images']} images of "
            f"{' x '.join(map(str, side['px']))} px, {names[name]}: equal texts of round 1, of round 2; equal ratings, "
            "largest difference",
            "; ".join([*(f"{k['equal']} of {k['answers']}" for k in side["rounds"]),
                       f"{side['equal_ratings']} of {side['rated_by_both']}, {side['largest_difference']:.2f}"]),
        )
        for name, side in ((name, r[name]) for name in names)
    ]  # fmt: skip


def video_rows(v: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `video`."""
    live = [f"{side['passed_over']} of {side['chosen']}" for side in v["keep_up"].values()]
    large = v["large"]
    return [
        (
            "live clip of 640 x 360 px at 25 frames/s on two cores: chosen frames that are skipped to keep up; where "
            "each is read whole",
            "; ".join(live),
        ),
        (
            f"clip of 3840 x 2160 px, rated by a mean: frames/s; memory that {large['many']['frames']} frames take "
            f"more than {large['few']['frames']}",
            f"{large['many']['frames_per_s']:.0f}; {large['growth_mib']} MiB",
        ),
    ]


READ_GB_S = 2750
"""What an H100 reads from its memory in a second, as measured on one; reading the weights bounds a step's time."""


def gpu_rows(g: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `gpu`."""
    of = f"7B with random weights, bfloat16, 1008 x 756 px, on an {g['machine']['device']}"
    one, eight = (g[f"direct, {count}"] for count in ("1 image", "8 images"))
    step, single = (g[f"step of {count}"] for count in ("8 answers", "1 answer"))
    words = g["words of 8 answers"]
    return [
        (
            f"{of}: images/s of `direct`, 1 and 8 at once (plain way)",
            f"{one['fast_images_s']:.1f}, {eight['fast_images_s']:.1f} "
            f"({one['plain_images_s']:.1f}, {eight['plain_images_s']:.1f})",
        ),
        (
            f"{of}: seconds per answer of 48 tokens with its prompt, 8 at once (plain way)",
            f"{words['fast_s']:.3f} ({words['plain_s']:.3f}), {words['times']:.2f} times as fast",
        ),
        (
            f"{of}: ms per step of 8 answers, of 1 (plain way); share of the bandwidth limit",
            f"{step['fast_ms']:.1f}, {single['fast_ms']:.1f} ({step['plain_ms']:.1f}, {single['plain_ms']:.1f}); "
            f"{step['read_gb_s'] / READ_GB_S:.0%}, {single['read_gb_s'] / READ_GB_S:.0%}",
        ),
    ]


def gpu_nano_rows(g: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of what `gpu` says of the embedded judge."""
    bits, yes = g["bits of nano"], {True: "yes", False: "NO"}
    on = f"nano on an {g['machine']['device']}"
    return [
        (
            f"{on}, strict, float32, before the repair: bits equal twice, alone, in another order; of the gradient "
            "twice",
            ", ".join(yes[bits[f"{name}_equal"]] for name in ("twice", "alone", "turned", "gradient_twice")),
        ),
        (
            f"{on}: largest difference from the CPU in float32; of bfloat16 from float32",
            f"{bits['float32_to_cpu']:.0e}; {bits['bfloat16_to_float32']:.0e}",
        ),
    ]


PARTS = {
    "nano_synthetic": synthetic_rows,
    "nano_held_out": held_out_rows,
    "sr_mos": mos_rows,
    "people": people_rows,
    "pairs": pair_rows,
    "readable": readable_rows,
    "repeatability": repeatability_rows,
    "memory": memory_rows,
    "memory_bfloat16": memory_rows,
    "gpu": gpu_rows,
    "gpu_nano": gpu_nano_rows,
    "ladders": ladder_rows,
    "restorer": restorer_rows,
    "restorer_held_out": restorer_rows,
    "best_of_n": best_of_n_rows,
    "best_of_n_all": choice_rows,
    "search": search_rows,
    "candidates": candidates_rows,
    "gradients": gradients_rows,
    "cache": cache_rows,
    "serving": serving_rows,
    "remote_text": remote_rows,
    "video": video_rows,
    "training_kill_sft": killed_rows("SFT"),
    "training_kill_grpo": killed_rows("RL"),
    "training_processes": processes_rows,
    "training_cost": cost_rows,
    "tune": tune_rows,
    "tune_kill": tune_kill_rows,
}
HEADLINES = {
    "people": [1, 0, 2, 3], "sr_mos": [0, 1, 3], "readable": [0], "best_of_n": [8, 7, 6, 3, 0],
    "restorer": [2, 4], "tune": [2, 0, 1, 7, 8, 6, 5, 3, 4], "nano_synthetic": [0, 1, 2], "gradients": [0, 2, 4],
    "memory": [0], "gpu": [0, 1], "repeatability": [0], "cache": [0], "serving": [0],
}  # fmt: skip
"""The rows of README, those on agreement with people first; `docs/figures.md` holds all rows."""


EARLIER = "\n\nThis table was made with earlier weights of `nano`."
USES = {
    **dict.fromkeys(("restorer", "restorer_held_out", "candidates"), ("restorer",)),
    **dict.fromkeys(("best_of_n", "best_of_n_all", "search", "tune"), ("judge", "restorer")),
    **dict.fromkeys(("cache", "training_kill_sft", "training_kill_grpo", "tune_kill", "gpu"), ()),
}  # fmt: skip
"""Embedded weights that a result depends on, by default the judge's; none where any weights give the same."""
COPIES = ("people",)
"""Results of models that were trained for them alone."""


def age(name: str) -> str:
    """Return `today's` where a result is of the weights in this folder, `earlier` where they have changed since.

    `any`: any weights give the same. `copies`: of models that were trained for this result.
    """
    if name in COPIES:
        return "copies"
    measured, present = load(name).get("weights", {}), weights()
    used = USES.get(name, ("judge",))
    if not used:
        return "any"
    return "today's" if all(measured.get(kind) == present[kind] for kind in used) else "earlier"


def rows(chosen: dict[str, list[int]] | None = None) -> list[tuple[str, str, str]]:
    """Return (what, figure, name of the result) of every benchmark that has been run, or of the chosen rows."""
    found = []
    for name in PARTS if chosen is None else chosen:
        if file_of(name).exists():
            made = PARTS[name](load(name))
            places = range(len(made)) if chosen is None else chosen[name]
            found += [(*made[k], name) for k in places]
    return found


def markdown(found: list[tuple[str, str, str]], root: str = "") -> str:
    """Return the table; `root` leads from its page to the project's folder."""
    lines = ["| what (95 % intervals in brackets) | nano | weights | made by |", "|---|---|---|---|"]
    for what, figure, name in found:
        script = load(name)["command"].split()[1].removeprefix("benchmarks/").removesuffix(".py")
        lines.append(f"| {what} | {figure} | {age(name)} | [`{script}`]({root}benchmarks/{script}.py) |")
    return "\n".join(lines)


def blocks() -> list[tuple[Path, str, str]]:
    """Return (page, name of its markers, text) of the tables of figures and of each guide's that was measured."""
    found = [
        (ROOT / "README.md", "figures", markdown(rows(HEADLINES))),
        (ROOT / "docs" / "figures.md", "figures", markdown(rows(), "../")),
    ]
    for page, (name, make) in (BLOCKS | {"docs/pairs.md": ("pairs", pair_table)}).items():
        if file_of(name).exists():
            found.append((ROOT / page, name, make(load(name)) + (EARLIER if age(name) == "earlier" else "")))
    return found


def between(text: str, name: str) -> tuple[str, str, str]:
    """Return what stands before, between and after `<!-- name -->` and `<!-- /name -->`."""
    before, rest = text.split(f"<!-- {name} -->")
    inside, after = rest.split(f"<!-- /{name} -->")
    return before, inside, after


def main() -> None:
    for page, name, made in blocks():
        before, _, after = between(page.read_text(encoding="utf-8"), name)
        page.write_text(f"{before}<!-- {name} -->\n{made}\n<!-- /{name} -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
