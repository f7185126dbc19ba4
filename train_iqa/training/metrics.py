"""A run's metrics: a line on stderr, a row of `log.jsonl`, TensorBoard events. Written by the main process alone.

`RunFolder.log` rounds to four decimals, which is nothing of a learning rate of 1e-6; here six digits that matter are
kept. A resumed run first drops the rows after the step that it continues from, so that none stands there twice.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

DIGITS = 6


class MetricLog:
    """Writes rows of numbers; as a context manager it closes its files."""

    def __init__(self, folder: Path, *, resumed_at: int, is_main: bool = True, tensorboard: bool = True) -> None:
        self.file, self.is_main = folder / "log.jsonl", is_main
        self.events: Any = None
        if not is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
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
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.file)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the row of `step`, counted from 1; NaN and infinity stand as null."""
        if not self.is_main:
            return
        row = {"step": step, **{name: _rounded(value) for name, value in values.items()}}
        text = json.dumps(row)
        with open(self.file, "a", encoding="utf-8") as log:
            log.write(text + "\n")
        print(text, file=sys.stderr, flush=True)
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
        print(f"no TensorBoard events: {error}; basicsr-fixed of [restoration] brings tb-nightly", file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)
