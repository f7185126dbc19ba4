"""What a curation is told."""

from dataclasses import dataclass, field
from pathlib import Path

from train_iqa.curation.endpoint import Endpoint
from train_iqa.curation.judges import ConsistencyConfig
from train_iqa.curation.prompts import Prompts
from train_iqa.curation.reliance import RelianceConfig
from train_iqa.data import DatasetSource
from train_iqa.data.splits import PARTS

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """What is written about, by whom, and what is kept."""

    sources: tuple[DatasetSource, ...]
    """Images with people's opinion scores."""
    teacher: Endpoint
    out: Path
    """Run folder; an unfinished run in it is continued."""
    judge: Endpoint | None = None
    """None: the rules judge, which needs no endpoint."""
    part: str = AUTO
    """Of each data set: auto is the official training part where there is one, else all; others: `datasets.select`."""
    limit: int | None = None
    """Images of each data set, from the start."""
    attempts: int = 3
    """Answers asked for in each round until one is kept."""
    rounds: int = 2
    """1: only round 1 is written, also where it asks for a closer look."""
    rating_tolerance: float = 0.35
    """How far a kept answer's rating may lie from people's."""
    consistency: ConsistencyConfig | None = field(default_factory=ConsistencyConfig)
    """None: hints are not asked."""
    reliance: RelianceConfig | None = field(default_factory=RelianceConfig)
    """None: no continuations are asked for."""
    prompts: Prompts = field(default_factory=Prompts)
    protocol: Path | None = None
    """Protocol file of a teacher that is a Zoom-IQA model: it is asked as it was trained, and not told the score."""
    thresholds: Path | None = None
    """File of hint thresholds; None: those of this release."""
    max_pixels: int = 4_194_304
    """Larger images are reduced to this for the endpoints; the hints see them as they are."""
    concurrency: int = 8
    """Images in work at a time."""
    max_failures: int = 20
    """Images in a row that the endpoints failed; then the run stops."""
    seed: int = 0
    checks: str = "full"
    """Of the files before the start, see `datasets.load_datasets`."""
    accept: tuple[str, ...] = ()
    """Kinds of problem for which an image is left out."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("no data: give at least one data set")
        if self.part not in (AUTO, *PARTS):
            raise ValueError(f"part {self.part!r}: must be one of {', '.join((AUTO, *PARTS))}")
        if min(self.attempts, self.concurrency, self.max_failures, self.max_pixels) < 1 or self.rounds not in (1, 2):
            raise ValueError(
                f"attempts={self.attempts}, concurrency={self.concurrency}, max_failures={self.max_failures}, "
                f"max_pixels={self.max_pixels} must be at least 1, rounds={self.rounds} 1 or 2"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: must be at least 1")
        if not self.rating_tolerance > 0:
            raise ValueError(f"rating_tolerance={self.rating_tolerance}: must be above 0")
        if self.attempts > 1 and self.teacher.temperature == 0:
            raise ValueError(
                f"attempts={self.attempts} of a teacher at temperature 0 are all the same; raise it, or ask once"
            )
        if self.reliance is not None and self.teacher.temperature == 0:
            raise ValueError(
                "reliance compares continuations that are drawn anew, and at temperature 0 they are all the same: "
                "raise the teacher's temperature, or set reliance to None (--no-reliance)"
            )
