"""A run's metrics: a line on stderr, a row of `log.jsonl`, TensorBoard events. Written by the main process alone.

`RunFolder.log` rounds to four decimals, which is nothing of a learning rate of 1e-6; here six digits that matter are
kept. A resumed run first drops the rows after the step that it continues from, so that none stands there twice.
"""

import json
import math
from pathlib import Path
from typing import Any

from zoomiqa_reward.runs.json_lines import append_line
from zoomiqa_reward.runs.outputs import part_folder, write_text
from zoomiqa_reward.runs.progress import say

DIGITS = 6


class MetricLog:
    """Writes rows of numbers; as a context manager it closes its files."""

    def __init__(self, folder: Path, *, resumed_at: int, is_main: bool = True, tensorboard: bool = True) -> None:
        self.file, self.is_main = folder / "log.jsonl", is_main
        self.events: Any = None
        if not is_main:
            return
        part_folder(folder)
        self._cut(resumed_at)
        if tensorboard:
            self.events = _events(folder / "tensorboard", resumed_at)

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self.events is not None:
            self.events.close()

    def _cut(self, resumed_at: int) -> None:
        if not self.file.exists():
            return
        kept = []
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the kill came while it was written
                continue
            if row["step"] <= resumed_at:
                kept.append(line + "\n")
        write_text(self.file, "".join(kept))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the row of `step`, counted from 1; NaN and infinity stand as null."""
        if not self.is_main:
            return
        row = {"step": step, **{name: _rounded(value) for name, value in values.items()}}
        append_line(self.file, row)
        say(json.dumps(row))
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(name, value, step)


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _events(folder: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        say(f"no TensorBoard events: {error}; basicsr-fixed of [restoration] brings tb-nightly")
        return None
    return SummaryWriter(str(part_folder(folder)), purge_step=resumed_at + 1 if resumed_at else None)
