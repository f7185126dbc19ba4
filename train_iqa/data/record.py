"""What the reader of any data set gives: rows as the label file names them, then checked images on one scale 1..5.

A reader (`readers.py`, `lists.py`) only reads labels into a `Listing`. What is wrong with them, and later with the
image files, is collected there and never raised one by one: see `checking.load_datasets`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.runs.digest import digest

Box = tuple[float, float, float, float]
SPLITS = ("training", "validation", "test")
KINDS = ("layout", "label", "escape", "missing", "corrupt", "duplicate")
"""Of problems: a label file that is not as it must be; one label in it; a path that leaves the root; no such file; a
file that cannot be decoded; the same image twice."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How raw labels become ratings 1..5: affine, over the whole set, so that a part of it has the same labels.

    >>> Scale(worst=1.0, best=0.0).rating(0.25)     # difference scores: higher is worse
    4.0
    """

    worst: float
    """Raw label that becomes 1."""
    best: float
    """Raw label that becomes 5; below `worst` where higher labels are worse."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.worst) and math.isfinite(self.best)) or self.worst == self.best:
            raise ValueError(f"scale {self.worst}..{self.best}: two different finite numbers are needed")

    def rating(self, label: float) -> float:
        """Return the label on 1..5, not clipped."""
        return 1 + 4 * (label - self.worst) / (self.best - self.worst)

    def spread(self, std: float) -> float:
        """Return a standard deviation of raw labels on the scale of ratings."""
        return 4 * std / abs(self.best - self.worst)


RATINGS = Scale(worst=1.0, best=5.0)
"""Of labels that are ratings 1..5 already."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a data set."""

    kind: str
    """One of `KINDS`."""
    where: str
    """File, or file and line."""
    what: str
    dataset: str = ""

    def __str__(self) -> str:
        return f"{self.dataset}: {self.kind}: {self.where}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One image as the label file names it; nothing is checked yet."""

    file: str
    """Relative to the listing's root, with `/`."""
    label: float
    std: float = math.nan
    """Spread of people's opinions, in raw units; NaN where the set does not tell."""
    reference: str | None = None
    """What images of one content share; parts of a split never share one."""
    split: str | None = None
    """Official part: training, validation or test."""
    boxes: tuple[Box, ...] | None = None
    """Damaged regions as shares of the sides (left, top, right, bottom); empty: known to have none; None: unknown."""


@dataclass(kw_only=True)
class Listing:
    """What a reader found, problems included."""

    root: Path
    """Folder that the rows' files lie in, and may not leave."""
    scale: Scale
    rows: list[LabelRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def fault(self, kind: str, where: object, what: str) -> None:
        """Note a problem and go on."""
        self.problems.append(Problem(kind=kind, where=str(where), what=what))


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """One checked image with people's opinion of it."""

    dataset: str
    id: str
    """Path relative to the data set's root, with `/`; unique in the data set."""
    path: Path
    mos: float
    """1 bad .. 5 excellent."""
    std: float
    """Spread of people's opinions on the same scale; NaN where unknown."""
    label: float
    """As the data set has it."""
    reference: str | None = None
    split: str | None = None
    boxes: tuple[Box, ...] | None = None
    sha256: str | None = None
    """Of the file; None where only paths were checked."""


def group_name(image_id: str, reference: str | None) -> str:
    """Return what must not be torn apart: the reference, or the image itself.

    The two kinds of name cannot meet: `r:` and `i:` stand before them.
    """
    return f"i:{image_id}" if reference is None else f"r:{reference}"


@dataclass(frozen=True, kw_only=True)
class IqaDataset:
    """A data set whose every image is there and can be read."""

    name: str
    family: str
    root: Path
    scale: Scale
    images: tuple[LabelledImage, ...]
    groups: tuple[str, ...] = ()
    """What no split tears apart (`group_name`), of all images that are listed, also of those left out: the parts of a
    split stay as they are when an image is left out. Empty: those of `images`."""
    left_out: tuple[Problem, ...] = ()
    """Images that are missing here because the caller accepted their kind of problem."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_official_split(self) -> bool:
        """Whether the data set's authors divided it."""
        return any(image.split is not None for image in self.images)

    @property
    def digest(self) -> str:
        """16 hex digits of names, labels and (where hashed) contents, in any order: the same data, the same digest."""
        lines = sorted(f"{image.id}\t{image.mos!r}\t{image.split}\t{image.sha256}" for image in self.images)
        return digest("\n".join(lines))


class DatasetProblems(ZoomIQAError, ValueError):
    """All that is wrong with the data sets asked for, in one list."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        counts = {kind: sum(problem.kind == kind for problem in problems) for kind in KINDS}
        summary = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{len(problems)} problems ({summary}); nothing was started\n{lines}")
