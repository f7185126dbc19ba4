"""State and log of a training run: written in one step, so a kill at any moment loses at most the steps since."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zoomiqa_reward.runs.json_lines import append_line
from zoomiqa_reward.runs.outputs import claim_folder, replacing
from zoomiqa_reward.runs.progress import say


class RunFolder:
    """A folder with `state.pt` (what is needed to continue) and `log.jsonl` (one row per report)."""

    def __init__(self, folder: Path) -> None:
        self.folder = claim_folder(folder)

    def load(self, parts: dict[str, Any]) -> int:
        """Restore each part (anything with `load_state_dict`) and return the steps done; 0 in a new folder."""
        file = self.folder / "state.pt"
        if not file.exists():
            return 0
        # On the CPU first: the state may be that of a GPU which this machine does not have.
        state = torch.load(file, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])

    def save(self, step: int, parts: dict[str, Any]) -> None:
        """Write the state of all parts. Raises OSError for a full disk; the state before stays then."""
        state = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
        target = self.folder / "state.pt"
        with replacing(target) as half:
            try:
                with open(half, "wb") as file:
                    torch.save(state, file)
            except (OSError, RuntimeError) as error:  # torch puts an error of its own in front of what the disk said
                cause = error if isinstance(error, OSError) else error.__context__
                if isinstance(cause, OSError):
                    raise OSError(cause.errno, cause.strerror, str(target)) from error
                raise

    def log(self, row: dict[str, float]) -> None:
        """Append a row, rounded to six significant digits, NaN as null, and show it on stderr."""
        rounded = {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in row.items()}
        append_line(self.folder / "log.jsonl", rounded)
        say(json.dumps(rounded))


class RunningMeans:
    """Exponential means of named losses, for reports; part of a run's state, so that its curve goes on unbroken."""

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = decay
        self.means: dict[str, float] = {}

    def update(self, values: dict[str, float]) -> None:
        """Mix in one step's values; a name's first value starts its mean."""
        for name, value in values.items():
            self.means[name] = self.decay * self.means.get(name, value) + (1 - self.decay) * value

    def state_dict(self) -> dict[str, float]:
        """Return the means."""
        return dict(self.means)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.means = dict(state)


class TimeBudget:
    """Seconds spent of those given; a part of a run's state, so that a run that goes on spends only the rest."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._now = seconds, now
        self._spent, self._since = 0.0, now()

    @property
    def spent(self) -> float:
        """Seconds spent, in this process and in those before."""
        return self._spent + self._now() - self._since

    @property
    def progress(self) -> float:
        """Share of the seconds that is spent, 0..1."""
        return min(1.0, self.spent / self.seconds) if self.seconds > 0 else 1.0

    def start(self) -> None:
        """Count from now: what passed since the clock was made was not training."""
        self._since = self._now()

    def state_dict(self) -> dict[str, float]:
        """Return the seconds spent."""
        return {"spent": self.spent}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from the seconds spent."""
        self._spent, self._since = state["spent"], self._now()
