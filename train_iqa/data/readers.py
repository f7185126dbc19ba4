"""The public data sets, each read from its authors' own layout: one function, with what is odd about the set.

A reader adds rows and faults to a listing, whose scale `registry.FAMILIES` gives. Sets without an official split are
divided by their references.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from train_iqa.data.record import SPLITS, LabelRow, Listing
from train_iqa.data.tables import SheetError, number, read_csv, read_sheet, read_text, spread


def read_koniq(root: Path, listing: Listing) -> None:
    """KonIQ-10k: 10073 photographs in the wild, 1024 x 768, with the only official split of the field's sets.

    The label is the mean of the five-point opinions c1..c5, not the column MOS: that one is on 0..100 and was computed
    from standardised opinions. Layout: `koniq10k_distributions_sets.csv`, `1024x768/`.
    Source: the authors' metadata table.
    """
    levels, folder = ("c1", "c2", "c3", "c4", "c5"), "1024x768"
    if not (root / folder).is_dir():
        listing.fault("layout", root / folder, "no such folder; the smaller 512x384 copy is not what people rated")
    table = root / "koniq10k_distributions_sets.csv"
    for where, fields in read_csv(table, ("image_name", *levels, "set"), listing):
        counts = [count for level in levels if (count := number(fields[level], where, level, listing)) is not None]
        if len(counts) < len(levels):
            continue
        if min(counts) < 0 or sum(counts) <= 0:
            listing.fault("label", where, f"opinions {counts}: none, or negative")
        elif fields["set"] not in SPLITS:
            listing.fault("label", where, f"set {fields['set']!r}: must be one of {', '.join(SPLITS)}")
        else:
            shares = [count / sum(counts) for count in counts]
            mean = sum(level * share for level, share in enumerate(shares, 1))
            std = math.sqrt(sum((level - mean) ** 2 * share for level, share in enumerate(shares, 1)))
            file = f"{folder}/{fields['image_name']}"
            listing.rows.append(LabelRow(file=file, label=mean, std=std, split=fields["set"]))


def read_spaq(root: Path, listing: Listing) -> None:
    """SPAQ: 11125 smartphone photographs, labels 0..100, no spread of opinions published, no split.

    Layout: `Annotations/MOS and Image attribute scores.xlsx` (Image name, MOS, five attributes), `TestImage/00001.jpg`.
    Source: the authors' archive.
    """
    table = root / "Annotations/MOS and Image attribute scores.xlsx"
    for where, (name, mos) in _cells(table, None, ("Image name", "MOS"), listing):
        _add(listing, where, f"TestImage/{name}", mos, "MOS")


def read_kadid(root: Path, listing: Listing) -> None:
    """KADID-10k: 81 references x 25 distortions x 5 levels. Its column `dmos` is higher for **better** images.

    The column `var` holds standard deviations in spite of its name. Layout: `dmos.csv` (dist_img, ref_img, dmos, var),
    `images/I01_01_01.png`. The reference is the undistorted image's name.
    Source: the authors' archive; that `var` is a deviation was found by a public audit against the raw ratings.
    """
    for where, fields in read_csv(root / "dmos.csv", ("dist_img", "ref_img", "dmos"), listing):
        file = f"images/{fields['dist_img']}"
        _add(listing, where, file, fields["dmos"], "dmos", fields.get("var"), reference=fields["ref_img"])


def read_pipal(root: Path, listing: Listing) -> None:
    """PIPAL: 200 references x 116 distortions, restored images among them; labels are Elo points.

    Layout: `Train_Label/A0001.txt` (one line `A0001_00_00.bmp,1408.98` per image), `Distortion_1/` .. `Distortion_4/`
    (any depth: the archives are often unpacked into folders of their own name). Only the training half has public
    labels. The reference is the label file's name. No spread is published (manifests with 180.2 for every image hold a
    placeholder).
    """
    tables = sorted((root / "Train_Label").glob("*.txt"))
    if not tables:
        listing.fault("layout", root / "Train_Label", "no label files A0001.txt ...; unpack Train_Label there")
    where_is: dict[str, str] = {}
    for file in sorted(root.glob("Distortion_*/**/*.bmp")):
        if file.name in where_is:
            listing.fault("duplicate", file, f"the same name lies at {where_is[file.name]}; keep one of them")
        where_is.setdefault(file.name, file.relative_to(root).as_posix())
    for table in tables:
        for line, text in enumerate((read_text(table, listing) or "").splitlines(), 1):
            if text.strip():
                name, comma, score = (cell.strip() for cell in text.partition(","))
                path = where_is.get(name, f"Distortion_1/{name}")
                label = score if comma else None
                _add(listing, f"{table}:{line}", path, label, "score", reference=table.stem)


def read_livew(root: Path, listing: Listing) -> None:
    """LIVE in the Wild (LIVE Challenge, CLIVE): 1162 mobile photographs, labels 0..100.

    Layout: `Data/AllImages_release.mat`, `Data/AllMOS_release.mat`, `Data/AllStdDev_release.mat`, `Images/`. The tables
    begin with the 7 images (t1 .. t7, in `Images/trainingImages/`) that taught the raters; they are left out, as in the
    works that report 1162 images. No official split.
    Source: the read-me of the authors' archive.
    """
    tables = ("AllImages_release", "AllMOS_release", "AllStdDev_release")
    names, scores, spreads = (_matlab_column(root / "Data" / f"{name}.mat", name, listing) for name in tables)
    if names is None or scores is None or spreads is None:
        return
    if not len(names) == len(scores) == len(spreads):
        counts = f"{len(names)} names, {len(scores)} scores, {len(spreads)} deviations"
        listing.fault("layout", root / "Data", f"{counts}: the three tables must be equally long")
        return
    for index, (cell, score, deviation) in enumerate(zip(names, scores, spreads, strict=True)):
        name = str(np.asarray(cell).item()) if np.asarray(cell).size == 1 else ""
        if not re.fullmatch(r"t\d+\.\w+", name, re.IGNORECASE):
            where = f"{root / 'Data'}: image {index + 1} ({name})"
            _add(listing, where, f"Images/{name}", score, "MOS", deviation)


def read_agiqa(root: Path, listing: Listing) -> None:
    """AGIQA-3K: 2982 images of six generators, labels of quality (used here) and of agreement with the prompt (not).

    Layout: `data.csv` (name, prompt, adj1, adj2, style, mos_quality, std_quality, mos_align, std_align), with the
    images in `images/`, in `AGIQA-3K/` or beside the table: the archive names no folder. The reference is the prompt,
    which several generators answered.
    """
    folder = next((f"{name}/" for name in ("images", "AGIQA-3K") if (root / name).is_dir()), "")
    for where, fields in read_csv(root / "data.csv", ("name", "prompt", "mos_quality"), listing):
        file, std, prompt = folder + fields["name"], fields.get("std_quality"), fields["prompt"] or None
        _add(listing, where, file, fields["mos_quality"], "mos_quality", std, reference=prompt)


CSIQ_TYPES = {
    "noise": ("awgn", "AWGN"), "blur": ("blur", "BLUR"), "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "fnoise"), "jpeg": ("jpeg", "JPEG"), "jpeg 2000": ("jpeg2000", "jpeg2000"),
}  # fmt: skip
"""Distortion as the workbook calls it -> folder, and middle part of the file name."""


def read_csiq(root: Path, listing: Listing) -> None:
    """CSIQ: 30 references x 6 distortions x 4 or 5 levels, 866 images; labels are difference scores: 0 best, 1 worst.

    Layout: `csiq.DMOS.xlsx`, sheet `all_by_image` (a heading, then columns image, dst_idx, dst_type, dst_lev, dmos_std,
    dmos), and `dst_imgs/{awgn,blur,contrast,fnoise,jpeg,jpeg2000}/1600.AWGN.1.png`. The label is the difference score
    as it is.
    Source: the authors' workbook, whose names of distortions differ from those of the files.
    """
    columns = ("image", "dst_type", "dst_lev", "dmos_std", "dmos")
    for where, (image, kind, level, deviation, dmos) in _cells(
        root / "csiq.DMOS.xlsx", "all_by_image", columns, listing
    ):
        if kind not in CSIQ_TYPES:
            listing.fault("label", where, f"distortion {kind!r}: must be one of {', '.join(CSIQ_TYPES)}")
        elif image is None:
            listing.fault("label", where, "names no image")
        elif (step := number(level, where, "level", listing)) is not None:
            name = f"{image:.0f}" if isinstance(image, float) else image  # one reference is called 1600
            folder, token = CSIQ_TYPES[kind]
            file = f"dst_imgs/{folder}/{name}.{token}.{step:.0f}.png"
            _add(listing, where, file, dmos, "dmos", deviation, reference=name)


def read_tid2013(root: Path, listing: Listing) -> None:
    """TID2013: 25 references x 24 distortions x 5 levels, labels 0..9.

    Layout: `mos_with_names.txt` (lines `5.51429 I01_01_1.bmp`), `mos_std.txt` (one number per line, same order;
    optional), `distorted_images/`. Names are written in mixed case (`i01_01_2.bmp`, `I01_11_1.BMP`), and not in the
    same case as the files, so files are found without regard to case. The published deviations are those of the mean,
    so they are small.
    """
    table, spreads, folder = root / "mos_with_names.txt", root / "mos_std.txt", root / "distorted_images"
    lines = [(k, line.split()) for k, line in enumerate((read_text(table, listing) or "").splitlines(), 1)]
    lines = [(k, parts) for k, parts in lines if parts]
    values: list[str | None] = [None] * len(lines)
    if spreads.is_file():
        values = [*(read_text(spreads, listing) or "").split()]
        if len(values) != len(lines):
            listing.fault("layout", spreads, f"{len(values)} deviations for {len(lines)} images")
            values = [None] * len(lines)
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    where_is = {name.lower(): name for name in sorted(names, reverse=True)}
    for (line, parts), std in zip(lines, values, strict=True):
        where = f"{table}:{line}"
        if len(parts) != 2:
            listing.fault("label", where, f"{' '.join(parts)!r}: must be a score and a file name")
            continue
        name = parts[1] if parts[1] in names else where_is.get(parts[1].lower(), parts[1])
        reference = parts[1].partition("_")[0].upper()
        _add(listing, where, f"distorted_images/{name}", parts[0], "score", std, reference=reference)


def _add(
    listing: Listing,
    where: str,
    file: str,
    label: object,
    what: str,
    std: object = None,
    *,
    reference: str | None = None,
) -> None:
    value, deviation = number(label, where, what, listing), spread(std, where, listing)
    if value is not None and deviation is not None:
        listing.rows.append(LabelRow(file=file, label=value, std=deviation, reference=reference))


def _cells(
    file: Path, sheet: str | None, columns: Sequence[str], listing: Listing
) -> Iterator[tuple[str, list[str | float | None]]]:
    """Yield (file:line, values of the columns) below the row that names them; rows without a value are skipped."""
    try:
        rows = read_sheet(file, sheet)
    except OSError as error:
        listing.fault("layout", file, f"cannot be opened ({error.strerror}); give the unpacked archive's folder")
        return
    except SheetError as error:
        listing.fault("layout", file, str(error))
        return
    start = next((k for k, cells in enumerate(rows) if all(name in cells for name in columns)), None)
    if start is None:
        listing.fault("layout", file, f"no row with the columns {', '.join(columns)}")
        return
    indices = [rows[start].index(name) for name in columns]
    for line, cells in enumerate(rows[start + 1 :], start + 2):
        values = [cells[index] if index < len(cells) else None for index in indices]
        if any(value is not None for value in values):
            yield f"{file}:{line}", values


def _matlab_column(file: Path, name: str, listing: Listing) -> list[Any] | None:
    try:
        return list(np.asarray(loadmat(file)[name]).ravel())
    except (OSError, KeyError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        listing.fault("layout", file, f"cannot be read as a MATLAB file with a variable {name} ({error})")
        return None
