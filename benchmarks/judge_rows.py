"""Rows of the tables of figures on the judge: against people's scores, on synthetic damage, in pairs."""

from typing import Any

SETS = {"srij": "SRIJ", "tid2013": "TID2013", "koniq": "KonIQ", "spaq": "SPAQ"}
ONE_REFERENCE = "tid2013"
"""The set whose images are distortions of one reference: they are no sample of images, so it has no interval."""
APART = {"srij": "other scenes", "tid2013": "other kinds of distortion"}
"""What a fold of the cross-validation learned from in place of the images that it rates; elsewhere other images."""


def interval(result: dict[str, Any], key: str) -> str:
    """Return `0.812 [0.79, 0.83]`."""
    low, high = result[f"{key}_95"]
    return f"{result[key]:.3f} [{low:.2f}, {high:.2f}]"


def synthetic_rows(s: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `nano_synthetic`."""
    found = []
    names = {"pseudo_mos": "pseudo-MOS", **{
        name: f"{name.upper()} (SRCC of the labels with it: {s[f'srcc_labels_{name}']:.2f})" for name in ("fsim", "vif")
    }}  # fmt: skip
    for target, name in ((target, name) for target, name in names.items() if f"srcc_direct_{target}" in s):
        figure = f"{interval(s, f'srcc_direct_{target}')}; NIQE {interval(s, f'srcc_niqe_{target}')}"
        found.append((f"SRCC of `direct` with {name}, {s['images']} degraded BSDS500 test photographs", figure))
    rates = (s["zoom_rate"], s["zoom_rate_local"], s["zoom_rate_global"])
    return [
        *found,
        ("readable answers in `reason`", f"{s['readable_share']:.1%}"),
        ("SRCC of `direct` with `reason`", f"{s['srcc_direct_reason']:.3f}"),
        ("zoom rate: all, local damage, global damage", ", ".join(f"{rate:.0%}" for rate in rates)),
        box_row(s, "BSDS500 test photographs"),
    ]


def held_out_rows(s: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `nano_synthetic --held-out`: the images that the margin of the boxes was chosen on."""
    return [box_row(s, "held-out photographs, on which the boxes' margin was chosen")]


def box_row(s: dict[str, Any], images: str) -> tuple[str, str]:
    """Return (what, figure) of the told boxes."""
    local = round(s["images"] * s["local_share"])
    terciles = ", ".join(
        f"{s[f'iou_tercile_{k}']['named']:.2f} ({s[f'iou_tercile_{k}']['central']:.2f})" for k in (1, 2, 3)
    )
    return (
        f"IoU of the told box with the true region (in brackets: the central box), {local} local damages of {images}; "
        "by tercile of area",
        f"{interval(s, 'iou_named')} ({s['iou_central']:.3f}); {terciles}; in the words {s['iou_margins']['0.0']:.3f}",
    )


def mos_rows(m: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `sr_mos`."""
    measures = {
        "srcc_overall": "SRCC overall",
        "srcc_within_scene": "SRCC within a scene",
        "pair_accuracy": "pair accuracy, MOS 0.5 apart",
        "regret_scene": f"MOS lost by its choice (random {m['random_regret_scene']:.2f})",
        "regret_pools_of_4": "MOS lost by its choice among 4",
    }
    of = f"human MOS of SR4K dev (not independent; {m['images']} images, {m['scenes']} scenes)"
    rows = [
        (f"{of}: {name}", f"{interval(m['direct'], key)}; NIQE {interval(m['niqe'], key)}")
        for key, name in measures.items()
    ]
    if "reason" in m:
        rows += [
            (f"{of}, `reason`: {measures[key]}", interval(m["reason"], key))
            for key in ("srcc_overall", "srcc_within_scene", "regret_scene")
        ]
    return rows


def pair_figures(held: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (measure, figure) of one set of `pairs`; a set of one scene has no interval over scenes."""
    between = " [{:.2f}, {:.2f}]".format(*held["agreement_95"]) if "agreement_95" in held else ""
    return [
        (
            "agreement with people; of the difference of ratings",
            f"{held['agreement_of_probability']:.3f}{between}; {held['agreement_of_difference']:.3f}",
        ),
        ("share of the pairs where it is 90 % sure", f"{held['share_at_least_0.9']:.0%}"),
        ("agreement there; elsewhere", f"{held['agreement_at_least_0.9']:.3f}; {held['agreement_below']:.3f}"),
        (
            "calibration error; negative log-likelihood (0.693 by chance); asymmetry",
            f"{held['calibration_error']:.3f}; {held['negative_log_likelihood']:.3f}; {held['largest_asymmetry']:g}",
        ),
    ]


def pair_titles(p: dict[str, Any]) -> dict[str, str]:
    """Return set -> its name with its pairs and scenes; one scene has one reference."""
    return {name: f"{SETS[name]}, {held['pairs']} pairs, {held['scenes']} scene{'s' if held['scenes'] > 1 else ''}"
            for name, held in p["held"].items()}  # fmt: skip


def pair_rows(p: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `pairs`: of the scenes that did not fit the temperature."""
    fitted = f"temperature {p['temperature']:.3f}, fitted to {p['fitted_scenes']} other scenes; nano learned these"
    return [(f"pair mode, {of} ({fitted}): {what}", figure)
            for name, of in pair_titles(p).items() for what, figure in pair_figures(p["held"][name])]  # fmt: skip


def pair_table(p: dict[str, Any]) -> str:
    """Return the guide's table of `pairs`, one column per set."""
    columns = [dict(pair_figures(held)) for held in p["held"].values()]
    lines = [f"| 95 % interval over scenes in brackets | {' | '.join(pair_titles(p).values())} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    lines += [f"| {what} | {' | '.join(column[what] for column in columns)} |" for what in columns[0]]
    return "\n".join(lines)


def people_rows(p: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, figure) of `people`: of images in no fold's training set, and of sets that were left out whole."""
    found = []
    for name, shown in ((name, shown) for name, shown in SETS.items() if name in p["sets"]):
        one = p["sets"][name]
        key = "within" if "within" in one["niqe"] else "srcc"
        of = f"{one['niqe']['images']} images of {shown}"
        of = f"mean SRCC per scene, {of}, {one['niqe']['scenes']} scenes" if key == "within" else f"SRCC, {of}"
        of += ", all of one reference, so without interval" if name == ONE_REFERENCE else ""
        figures = {
            who: f"{values[key]:.3f}" if name == ONE_REFERENCE else interval(values, key) for who, values in one.items()
        }
        beside = f"before {figures['start']}; NIQE {figures['niqe']}"
        if "crossed" in one:
            folds = f"{len(p['folds'])} of {p['folds_in_all']} folds"
            what = f"human scores: {of}; learned from {APART.get(name, 'other images')} of {shown} ({folds})"
            found.append((what, f"{figures['crossed']}; {beside}"))
        if "family_left_out" in one:
            what = f"human scores: {of}; {shown} was left out of training"
            found.append((what, f"{figures['family_left_out']}; {beside}"))
    return found
