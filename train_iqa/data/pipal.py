"""PIPAL: 200 references x 116 distortions, restored images among them; labels are Elo points.

Layout: `Train_Label/A0001.txt` (one line `A0001_00_00.bmp,1408.98` an image), `Distortion_1/` .. `Distortion_4/` (any
depth: the archives are often unpacked into folders of their own name). Only the training half has public labels;
divided by reference. No spread is published (manifests with 180.2 for every image hold a placeholder).
"""

from pathlib import Path

from train_iqa.data.record import LabelRow, Listing, Scale
from train_iqa.data.tables import number, read_text

LABELS, FOLDERS = "Train_Label", "Distortion_*"
SCALE = Scale(worst=916.7136, best=1835.9856)


def read(root: Path) -> Listing:
    """Return what the label files list; the reference is the label file's name."""
    found = Listing(root=root, scale=SCALE)
    tables = sorted((root / LABELS).glob("*.txt"))
    if not tables:
        found.fault("layout", root / LABELS, "no label files A0001.txt ...; unpack Train_Label there")
    where_is: dict[str, str] = {}
    for file in sorted(root.glob(f"{FOLDERS}/**/*.bmp")):
        relative = file.relative_to(root).as_posix()
        if file.name in where_is:
            found.fault("duplicate", file, f"the same name lies at {where_is[file.name]}; keep one of them")
        where_is.setdefault(file.name, relative)
    for table in tables:
        for line, text in enumerate((read_text(table, found) or "").splitlines(), 1):
            if not text.strip():
                continue
            name, comma, score = (part.strip() for part in text.partition(","))
            label = number(score if comma else None, f"{table}:{line}", "score", found)
            if label is not None:
                file = where_is.get(name, f"Distortion_1/{name}")
                found.rows.append(LabelRow(file=file, label=label, reference=table.stem))
    return found
