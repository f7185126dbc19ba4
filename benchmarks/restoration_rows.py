"""README's rows of choosing among restorations, from the result files; `table.py` gathers them."""

from typing import Any

CHOICES = {"agreed": "direct with consensus", "nearest": "the distance from the mean alone"}


def spread(found: list[float], digits: int = 2) -> str:
    """Return `0.41 [0.30, 0.52]` of (value, low, high, ...)."""
    value, low, high = found[:3]
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def pool_of(b: dict[str, Any]) -> str:
    """Return which pool a result of `best_of_n` is about."""
    how = "sharpness varied" if b.get("vary_sharpness") else "seeds alone"
    if b.get("pool") == "varied":
        how = "varied pool with bicubic"
    return f"best of {b['n']} of {b['images']} photographs x4, {how}"


def best_of_n_rows(b: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `best_of_n`."""
    found = []
    for judge in ("fsim", "vif"):
        one = b[judge]
        ways = ("direct", "agreed", "reason", "niqe")
        gains = [f"{CHOICES.get(way, way)} {spread(one[way]['captured_gain'])}" for way in ways]
        title = f"{pool_of(b)}: captured gain (0: a random choice, 1: the best), {judge.upper()}"
        found.append((title, "; ".join(gains)))
        agree = [f"{CHOICES.get(way, way)} {spread(one[way]['within_srcc'])}" for way in ways]
        found.append((f"{pool_of(b)}: SRCC within a photograph's candidates, {judge.upper()}", "; ".join(agree)))
        lost = [f"{CHOICES.get(way, way)} {spread(one[way]['regret'], 4)}" for way in ways]
        found.append(
            (f"{pool_of(b)}: regret, {judge.upper()}", f"{'; '.join(lost)}; random {one['random']['regret']:.4f}")
        )
    for which in ("mean", "chosen"):
        pool = [f"{name.upper()} {spread(b[f'{name}_{which}_minus_bicubic'], 3)}" for name in ("fsim", "vif")]
        pool.append(f"PSNR-Y {spread(b[f'psnr_y_{which}_minus_bicubic'])} dB")
        title = {"mean": "one candidate at random", "chosen": "chosen by `direct`"}[which]
        found.append((f"{pool_of(b)}: {title} less bicubic", "; ".join(pool)))
    if "fsim_direct_minus_default" in b:
        found += choice_rows(b)
    deviations = [f"{name.upper()} {b[name]['g_std'][0]:.4f}" for name in ("fsim", "vif")]
    found.append((f"{pool_of(b)}: G-STD", ", ".join(deviations)))
    return found + cascade_rows(b)


def choice_rows(b: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of each way to choose, less the default candidate."""
    rows = []
    for way in ("direct", "agreed", "nearest", "reason", "niqe", "oracle"):
        gains = [
            f"{name.upper().replace('_', '-')} {spread(b[f'{name}_{way}_minus_default'], 4)}"
            for name in ("vif", "psnr_y", "fsim")
        ]
        rows.append((f"{pool_of(b)}: choice by {CHOICES.get(way, way)} less the default candidate", "; ".join(gains)))
    return rows


def cascade_rows(b: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of the cascades of `best_of_n`."""
    found = []
    for judge in ("fsim", "vif"):
        few = {top: b[judge][f"cascade_{top}"] for top in (1, 2, 3)}
        cascade = [f"top {k}: {spread(c['minus_reason'])} at {c['time_over_reason']:.2f}" for k, c in few.items()]
        title = f"{pool_of(b)}: cascade less `reason`, captured gain {judge.upper()}, at which share of its time"
        found.append((title, "; ".join(cascade)))
    return found


def search_rows(s: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `search`, at its largest N."""
    found = []
    n = max(int(cell.rpartition(" ")[2]) for cell in s["pools"][next(iter(s["pools"]))]["minus_best_of_n"])
    for pool, one in s["pools"].items():
        for way in ("noise", "fusion", "fusion, always"):
            gaps = one["minus_best_of_n"][f"{way} {n}"]
            figure = [f"rating {spread(gaps['rating'], 3)}", f"VIF {spread(gaps['vif'], 4)}",
                      f"FSIM {spread(gaps['fsim'], 4)}", f"PSNR-Y {spread(gaps['psnr_y'])} dB"]  # fmt: skip
            what = f"{way} of {n}, pool of {pool}, {s['images']} photographs x4: less best of {n}"
            found.append((what, "; ".join(figure)))
    return found


def restorer_rows(r: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `restorer`."""
    found = []
    for preset, rows in r["presets"].items():
        for name, row in rows.items():
            if name == "bicubic":
                continue
            cells = [f"PSNR-Y {spread(row['psnr_y'])} dB", f"VIF {spread(row['vif'], 3)}",
                     f"FSIM {spread(row['fsim'], 3)}"] if "vif" in row else []  # fmt: skip
            cells.append(f"LR-consistency {spread(row['lr_consistency'], 1)} dB")
            what = f"x4 restorer, {name}" if name.startswith("steps") else name
            found.append((f"{what}, less bicubic: {r['images']} photographs, `{preset}`", "; ".join(cells)))
    return found


def candidates_rows(c: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `candidates`."""
    same, kills, memory = c["identity"], c["kills"], c["memory"]
    best = "yes" if kills["best_png_equal"] else "NO"
    kept = f"{kills['same_candidates']} of {kills['n']}, {kills['lines']} lines, best.png equal: {best}"
    size = " x ".join(map(str, memory["output"]))
    restored = memory["n"] - 1  # the second candidate of the varied pool is bicubic
    times = "once" if restored == 1 else f"{restored} times"
    others = same["compared"] - max(same["n"])  # the reference was compared with itself too
    return [
        (
            f"candidates of one seed with N in {same['n']} and batch in {same['batch']}, against those of N "
            f"{max(same['n'])} drawn one by one: compared, different",
            f"{others}, {same['different']}",
        ),
        (f"best-of-N killed {len(kills['killed_after_lines'])} times: same candidates", kept),
        (
            f"{memory['input_px']} px input restored {times} to {size} and ranked beside bicubic: peak memory of the "
            "process, time",
            f"{memory['peak_gib']:.2f} GiB, {memory['seconds']:.0f} s",
        ),
    ]
