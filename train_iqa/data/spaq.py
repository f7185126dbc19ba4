"""SPAQ: 11125 smartphone photographs, labels 0..100, no spread of opinions published, no split.

Layout: `Annotations/MOS and Image attribute scores.xlsx` (Image name, MOS, five attributes), `TestImage/00001.jpg`.
Source: the authors' archive; range 2..96 over all images.
"""

from pathlib import Path

from train_iqa.data.record import LabelRow, Listing, Scale
from train_iqa.data.tables import number
from train_iqa.data.xlsx import XlsxError, read_sheet

TABLE, FOLDER = "Annotations/MOS and Image attribute scores.xlsx", "TestImage"
SCALE = Scale(worst=2.0, best=96.0)


def read(root: Path) -> Listing:
    """Return what the workbook's first sheet lists."""
    found = Listing(root=root, scale=SCALE)
    try:
        sheet = read_sheet(root / TABLE)
    except OSError as error:
        found.fault("layout", root / TABLE, f"cannot be opened ({error.strerror}); give the unpacked archive's folder")
        return found
    except XlsxError as error:
        found.fault("layout", root / TABLE, str(error))
        return found
    header = sheet[0] if sheet else []
    if "Image name" not in header or "MOS" not in header:
        found.fault("layout", root / TABLE, f"no columns Image name and MOS in the first row {header}")
        return found
    name_at, mos_at = header.index("Image name"), header.index("MOS")
    for line, cells in enumerate(sheet[1:], 2):
        values = [*cells, *[None] * (len(header) - len(cells))]
        if values[name_at] is None and values[mos_at] is None:
            continue
        mos = number(values[mos_at], f"{root / TABLE}:{line}", "MOS", found)
        if mos is not None:
            found.rows.append(LabelRow(file=f"{FOLDER}/{values[name_at]}", label=mos))
    return found
