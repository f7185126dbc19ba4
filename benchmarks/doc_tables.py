"""The tables of the guides, from the result files: `python benchmarks/table.py` writes them beside README's."""

from collections.abc import Callable
from typing import Any

Result = dict[str, Any]
TUNE_NAMES = {
    "bicubic": "bicubic", "sharpened_0.15": "the base, input sharpened by 0.15",
    "sharpened_0.25": "the base, input sharpened by 0.25",
    "sharpened_0.5": "the base, input sharpened by 0.5", "sharpened_0.75": "the base, input sharpened by 0.75",
    "cool": "the base at temperature 0",
    "cool_sharpened_0.25": "the base at temperature 0, input sharpened by 0.25",
    "cool_sharpened_0.5": "the base at temperature 0, input sharpened by 0.5",
    "best_of_8_robust": "best of 8 of the base, by the reward",
    "best_of_8_rating": "best of 8 of the base, by the plain rating", "sft": "rejection SFT",
    "dpo": "DPO", "grpo": "GRPO", "nft": "NFT",
    "reward_gradient": "reward gradient", "chance": "DPO on chance (control)",
    "supervised": "truths at sampled states, no reward (control)", "nft_truth": "NFT with these truths",
    "dpo_truth": "DPO with these truths",
    "supervised_sharp": "truths sharpened by 0.25, no reward (control)",
    "dpo_sharp": "DPO with truths sharpened by 0.25", "dpo_grpo": "that DPO, then GRPO",
    "truth_grpo": "DPO with truths as they are, then GRPO",
    "supervised_sharpened": "truths at sampled states, no reward (control), input sharpened by 0.15",
    "dpo_sharpened": "DPO with truths as they are, input sharpened by 0.15",
    "grpo_sharpened": "that DPO, then GRPO, input sharpened by 0.15",
    "laplacian": "reward gradient of Laplacian variance alone",
    "laplacian_heedless": "the same, the alarm not heeded", "niqe": "NFT on NIQE alone",
}  # fmt: skip
MEASURES = {
    "robust": ("reward: the rating's mean over unseen copies", 3), "rating": ("plain rating", 3), "fsim": ("FSIM", 4),
    "vif": ("VIF", 4), "haarpsi": ("HaarPSI (a label)", 4), "psnr_y": ("PSNR-Y, dB", 2),
    "lr_consistency": ("LR-consistency, dB", 2), "niqe": ("NIQE", 2),
}  # fmt: skip
MEANINGLESS = ("chance", "laplacian", "laplacian_heedless", "niqe")
"""Methods whose reward says nothing of quality."""
ARM_NAMES = {
    "start": "nano, before", "sft": "further SFT", "no_kl": "RL without KL", "kl_all_tokens": "RL, KL on all tokens",
    "kl_cov": "RL, plain KL-Cov (all quadrants, old policy)", "kl_coverage": "RL, KL-Coverage",
    "kl_coverage_strong": "RL, KL-Coverage on its whole quadrant, beta 10",
    "kl_coverage_natural": "RL, KL-Coverage, no re-sampling",
}  # fmt: skip
OTHERS = {"start": "nano before", "sft": "further SFT", "kl_coverage": "RL, KL-Coverage"}


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def signed(found: Any, digits: int) -> str:
    """Return `+0.07 [+0.05, +0.09]` of (value, low, high, ...)."""
    value, low, high = found[:3]
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def several(values: list[Any], digits: int = 3) -> str:
    """Return one number per seed, `0.741 / 0.752`."""
    return " / ".join(f"{value:.{digits}f}" for value in values)


