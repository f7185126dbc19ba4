"""KonIQ-10k: 10073 photographs in the wild, 1024 x 768, with the only official split of the field's sets.

The label is the mean of the five-point opinions c1..c5, not the column MOS: that one is on 0..100 and was computed from
standardised opinions. Layout: `koniq10k_distributions_sets.csv`, `1024x768/`.
Source: the authors' metadata table; the range over all 10073 means, which is what other works rescale by.
"""

import math
from pathlib import Path

from train_iqa.data.record import SPLITS, LabelRow, Listing, Scale
from train_iqa.data.tables import number, read_csv

TABLE, FOLDER = "koniq10k_distributions_sets.csv", "1024x768"
SCALE = Scale(worst=1.09615384615385, best=4.31)
_LEVELS = ("c1", "c2", "c3", "c4", "c5")


def read(root: Path) -> Listing:
    """Return what the table lists, with the spread of the five-point opinions."""
    found = Listing(root=root, scale=SCALE)
    if not (root / FOLDER).is_dir():
        found.fault("layout", root / FOLDER, "no such folder; the smaller 512x384 copy is not what people rated")
    for where, fields in read_csv(root / TABLE, ("image_name", *_LEVELS, "set"), found):
        counts = [number(fields[level], where, level, found) for level in _LEVELS]
        if None in counts:
            continue
        total = sum(counts)  # type: ignore[arg-type]
        if min(counts) < 0 or total <= 0:  # type: ignore[type-var]
            found.fault("label", where, f"opinions {counts}: none, or negative")
            continue
        if fields["set"] not in SPLITS:
            found.fault("label", where, f"set {fields['set']!r}: must be one of {', '.join(SPLITS)}")
            continue
        shares = [count / total for count in counts]  # type: ignore[operator]
        mean = sum(level * share for level, share in enumerate(shares, 1))
        square = sum((level - mean) ** 2 * share for level, share in enumerate(shares, 1))
        found.rows.append(
            LabelRow(file=f"{FOLDER}/{fields['image_name']}", label=mean, std=math.sqrt(square), split=fields["set"])
        )
    return found
