"""TID2013: 25 references x 24 distortions x 5 levels, labels 0..9.

Layout: `mos_with_names.txt` (`5.51429 I01_01_1.bmp` a line), `mos_std.txt` (one number a line, same order; optional),
`distorted_images/`. Names are written in mixed case (`i01_01_2.bmp`, `I01_11_1.BMP`), and not in the same case as the
files, so files are found without regard to case. Divided by reference.
"""

import math
from pathlib import Path

from train_iqa.data.record import LabelRow, Listing, Scale
from train_iqa.data.tables import number, read_text, spread

TABLE, SPREADS, FOLDER = "mos_with_names.txt", "mos_std.txt", "distorted_images"
SCALE = Scale(worst=0.24242, best=7.21429)


def read(root: Path) -> Listing:
    """Return what the table lists. The published deviations are those of the mean, so they are small."""
    found = Listing(root=root, scale=SCALE)
    lines = [(k, line.split()) for k, line in enumerate((read_text(root / TABLE, found) or "").splitlines(), 1)]
    lines = [(k, parts) for k, parts in lines if parts]
    spreads: list[float | None] = [math.nan] * len(lines)
    if (root / SPREADS).is_file():
        values = (read_text(root / SPREADS, found) or "").split()
        if len(values) != len(lines):
            found.fault("layout", root / SPREADS, f"{len(values)} deviations for {len(lines)} images")
        else:
            spreads = [spread(value, f"{root / SPREADS}: value {k}", found) for k, value in enumerate(values, 1)]
    folder = root / FOLDER
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    where_is = {name.lower(): name for name in sorted(names, reverse=True)}
    for (line, parts), std in zip(lines, spreads, strict=True):
        where = f"{root / TABLE}:{line}"
        if len(parts) != 2:
            found.fault("label", where, f"{' '.join(parts)!r}: must be a score and a file name")
            continue
        label = number(parts[0], where, "score", found)
        if label is not None and std is not None:
            name = parts[1] if parts[1] in names else where_is.get(parts[1].lower(), parts[1])
            found.rows.append(
                LabelRow(file=f"{FOLDER}/{name}", label=label, std=std, reference=parts[1].partition("_")[0].upper())
            )
    return found