def tune_tables(result: Result) -> str:
    """Return the methods against the base model, and what the monitor saw of them."""
    runs = result["runs"]
    base = [f"{runs['base'][key]['mean'][0]:.{digits}f}" for key, (_, digits) in MEASURES.items()]
    rows, looks = [["base", *base, ""]], []
    for method, name in TUNE_NAMES.items():
        if method not in runs:
            continue
        one = runs[method]
        seconds = " / ".join(f"{s:.0f}" for s in one.get("seconds", []) if s is not None)
        rows.append([name, *(signed(one[key]["minus_base"], digits) for key, (_, digits) in MEASURES.items()), seconds])
        if any(one.get("monitor", ())):
            seen = one["monitor"]
            looks.append([
                name, " / ".join(str(s["looks"]) for s in seen), " / ".join(str(s["alarmed_looks"]) for s in seen),
                " / ".join(str(first) if first else "none" for first in one["first_alarm_round"]),
                " / ".join(map(str, one["best_round"])),
                ", ".join(sorted({signal for s in seen for signal in s["signals"]})) or "none",
                *(" / ".join(f"{s[key][0]:.3g} → {s[key][1]:.3g}" for s in seen) for key in ("reward", "fine_energy")),
            ])  # fmt: skip
    header = ["less the base [95 %]", *(title for title, _ in MEASURES.values()), "seconds of training, by seed"]
    watched = [
        "by seed",
        "looks",
        "with an alarm",
        "first alarm, round",
        "round of the result",
        "signals",
        "its own reward, base → last look",
        "fine energy over the truth's",
    ]
    return "\n\n".join([
        table(header, rows), control_table(runs),
        untrained_table(runs, "sharpened", "less the best sharpened input [95 %]"),
        untrained_table(runs, "cool", "less the best at temperature 0 [95 %]"), table(watched, looks),
    ])  # fmt: skip


def control_table(runs: Result) -> str:
    """Return the methods that learn from truths less the same without their reward, or before their last stage."""
    rows = []
    for method, name in TUNE_NAMES.items():
        if gaps := runs.get(method, {}).get("minus_control"):
            name = f"{name}, less that DPO" if "GRPO" in name else f"{name}, less the control"
            rows.append([name, *(signed(gaps[key], digits) for key, (_, digits) in MEASURES.items())])
    return table(["[95 %]", *(title for title, _ in MEASURES.values())], rows)


def untrained_table(runs: Result, baselines: str, title: str) -> str:
    """Return the methods less the baselines whose names begin so, where no reward saw; each measure takes the best one.

    So a method that is above 0 under all three measures is better than every baseline under all three.
    """
    digits = {"fsim": 4, "vif": 4, "psnr_y": 2}
    names = [name for name in runs if name.startswith(baselines)]
    best = {key: max(names, key=lambda name: runs[name][key]["mean"][0]) for key in digits} if names else {}
    rows = []
    for method, name in TUNE_NAMES.items():
        if not best or "minus_untrained" not in runs.get(method, {}) or method in (*names, *MEANINGLESS):
            continue
        gaps = {key: runs[method]["minus_untrained"][best[key]][key] for key in digits}
        worse = [MEASURES[key][0].split(",")[0] for key in digits if gaps[key][0] <= 0]
        cells = [signed(gaps[key], count) for key, count in digits.items()]
        rows.append([name, *cells, ", ".join(worse) or "none"])
    header = [f"{MEASURES[key][0]}, less {TUNE_NAMES[name]}" for key, name in best.items()]
    return table([title, *header, "not better under"], rows)


def rl_tables(result: Result) -> str:
    """Return the arms' held-out images by seed, their gains over start and SFT, and how their curves changed."""
    rows, gaps, curves = [], [], []
    measured = {"srcc": 3, "mae_rare": 2, "mae_balanced": 2, "mae_natural": 2}
    for arm, name in ARM_NAMES.items():
        if arm not in result:
            continue
        one = result[arm]
        figures = [several(one["reason"][key], digits) for key, digits in measured.items()]
        seen = zip(one["people"]["within_scene"], one["people"]["readable"], strict=True)
        people = " / ".join(f"{'-' if value is None else f'{value:.3f}'} ({share:.0%})" for value, share in seen)
        rows.append([name, *figures, several(one["direct"]["srcc"]), people])
        for other in ("start", "sft") if arm != "kl_coverage_natural" else ("start", "kl_coverage"):
            if found := one.get(f"minus_{other}"):
                cells = [signed(found["reason"][key], digits) for key, digits in measured.items()]
                gaps.append([f"{name} less {OTHERS[other]}", *cells])
        if changes := one.get("changes"):
            first = one["curves"]["entropy"]
            ends = ", ".join(f"{began:.2f} → {ended:.2f}" for began, ended in first)
            kinds = {"entropy": 3, "rating_std": 2, "distinct_rationales": 2, "zooms": 2, "unreadable": 2}
            cells = [signed(changes[key], digits) for key, digits in (kinds | {"reward_total": 2}).items()]
            held = one["held_tokens"]
            total = sum(held.values())
            share = f"{held['likely_good'] / total:.0%}" if total else "no tokens"
            curves.append([name, ends, *cells, share])
    errors = ["error in the two rare levels", "in all levels alike", "by KonIQ's shares"]
    header = ["by seed", "SRCC `reason`", *errors, "SRCC `direct`", "people: SRCC in a scene (readable)"]
    watched = ["last less first steps [95 %]", "token entropy, by seed", "its change", "spread of ratings in a group"]
    watched += ["distinct rationales", "zooms", "unreadable", "reward (0 to 3)", "held tokens likely and good"]
    parts = [table(header, rows), table(["gain [95 %]", "SRCC `reason`", *errors], gaps), table(watched, curves)]
    return "\n\n".join(parts)


