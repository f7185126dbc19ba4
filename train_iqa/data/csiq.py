"""CSIQ: 30 references x 6 distortions x 4 or 5 levels, 866 images; labels are difference scores: 0 is best, 1 worst.

Layout: `csiq.DMOS.xlsx`, sheet `all_by_image` (a heading, then columns image, dst_idx, dst_type, dst_lev, dmos_std,
dmos), and `dst_imgs/{awgn,blur,contrast,fnoise,jpeg,jpeg2000}/1600.AWGN.1.png`. Divided by reference.
Source: the authors' workbook, whose names of distortions differ from those of the files.
"""

from pathlib import Path

from train_iqa.data.record import LabelRow, Listing, Scale
from train_iqa.data.tables import number, spread
from train_iqa.data.xlsx import XlsxError, read_sheet

TABLE, SHEET, FOLDER = "csiq.DMOS.xlsx", "all_by_image", "dst_imgs"
SCALE = Scale(worst=1.0, best=0.0)
COLUMNS = ("image", "dst_type", "dst_lev", "dmos_std", "dmos")
TYPES = {
    "noise": ("awgn", "AWGN"), "blur": ("blur", "BLUR"), "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "fnoise"), "jpeg": ("jpeg", "JPEG"), "jpeg 2000": ("jpeg2000", "jpeg2000"),
}  # fmt: skip
"""Distortion as the workbook calls it -> folder, and middle part of the file name."""


def read(root: Path) -> Listing:
    """Return what the sheet lists; the label is the difference score as it is."""
    found = Listing(root=root, scale=SCALE)
    table = root / TABLE
    try:
        sheet = read_sheet(table, SHEET)
    except OSError as error:
        found.fault("layout", table, f"cannot be opened ({error.strerror}); give the unpacked archive's folder")
        return found
    except XlsxError as error:
        found.fault("layout", table, str(error))
        return found
    start = next((k for k, cells in enumerate(sheet) if all(name in cells for name in COLUMNS)), None)
    if start is None:
        found.fault("layout", table, f"sheet {SHEET} has no row with the columns {', '.join(COLUMNS)}")
        return found
    places = [sheet[start].index(name) for name in COLUMNS]
    for line, cells in enumerate(sheet[start + 1 :], start + 2):
        values = [cells[place] if place < len(cells) else None for place in places]
        if any(value is not None for value in values):  # the sheet ends with empty rows
            _add(values, f"{table}:{line}", found)
    return found


def _add(values: list[str | float | None], where: str, found: Listing) -> None:
    image, kind, level, deviation, dmos = values
    if kind not in TYPES:
        found.fault("label", where, f"distortion {kind!r}: must be one of {', '.join(TYPES)}")
        return
    label, step = number(dmos, where, "dmos", found), number(level, where, "level", found)
    std = spread(deviation, where, found)
    if image is None or label is None or step is None or std is None:
        if image is None:
            found.fault("label", where, "names no image")
        return
    name = f"{image:.0f}" if isinstance(image, float) else image  # one reference is called 1600
    folder, token = TYPES[str(kind)]
    found.rows.append(
        LabelRow(file=f"{FOLDER}/{folder}/{name}.{token}.{step:.0f}.png", label=label, std=std, reference=name)
    )
