"""LIVE in the Wild (LIVE Challenge, CLIVE): 1162 mobile photographs, labels 0..100.

Layout: `Data/AllImages_release.mat`, `Data/AllMOS_release.mat`, `Data/AllStdDev_release.mat`, `Images/`. The tables
begin with the 7 images (t1 .. t7, in `Images/trainingImages/`) that taught the raters; they are left out, as in the
works that report 1162 images. No official split.
Source: the read-me of the authors' archive.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from train_iqa.data.record import LabelRow, Listing, Scale
from train_iqa.data.tables import number, spread

DATA, FOLDER = "Data", "Images"
SCALE = Scale(worst=3.42, best=92.4319526627219)
_FOR_TEACHING = re.compile(r"t\d+\.\w+", re.IGNORECASE)


def read(root: Path) -> Listing:
    """Return what the three tables list, without the raters' teaching images."""
    found = Listing(root=root, scale=SCALE)
    names, scores, spreads = (
        _column(root, name, found) for name in ("AllImages_release", "AllMOS_release", "AllStdDev_release")
    )
    if names is None or scores is None or spreads is None:
        return found
    if not len(names) == len(scores) == len(spreads):
        counts = f"{len(names)} names, {len(scores)} scores, {len(spreads)} deviations"
        found.fault("layout", root / DATA, f"{counts}: the three tables must be equally long")
        return found
    for index, (cell, score, deviation) in enumerate(zip(names, scores, spreads, strict=True)):
        name = str(np.asarray(cell).item()) if np.asarray(cell).size == 1 else ""
        if _FOR_TEACHING.fullmatch(name):
            continue
        where = f"{root / DATA}: image {index + 1} ({name})"
        label, std = number(score, where, "MOS", found), spread(deviation, where, found)
        if label is not None and std is not None:
            found.rows.append(LabelRow(file=f"{FOLDER}/{name}", label=label, std=std))
    return found


def _column(root: Path, name: str, found: Listing) -> list[Any] | None:
    file = root / DATA / f"{name}.mat"
    try:
        table = loadmat(file)[name]
    except (OSError, KeyError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        found.fault("layout", file, f"cannot be read as a MATLAB file with a variable {name} ({error})")
        return None
    return list(np.asarray(table).ravel())
