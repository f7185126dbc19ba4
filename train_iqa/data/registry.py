"""The data set families by name. A new one is a function in `readers.py` and one line here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_iqa.data import readers
from train_iqa.data.lists import read_csv_list, read_json_list
from train_iqa.data.record import Listing, Scale


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the data sets of one kind are read."""

    title: str
    read: Callable[..., Any]
    """Of a known set: takes the root folder and the listing to add to. Of a list: takes the file, then the folder of
    the images and the scale (either may be None), and returns the listing."""
    count: int | None = None
    """Images of the whole set; None for lists."""
    scale: Scale | None = None
    """Worst and best label over all images of the set, which is what other works rescale by; None for lists."""

    @property
    def is_list(self) -> bool:
        """Whether it is a file that names images, rather than a known data set's folder."""
        return self.count is None


def _known(title: str, read: Callable[..., Any], count: int, worst: float, best: float) -> Family:
    return Family(title=title, read=read, count=count, scale=Scale(worst=worst, best=best))


FAMILIES: dict[str, Family] = {
    "koniq": _known("KonIQ-10k", readers.read_koniq, 10073, 1.09615384615385, 4.31),
    "spaq": _known("SPAQ", readers.read_spaq, 11125, 2.0, 96.0),
    "kadid": _known("KADID-10k", readers.read_kadid, 10125, 1.0, 4.93),
    "pipal": _known("PIPAL", readers.read_pipal, 23200, 916.7136, 1835.9856),
    "livew": _known("LIVE in the Wild", readers.read_livew, 1162, 3.42, 92.4319526627219),
    "agiqa": _known("AGIQA-3K", readers.read_agiqa, 2982, 0.0, 4.488740784),
    "csiq": _known("CSIQ", readers.read_csiq, 866, 1.0, 0.0),
    "tid2013": _known("TID2013", readers.read_tid2013, 3000, 0.24242, 7.21429),
    "json": Family(title="JSON list (official evaluator, DeQA-Score)", read=read_json_list),
    "csv": Family(title="table with image and mos", read=read_csv_list),
}


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A data set to load."""

    family: str
    """A key of `FAMILIES`."""
    root: Path
    """The data set's folder; of a list, its file."""
    name: str = ""
    """What reports call it; by default the family, of a list the file's name without suffix."""
    image_root: Path | None = None
    """Of a list: what its paths are relative to, by default its own folder."""
    scale: Scale | None = None
    """Of a list whose labels are not on 1..5."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"unknown data set {self.family!r}: must be one of {', '.join(FAMILIES)}")
        if not FAMILIES[self.family].is_list and (self.image_root is not None or self.scale is not None):
            raise ValueError(f"{self.family}: image_root and scale belong to lists; a known set brings its own")
        if not self.name:
            object.__setattr__(self, "name", self.root.stem if FAMILIES[self.family].is_list else self.family)

    def read(self) -> Listing:
        """Return the labels, unchecked."""
        family = FAMILIES[self.family]
        if family.scale is None:
            return family.read(self.root, self.image_root, self.scale)
        listing = Listing(root=self.root, scale=family.scale)
        family.read(self.root, listing)
        return listing


def parse_sources(
    data: Sequence[str], names: Sequence[str] = (), image_root: Path | None = None, scale: str | None = None
) -> tuple[DatasetSource, ...]:
    """Return the data sets that a command line names: `FAMILY=PATH` each, a name each or none, and WORST:BEST.

    image_root and scale belong to lists alone. Raises ValueError that names the option.
    """
    if names and len(names) != len(data):
        raise ValueError(f"{len(names)} names for {len(data)} data sets; give one each, or none")
    ends = None if scale is None else parse_pair(scale, "--scale", "0:100")
    lists = {"image_root": image_root, "scale": None if ends is None else Scale(worst=ends[0], best=ends[1])}
    sources = []
    for text, name in zip(data, names or [""] * len(data), strict=True):
        family, equals, path = text.partition("=")
        if not equals or family not in FAMILIES:
            raise ValueError(f"--data {text!r}: must be FAMILY=PATH with a family of {', '.join(FAMILIES)}")
        options: dict[str, Any] = lists if FAMILIES[family].is_list else {}
        sources.append(DatasetSource(family=family, root=Path(path), name=name, **options))
    return tuple(sources)


def parse_pair(text: str, option: str, example: str) -> tuple[float, float]:
    """Return the two numbers of a text like `0:100`. Raises ValueError that names the option."""
    first, colon, second = text.partition(":")
    try:
        if not colon:
            raise ValueError("no colon")
        return float(first), float(second)
    except ValueError as error:
        raise ValueError(f"{option} {text!r}: must be two numbers, for instance {example}") from error
