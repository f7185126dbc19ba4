"""AGIQA-3K: 2982 images of six generators, labels of quality (used here) and of agreement with the prompt (not).

Layout: `data.csv` (name, prompt, adj1, adj2, style, mos_quality, std_quality, mos_align, std_align), with the images
in `images/`, in `AGIQA-3K/` or beside the table: the archive names no folder. Divided by prompt.
"""

from pathlib import Path

from train_iqa.data.record import LabelRow, Listing, Scale
from train_iqa.data.tables import number, read_csv, spread

TABLE, FOLDERS = "data.csv", ("images", "AGIQA-3K")
SCALE = Scale(worst=0.0, best=4.488740784)


def read(root: Path) -> Listing:
    """Return what the table lists; the reference is the prompt, which several generators answered."""
    found = Listing(root=root, scale=SCALE)
    folder = next((name for name in FOLDERS if (root / name).is_dir()), None)
    for where, fields in read_csv(root / TABLE, ("name", "prompt", "mos_quality"), found):
        label = number(fields["mos_quality"], where, "mos_quality", found)
        std = spread(fields.get("std_quality"), where, found)
        if label is not None and std is not None:
            file = fields["name"] if folder is None else f"{folder}/{fields['name']}"
            found.rows.append(LabelRow(file=file, label=label, std=std, reference=fields["prompt"] or None))
    return found
