"""The data set families by name. A new one is a file with a `read` function and one line here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_iqa.data import agiqa, csiq, csv_list, json_list, kadid, koniq, livew, pipal, spaq, tid2013
from train_iqa.data.record import Listing, Scale


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the data sets of one kind are read."""

    title: str
    read: Callable[..., Listing]
    """Takes the root folder; of a list, the file, then the images' folder and the scale (either may be None)."""
    count: int | None = None
    """Images of the whole set; None for lists."""

    @property
    def is_list(self) -> bool:
        """Whether it is a file that names images, rather than a known data set's folder."""
        return self.count is None


FAMILIES: dict[str, Family] = {
    "koniq": Family(title="KonIQ-10k", read=koniq.read, count=10073),
    "spaq": Family(title="SPAQ", read=spaq.read, count=11125),
    "kadid": Family(title="KADID-10k", read=kadid.read, count=10125),
    "pipal": Family(title="PIPAL", read=pipal.read, count=23200),
    "livew": Family(title="LIVE in the Wild", read=livew.read, count=1162),
    "agiqa": Family(title="AGIQA-3K", read=agiqa.read, count=2982),
    "csiq": Family(title="CSIQ", read=csiq.read, count=866),
    "tid2013": Family(title="TID2013", read=tid2013.read, count=3000),
    "json": Family(title="JSON list (official evaluator, DeQA-Score)", read=json_list.read),
    "csv": Family(title="table with image and mos", read=csv_list.read),
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
        arguments: tuple[Any, ...] = (self.image_root, self.scale) if family.is_list else ()
        return family.read(self.root, *arguments)
