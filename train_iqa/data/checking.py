"""From labels to data sets whose every image is there, inside its root, readable and only once.

Everything that is wrong with all data sets asked for is found first and reported in one list, before anything starts:
a training that dies of the 9000th file is a day lost, and a file that silently drops out changes every number.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from train_iqa.data.record import (
    SPLITS,
    DatasetProblems,
    IqaDataset,
    LabelledImage,
    LabelRow,
    Listing,
    Problem,
    group_name,
)
from train_iqa.data.registry import DatasetSource
from zoomiqa_reward.images.loading import ImageError, load_image
from zoomiqa_reward.runs.digest import file_digest
from zoomiqa_reward.runs.progress import progress

CHECKS = ("full", "paths")
ACCEPTABLE = ("missing", "corrupt", "duplicate")
LABEL_TOLERANCE = 1e-3
"""How far outside 1..5 a label may fall: the published ranges are rounded."""


def load_dataset(family: str, root: str | os.PathLike[str], **options: object) -> IqaDataset:
    """Return one data set; `options` are those of `DatasetSource` and of `load_datasets`."""
    keys = ("name", "image_root", "scale")
    source = DatasetSource(family=family, root=Path(root), **{key: options.pop(key) for key in keys if key in options})  # type: ignore[arg-type]
    return load_datasets([source], **options)[0]  # type: ignore[arg-type]


def load_datasets(
    sources: Sequence[DatasetSource], *, checks: str = "full", accept: Iterable[str] = (), workers: int | None = None
) -> list[IqaDataset]:
    """Return the data sets, in order, with labels on 1..5.

    checks: `full` decodes and hashes every file (minutes for ten thousand images), `paths` only looks whether it is
    there. accept: kinds of problem (missing, corrupt, duplicate) for which an image is left out instead; of copies the
    first one stays. workers: threads that decode, by default one a core, at most 8.
    Raises DatasetProblems with everything that is wrong with any of them; ValueError for wrong arguments.
    """
    accepted = frozenset(accept)
    if checks not in CHECKS or not accepted <= set(ACCEPTABLE):
        raise ValueError(
            f"checks={checks!r} must be one of {', '.join(CHECKS)}, accept={sorted(accepted)} some of "
            f"{', '.join(ACCEPTABLE)}"
        )
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError(f"two data sets of one name in {', '.join(names)}; give one of them another name (--name)")
    loaded: list[IqaDataset] = []
    problems: list[Problem] = []
    for source in sources:
        dataset, problems_here = _load(source, checks, workers or min(8, os.cpu_count() or 1))
        problems_here = [replace(problem, dataset=source.name) for problem in problems_here]
        problems += [problem for problem in problems_here if problem.kind not in accepted]
        loaded.append(replace(dataset, left_out=tuple(p for p in problems_here if p.kind in accepted)))
    if problems:
        raise DatasetProblems(problems)
    return loaded


def find_shared(first: IqaDataset, second: IqaDataset) -> list[Problem]:
    """Return the images of `second` whose file is, byte for byte, in `first` too: training data within test data.

    Raises ValueError where the data sets were loaded without hashes.
    """
    if any(image.sha256 is None for dataset in (first, second) for image in dataset.images):
        raise ValueError("find_shared compares contents: load both data sets with checks='full'")
    path_of = {image.sha256: image.path for image in first.images}
    return [
        Problem(kind="duplicate", where=str(image.path), what=f"is {path_of[image.sha256]}", dataset=second.name)
        for image in second.images
        if image.sha256 in path_of
    ]


def require_readable(paths: Iterable[Path], *, workers: int | None = None) -> None:
    """Raise DatasetProblems with every image file that cannot be decoded. workers: as for `load_datasets`."""
    files = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        answers = list(progress(pool.map(_inspect, files), len(files), "checking images"))
    problems = [
        Problem(kind="corrupt", where=str(path), what=str(answer).removeprefix(f"{path}: "), dataset="images")
        for path, answer in zip(files, answers, strict=True)
        if isinstance(answer, ImageError)
    ]
    if problems:
        raise DatasetProblems(problems)


def _load(source: DatasetSource, checks: str, workers: int) -> tuple[IqaDataset, list[Problem]]:
    listing = source.read()
    if not listing.rows and not listing.problems:
        listing.fault("layout", source.root, "names no images")
    _check_split(listing)
    places = [_place(row, listing) for row in listing.rows]
    kept = [(row, path) for row, path in zip(listing.rows, places, strict=True) if path is not None]
    hashes: list[str | None] = [None] * len(kept)
    if checks == "full":
        with ThreadPoolExecutor(workers) as pool:
            seen = progress(pool.map(_inspect, [path for _, path in kept]), len(kept), f"checking {source.name}")
            hashes = [_hash_or_fault(answer, path, listing) for answer, (_, path) in zip(seen, kept, strict=True)]
        kept = [pair for pair, sha256 in zip(kept, hashes, strict=True) if sha256 is not None]
        hashes = [sha256 for sha256 in hashes if sha256 is not None]
    images, first = [], dict[str, Path]()
    for (row, path), sha256 in zip(kept, hashes, strict=True):
        key = sha256 or str(path)
        if key in first:
            how = "is listed twice" if path == first[key] else f"is a copy of {first[key]}"
            listing.fault("duplicate", path, how)
            continue
        first[key] = path
        images.append(_image(row, path, sha256, source.name, listing))
    dataset = IqaDataset(
        name=source.name, family=source.family, root=listing.root, scale=listing.scale, images=tuple(images),
        groups=tuple(sorted({group_name(_id_of(row), row.reference) for row in listing.rows})),
    )  # fmt: skip
    return dataset, listing.problems


def _check_split(listing: Listing) -> None:
    """Note where the listed parts leave images out, or tear the images of one reference apart."""
    without = [row for row in listing.rows if row.split is None]
    if 0 < len(without) < len(listing.rows):
        count = f"{len(without)} of {len(listing.rows)} images, {without[0].file} first,"
        listing.fault("layout", listing.root, f"{count} name no split; name it for all images or for none")
    parts_of: dict[str, set[str]] = {}
    for row in listing.rows:
        if row.reference is not None and row.split is not None:
            parts_of.setdefault(row.reference, set()).add(row.split)
    for reference, parts in parts_of.items():
        if len(parts) > 1:
            what = f"its images are in {' and '.join(sorted(parts))}; a reference belongs to one part"
            listing.fault("layout", f"reference {reference}", what)


def _place(row: LabelRow, listing: Listing) -> Path | None:
    """Return where the row's file really lies, None and a fault where it may not lie or the label is off the scale."""
    rating = listing.scale.rating(row.label)
    if not 1 - LABEL_TOLERANCE <= rating <= 5 + LABEL_TOLERANCE:
        scale = f"{listing.scale.worst}..{listing.scale.best}"
        listing.fault("label", row.file, f"label {row.label} is not in {scale}; another column, or pass the scale")
    if row.split is not None and row.split not in SPLITS:
        listing.fault("label", row.file, f"split {row.split!r}: must be one of {', '.join(SPLITS)}")
    parts = PurePosixPath(row.file.replace("\\", "/")).parts
    if PurePosixPath(row.file).is_absolute() or PureWindowsPath(row.file).drive or ".." in parts or "\0" in row.file:
        listing.fault("escape", repr(row.file), "paths are relative to the root, without `..`")
        return None
    path = listing.root / row.file
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # a loop of links; a name that no disk can hold
        listing.fault("missing", path, "no such file")
        return None
    if not real.is_relative_to(listing.root.resolve()):
        listing.fault("escape", path, f"is a link out of the root, to {real}; give the folder that really holds it")
        return None
    if not real.is_file():
        listing.fault("missing", path, "is no file")
        return None
    return path


def _inspect(path: Path) -> str | ImageError:
    try:
        load_image(path)
        return file_digest(path)
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(f"{path}: {error}")


def _hash_or_fault(answer: str | ImageError, path: Path, listing: Listing) -> str | None:
    if isinstance(answer, str):
        return answer
    listing.fault("corrupt", path, str(answer).removeprefix(f"{path}: "))
    return None


def _id_of(row: LabelRow) -> str:
    return PurePosixPath(row.file).as_posix()


def _image(row: LabelRow, path: Path, sha256: str | None, name: str, listing: Listing) -> LabelledImage:
    return LabelledImage(
        dataset=name, id=_id_of(row), path=path, mos=listing.scale.rating(row.label),
        std=listing.scale.spread(row.std), label=row.label, reference=row.reference, split=row.split,
        boxes=row.boxes, sha256=sha256,
    )  # fmt: skip
