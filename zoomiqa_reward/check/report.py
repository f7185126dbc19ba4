"""The result of a check: the reward, the measures and the verdicts, as JSON and as a table for people."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoomiqa_reward.check.ladders import Pool
from zoomiqa_reward.check.measures import Measures
from zoomiqa_reward.check.tallies import mean
from zoomiqa_reward.check.verdict import FIT, UNFIT, Verdict
from zoomiqa_reward.runs.json_lines import plain


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckReport:
    """One reward, checked."""

    reward: str
    fingerprint: str | None
    deterministic: bool
    """What the reward says of itself; `notes` has it where the repeats say otherwise."""
    differentiable: bool
    photographs: tuple[str, ...]
    measures: Measures
    verdicts: tuple[Verdict, ...]
    errors: tuple[str, ...]
    """One entry per image that could not be measured, contentless and emptied ones apart."""
    notes: tuple[str, ...]
    shown: Pool
    """The first photograph's ladders, for the figure."""

    def as_json(self) -> dict[str, Any]:
        """Return the report without images; NaN and infinity are None (`spread` 0 tells the infinite ratios)."""
        verdicts = {
            verdict.use: {
                "verdict": verdict.verdict, "num_images": verdict.num_images, "min_images": verdict.min_images,
                "criteria": [asdict(criterion) | {"met": criterion.met} for criterion in verdict.criteria],
            }
            for verdict in self.verdicts
        }  # fmt: skip
        document: dict[str, Any] = plain(
            {
                "reward": self.reward, "fingerprint": self.fingerprint, "deterministic": self.deterministic,
                "differentiable": self.differentiable, "photographs": self.photographs, "verdicts": verdicts,
                "measures": asdict(self.measures), "errors": self.errors, "notes": self.notes,
            }
        )  # fmt: skip
        return document


_STYLES = {FIT: "bold green", UNFIT: "bold red"}


def print_report(report: CheckReport, console: Console) -> None:
    """Print table, verdicts, notes and the first few failures."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(f"{report.reward}, {report.measures.num_photographs} photographs")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows(report.measures):
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for verdict in report.verdicts:
        line = Text(f"{verdict.use:<10}", style="bold")
        line.append(verdict.verdict, style=_STYLES.get(verdict.verdict, "bold yellow"))
        if verdict.num_images < verdict.min_images:
            line.append(f" ({verdict.num_images}, at least {verdict.min_images} are needed)")
        line.append("".join(f"\n  {criterion}" for criterion in verdict.reasons))
        console.print(line)
    for note in report.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    for error in report.errors[:3]:
        console.print(Text(f"not measured: {error}", style="red"))
    if len(report.errors) > 3:
        console.print(Text(f"not measured: {len(report.errors) - 3} more", style="red"))


def rows(measures: Measures) -> list[tuple[str, str, str]]:
    """Return (measure, number, more about it) line by line."""
    lines = [
        ("pairs in order, all ladders", percent(measures.pairs_in_order), "ranking within one photograph; chance 50 %"),
        ("  of these far apart", percent(measures.far_pairs_in_order), ""),
    ]
    for ladder in measures.ladders:
        means = " > ".join(number(value) for value in ladder.means)
        lines.append((f"  {ladder.kind}", percent(ladder.pairs_in_order),
                      f"steps in order {percent(ladder.steps_in_order)}; {means}"))  # fmt: skip
    for ladder in measures.worsened:
        means = " > ".join(number(value) for value in ladder.means)
        lines.append((f"  {ladder.kind}", percent(ladder.pairs_in_order), f"on a bad image; {means}"))
    about = "of the emptied images, before the enlarged one; 0 % wanted"
    lines.append(("empty before honest", percent(measures.degenerate_preferred), about))
    about = "of the contentless images; " + ("a reward that compares may" if measures.compares else "0 % wanted")
    lines.append(("empty has a value", percent(measures.contentless_rated), about))
    for row in measures.empty:
        lines.append((f"  {row.kind}", percent(mean(row.preferred[1:])),
                      ", ".join(f"{label} {number(value)}" for label, value in zip(row.labels, row.means,
                                                                                  strict=True))))  # fmt: skip
    spread = f"asked again {number(measures.repeat_deviation)}, within one source {number(measures.spread)}"
    lines.append(("noise to signal", number(measures.noise_to_signal), spread))
    for way in measures.transports:
        about = f"of the spread; shift {number(way.shift)}, order kept {percent(way.order_kept)}"
        lines.append((f"change by {way.name}", number(way.change_to_spread), about))
    ascent = measures.ascent
    if ascent.error and math.isnan(ascent.rise):
        lines.append(("rise by 2/255, 5 steps", "-", ascent.error))
    else:
        about = f"of the spread; rise {number(ascent.rise)}, by random signs {number(ascent.random_change)}"
        lines.append(("rise by 2/255, 5 steps", number(ascent.rise_to_spread), about))
    speed = f"images per second, {number(measures.megapixels_per_s)} megapixels"
    return [
        *lines,
        ("measured", percent(measures.measured_share), "of the images that have content"),
        ("throughput", number(measures.images_per_s), speed),
    ]


def number(value: float) -> str:
    """Return three figures; a dash where there is none.

    >>> number(0.12345), number(math.nan), number(math.inf)
    ('0.123', '-', 'inf')
    """
    return "-" if math.isnan(value) else f"{value:.3g}"


def percent(value: float) -> str:
    """Return a share in percent; a dash where there is none.

    >>> percent(0.956), percent(math.nan)
    ('96 %', '-')
    """
    return "-" if math.isnan(value) else f"{100 * value:.0f} %"
