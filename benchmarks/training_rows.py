"""Rows of the tables of figures on trainings: killed, spread over processes, what they cost, what tuning gave."""

from collections.abc import Callable
from typing import Any


def killed_rows(stage: str) -> Callable[[dict[str, Any]], list[tuple[str, str]]]:
    """Return what makes the row of one trainer's kills."""

    def made(k: dict[str, Any]) -> list[tuple[str, str]]:
        checks = ("one_row_a_step_in_order", "metrics_equal", "policy_bytes_identical")
        figure = ", ".join("yes" if k[name] else "NO" for name in checks)
        title = f"{stage} killed (SIGKILL) {k['mid_run_kills']} times"
        return [(f"{title}: every step once, same metrics, same bytes of weights", figure)]

    return made


def processes_rows(p: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `training processes`."""
    apart = [f"{stage.upper()} {p[stage]['largest_relative_difference']:.0e}" for stage in ("sft", "grpo")]
    title = "two processes against one with twice the accumulation: largest relative difference of the first losses"
    return [(title, ", ".join(apart))]


def cost_rows(c: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `training cost`."""
    found = [f"{stage} {c[key]['images_per_cpu_s']:.2f}, {c[key]['peak_over_idle_mib'] / 1024:.2f} GiB"
             for stage, key in (("SFT", "nano_sft_cpu"), ("RL", "nano_grpo_cpu"))]  # fmt: skip
    return [
        ("training nano: images (RL: with 6 trajectories) per processor second, memory above idle", "; ".join(found))
    ]


def tune_rows(t: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `tune` for the ways that raise the reward, for their control, and for what needs no
    training; the guide's table holds them all.
    """
    found = []
    names = {"sft": "tuned by rejection SFT", "dpo": "tuned by DPO", "nft": "tuned by NFT",
             "sharpened_0.25": "on an input sharpened by 0.25, nothing trained",
             "cool_sharpened_0.25": "at temperature 0 on an input sharpened by 0.25, nothing trained",
             "chance": "tuned by DPO on chance, the control",
             "supervised": "tuned on ground truths at sampled states without a reward, the control",
             "nft_truth": "tuned by NFT with these truths",
             "dpo_truth": "tuned by DPO with these truths",
             "dpo_sharp": "tuned by DPO with truths sharpened by 0.25",
             "dpo_grpo": "tuned by DPO with truths sharpened by 0.25 and then by GRPO",
             "dpo_sharpened": "tuned by DPO with truths as they are, on an input sharpened by 0.15",
             "grpo_sharpened": "tuned by DPO with truths as they are, then by GRPO, on an input sharpened "
                               "by 0.15"}  # fmt: skip
    for method, name in names.items():
        if method in t["runs"]:
            run = t["runs"][method]
            seeds = f"{run['seeds']} training seed{'s' if run['seeds'] > 1 else ''}; interval over images only"
            title = f"x4 restorer {name}, less the base, {t['images']} photographs"
            title += "" if "nothing trained" in name else f" ({seeds})"
            parts = [f"{label} {value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
                     for label, key, digits in (("reward", "robust", 3), ("FSIM", "fsim", 4), ("VIF", "vif", 4),
                                                ("PSNR-Y in dB", "psnr_y", 2), ("HaarPSI, a label", "haarpsi", 4),
                                                ("LR-consistency in dB", "lr_consistency", 2))
                     for value, low, high, *_ in (run[key]["minus_base"],)]  # fmt: skip
            found.append((title, "; ".join(parts)))
    return found


def tune_kill_rows(k: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `tune kill`."""
    figure = ", ".join("yes" if k[name] else "NO" for name in ("rounds_in_order_once", "same_log", "same_weights"))
    rounds = ", ".join(map(str, k["rounds_logged_at_each_kill"]))
    title = f"tuning by {k['method']} killed at rounds {rounds} of {k['rounds']}"
    return [(f"{title}: every round once, same log, same weights", figure)]
