"""`zoomiqa compare A/ B/`: which of two folders holds the better images, over images of the same name.

What needs torch is imported when the command runs, so that `--help` and wrong options answer at once.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from zoomiqa_reward.cli import inputs, output
from zoomiqa_reward.cli.reward_option import RewardName, load_reward
from zoomiqa_reward.images.listing import list_images, natural_order, printable
from zoomiqa_reward.images.sheet_entry import RATING_TIE
from zoomiqa_reward.runs.progress import progress, say

if TYPE_CHECKING:
    from zoomiqa_reward.rewards.base import Reward
    from zoomiqa_reward.runs.paired import PairedDifference

First = Annotated[Path, typer.Argument(metavar="A", help="Folder of images.", show_default=False)]
Second = Annotated[
    Path, typer.Argument(metavar="B", help="Folder of the same images by another method.", show_default=False)
]
Out = Annotated[Path | None, typer.Option(help="Table with one row per pair: .jsonl, .csv or .parquet.")]
Sheet = Annotated[Path | None, typer.Option(help="File for a sheet of the pairs that differ most.")]
Top = Annotated[int, typer.Option(min=1, help="Pairs on the sheet and in the printed list.")]
Tie = Annotated[
    float | None, typer.Option(min=0, help="Largest difference that is a tie; default: 0.01 of a rating, 0 otherwise.")
]
ResultJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON line on stdout.")]


@dataclass(frozen=True, kw_only=True)
class ComparedPair:
    """Two images of one name; a value is NaN where `error` says why."""

    name: str
    """Path within the folder, without the suffix."""
    files: tuple[Path, Path]
    values: tuple[float, float] = (math.nan, math.nan)
    """Higher is better."""
    error: str | None = None

    @property
    def difference(self) -> float:
        """A - B; 0 for two values that are equal, also if both are infinite."""
        first, second = self.values
        return 0.0 if first == second else first - second


def compare(
    a: First,
    b: Second,
    reward: RewardName = "zoomiqa",
    model: inputs.Model = "nano",
    mode: inputs.ModeOption = "direct",
    recursive: inputs.Recursive = False,
    tie: Tie = None,
    top: Top = 8,
    sheet: Sheet = None,
    out: Out = None,
    overwrite: inputs.Overwrite = False,
    as_json: ResultJson = False,
    device: inputs.Device = None,
    dtype: inputs.Dtype = None,
    question: inputs.Question = None,
    protocol: inputs.ProtocolFile = None,
    adapter: inputs.Adapter = None,
) -> int:
    """Compare two folders image by image: difference, win rate, intervals, and where they differ most."""
    from zoomiqa_reward.rewards.base import find_part, require_pointwise
    from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward
    from zoomiqa_reward.runs.paired import paired_difference
    from zoomiqa_reward.runs.tables import write_table

    pairs, unpaired = pair_files(a, b, recursive=recursive)
    for folder in (a, b):
        inputs.tell_left_out(folder, recursive=recursive)
    _claim(sheet, out, [*(file for pair in pairs for file in pair.files), *unpaired], overwrite)
    judge = load_reward(
        reward, model=model, mode=mode, question=question, device=device, dtype=dtype, adapter=adapter,
        protocol=protocol,
    )  # fmt: skip
    require_pointwise(judge, "compare sets its value of an image beside that of another")
    if judge.needs:
        raise ValueError(f"--reward {reward}: needs {', '.join(sorted(judge.needs))}; zoomiqa evaluate has references")
    margin = tie if tie is not None else RATING_TIE if find_part(judge, ZoomIQAReward) is not None else 0.0
    for file in unpaired:
        say(f"unpaired: {printable(str(file))}")
    measured = _measure_all(judge, pairs)
    if out is not None:
        write_table(out, [_row(pair) for pair in measured], overwrite=overwrite)
    valid = sorted((p for p in measured if p.error is None), key=lambda pair: (-abs(pair.difference), pair.name))
    if not valid:
        raise ValueError(f"no pair of {a} and {b} could be measured; the first: {measured[0].error}")
    result = paired_difference([p.values[0] for p in valid], [p.values[1] for p in valid], tie=margin)
    if as_json:
        sides = {"a": str(a), "b": str(b), "reward": judge.name, "tie": margin}
        output.json_line(_result_row(result, measured, valid, top) | sides | {"unpaired": [str(f) for f in unpaired]})
    else:
        _show(result, valid, top, judge.name)
    if sheet is not None:
        _write_sheet(valid[:top], (a, b), judge, sheet, overwrite)
    for what, written in (("table", out), ("sheet", sheet)):
        if written is not None:
            print(f"{what}: {written}", file=sys.stderr)
    return 0 if len(valid) == len(measured) and not unpaired else 2


def _claim(sheet: Path | None, out: Path | None, read: Sequence[Path], overwrite: bool) -> None:
    from zoomiqa_reward.runs.outputs import claim_file
    from zoomiqa_reward.runs.tables import claim_table

    if sheet is not None:
        claim_file(sheet, inputs=read, overwrite=overwrite, suffixes=True)
    if out is not None:
        claim_table(out, columns=("name", "a_file", "b_file"), inputs=read, overwrite=overwrite)


def _measure_all(judge: "Reward", pairs: Sequence[ComparedPair]) -> list[ComparedPair]:
    measured = []
    for pair in progress(measure_pairs(judge, pairs), len(pairs), "comparing", streaming=False):
        if pair.error is not None:
            say(f"not measured: {printable(pair.error)}")
        measured.append(pair)
    return measured


def pair_files(a: Path, b: Path, *, recursive: bool) -> tuple[list[ComparedPair], list[Path]]:
    """Return the pairs in natural order, and the files without a partner.

    Raises ValueError where nothing pairs, or two files of a folder have one name; OSError.
    """
    sides = [_by_name(folder, recursive) for folder in (a, b)]
    both = sides[0].keys() & sides[1].keys()
    names = sorted(both, key=natural_order)
    if not names:
        examples = " and ".join(str(min(side.values(), default="none")) for side in sides)
        raise ValueError(
            f"{a} and {b}: no image of one has its name in the other ({len(sides[0])} and {len(sides[1])} images, such "
            f"as {examples}); names must be equal up to the file extension"
        )
    unpaired = [file for side in sides for name, file in side.items() if name not in both]
    return [ComparedPair(name=name, files=(sides[0][name], sides[1][name])) for name in names], unpaired


def measure_pairs(reward: "Reward", pairs: Sequence[ComparedPair]) -> Iterator[ComparedPair]:
    """Yield the pairs with their values, or with the error of the first image that has none.

    Raises the error by which the first images all fail (`runs.failures`).
    """
    from zoomiqa_reward.rewards.base import ask
    from zoomiqa_reward.runs.failures import Failures

    failures = Failures()
    for pair in pairs:
        values: list[float] = []
        error = None
        for file in pair.files:
            try:
                scores = ask(reward, [str(file)])
                if not bool(scores.valid[0]):
                    why = scores.errors[0] if scores.errors else None
                    error = error or inputs.named(str(file), why or "has no value")
                else:
                    failures.succeeded()
                values.append(float(scores.value[0]))
            except Exception as problem:  # noqa: BLE001 - whatever a reward raises for this image
                why = failures.reason(problem)
                error = error or inputs.named(str(file), why)
                values.append(math.nan)
        yield ComparedPair(name=pair.name, files=pair.files, values=(values[0], values[1]), error=error)


def _by_name(folder: Path, recursive: bool) -> dict[str, Path]:
    if folder.is_file():
        raise ValueError(f"{folder}: is a file, but compare takes two folders; zoomiqa rank compares files")
    files: dict[str, Path] = {}
    for file in list_images(folder, recursive=recursive):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"{files[name]} and {file}: two images of one name; leave one in the folder")
        files[name] = file
    return files


def _row(pair: ComparedPair) -> dict[str, Any]:
    return {"name": pair.name, "a": pair.values[0], "b": pair.values[1], "difference": pair.difference,
            "a_file": str(pair.files[0]), "b_file": str(pair.files[1]), "error": pair.error}  # fmt: skip


def _result_row(
    result: "PairedDifference", measured: Sequence[ComparedPair], valid: Sequence[ComparedPair], top: int
) -> dict[str, Any]:
    from zoomiqa_reward.runs.json_lines import plain

    row: dict[str, Any] = {
        **asdict(result), "means": _means(valid),
        "largest": [_row(pair) for pair in valid[:top]],
        "not_measured": [_row(pair) for pair in measured if pair.error is not None],
    }  # fmt: skip
    content: dict[str, Any] = plain(row)
    return content


def _means(valid: Sequence[ComparedPair]) -> list[float]:
    """Return the means of A and of B over the pairs that `difference` is the mean of; NaN without any."""
    finite = [pair.values for pair in valid if all(map(math.isfinite, pair.values))]
    return [sum(values[side] for values in finite) / len(finite) if finite else math.nan for side in (0, 1)]


def _write_sheet(
    pairs: Sequence[ComparedPair], folders: tuple[Path, Path], judge: "Reward", sheet: Path, overwrite: bool
) -> None:
    from zoomiqa_reward.images.pair_sheet import SheetPair, pair_sheet
    from zoomiqa_reward.runs.outputs import write_figure

    rows = [SheetPair(name=pair.name, files=pair.files, values=pair.values) for pair in pairs]
    write_figure(pair_sheet(rows, (str(folders[0]), str(folders[1])), judge.name), sheet, overwrite=overwrite)


def _show(result: "PairedDifference", valid: Sequence[ComparedPair], top: int, name: str) -> None:
    """Print the result for people."""
    from zoomiqa_reward.runs.paired import LEAST_DIFFERENT

    console = output.console()
    digits = 1 + output.digits_for(value for pair in valid for value in pair.values)
    low, high = result.difference_interval
    interval = f"95 % interval {output.number(low, digits)} to {output.number(high, digits)}"
    if math.isnan(low):
        interval = f"no interval, because fewer than {LEAST_DIFFERENT} pairs differ"
    rates = [output.number(100 * rate, 0) for rate in (result.win_rate, *result.win_rate_interval)]
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column()
    shown.add_row("pairs", f"{result.count}, by {name}")
    left_out = f"; pairs with an infinite value left out: {result.infinite}" if result.infinite else ""
    mean = "-" if math.isnan(result.difference) else f"{result.difference:+.{digits}f}"
    shown.add_row("A - B", f"{mean}, {interval}{left_out}")
    shown.add_row("paired test", f"p = {output.number(result.p_value, 4)} (signs flipped)")
    shown.add_row("A wins", f"{rates[0]} % (interval {rates[1]} to {rates[2]} %): {result.wins} wins, "
                  f"{result.ties} ties, {result.losses} losses")  # fmt: skip
    console.print(shown)
    most = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("A", "B", "A - B"):
        most.add_column(title, justify="right")
    most.add_column("where they differ most", overflow="fold")
    for pair in valid[:top]:
        numbers = [output.number(value, digits) for value in pair.values]
        most.add_row(*numbers, f"{pair.difference:+.{digits}f}", Text(printable(pair.name)))
    console.print(most)