def restorer_table(result: Result) -> str:
    """Return the restorer's card's table: every row less bicubic, with its interval."""
    header = ["less bicubic", "PSNR-Y, dB", "VIF", "FSIM", "SSIM-Y", "LR-consistency, dB", "above bicubic under VIF"]
    digits = {"psnr_y": 2, "vif": 3, "fsim": 3, "ssim_y": 3, "lr_consistency": 1}
    rows = []
    for name, one in result["presets"]["moderate"].items():
        cells = ["-" if key not in one else "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*one[key][:3], d=count)
                 for key, count in digits.items()]  # fmt: skip
        share = f"{one['vif'][3]:.0%}" if "vif" in one and len(one["vif"]) > 3 else "-"
        rows.append([f"{name} (as it is)" if name == "bicubic" else name, *cells, share])
    return table(header, rows)


SEARCH_WAYS = {
    "bicubic": "bicubic", "one": "one default candidate", "best_of_n": "best of N", "noise": "noise search",
    "fusion": "fusion, or the best candidate", "fusion, always": "fusion, always",
}  # fmt: skip
SEARCH_POOLS = {"varied": "The varied pool", "seeds": "The restorer alone, seeds only"}
SEARCH_MEASURES = {
    "rating": ("rating", 3), "vif": ("VIF", 4), "fsim": ("FSIM", 4), "psnr_y": ("PSNR-Y, dB", 2),
    "lr_consistency": ("LR-consistency, dB", 2),
}  # fmt: skip


def search_tables(result: Result) -> str:
    """Return quality against time of each way, and its difference from best-of-N with as many restorations."""
    parts = [f"{result['images']} photographs x4, `{result['settings']['preset']}`, at most "
             f"{result['settings']['max_px']} px a side. N: restorations. In brackets: 95 % intervals."]  # fmt: skip
    titles = [title for title, _ in SEARCH_MEASURES.values()]
    for name, one in result["pools"].items():
        plain, differences = [], []
        for cell, values in one["cells"].items():
            way, _, n = cell.rpartition(" ")
            way, n = (way, n) if way else (cell, "-")
            row = [f"{values[key][0]:.{digits}f} [{values[key][1]:.{digits}f}, {values[key][2]:.{digits}f}]"
                   for key, (_, digits) in SEARCH_MEASURES.items()]  # fmt: skip
            plain.append([SEARCH_WAYS[way], n, f"{values['seconds'][0]:.1f}", *row])
            if cell in one["minus_best_of_n"]:
                gaps = one["minus_best_of_n"][cell]
                row = [signed(gaps[key], digits) for key, (_, digits) in SEARCH_MEASURES.items()]
                differences.append([SEARCH_WAYS[way], n, *row])
        chosen = ", ".join(f"{count} at N = {n}" for n, count in one["fused_chosen"].items())
        parts += [
            f"{SEARCH_POOLS[name]}. The fused image was chosen for {chosen}.",
            table(["way", "N", "seconds", *titles], plain),
            "Less best-of-N at the same N, paired:", table(["way", "N", *titles], differences),
        ]  # fmt: skip
    return "\n\n".join(parts)


BLOCKS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "docs/tune.md": ("tune", tune_tables),
    "docs/train.md": ("rl", rl_tables),
    "docs/search.md": ("search", search_tables),
    "restoration/checkpoints/nano/README.md": ("restorer", restorer_table),
}
"""Guide -> (result file, what makes the text between its markers)."""
