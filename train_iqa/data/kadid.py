"""KADID-10k: 81 references x 25 distortions x 5 levels. Its column `dmos` is higher for **better** images.

The column `var` holds standard deviations in spite of its name. Layout: `dmos.csv` (dist_img, ref_img, dmos, var),
`images/I01_01_01.png`. No official split: divided by reference.
Source: the authors' archive; that `var` is a deviation was found by a public audit against the raw ratings.
"""

from pathlib import Path

from train_iqa.data.record import LabelRow, Listing, Scale
from train_iqa.data.tables import number, read_csv, spread

TABLE, FOLDER = "dmos.csv", "images"
SCALE = Scale(worst=1.0, best=4.93)


def read(root: Path) -> Listing:
    """Return what the table lists; the reference is the undistorted image's name."""
    found = Listing(root=root, scale=SCALE)
    for where, fields in read_csv(root / TABLE, ("dist_img", "ref_img", "dmos"), found):
        label = number(fields["dmos"], where, "dmos", found)
        std = spread(fields.get("var"), where, found)
        if label is not None and std is not None:
            found.rows.append(
                LabelRow(file=f"{FOLDER}/{fields['dist_img']}", label=label, std=std, reference=fields["ref_img"])
            )
    return found
