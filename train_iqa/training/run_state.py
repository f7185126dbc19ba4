"""The state and the metrics of a training run.

The state is opened, continued and saved such that a kill at any moment loses only the steps since the last save. One
process, and several that each hold the whole model, keep `state.pt` (`RunFolder`) with the trained weights and the
optimizer. Accelerate writes sharded models (FSDP, ZeRO-3) into a folder of their own; `sharded.json` names the last
complete one.

The metrics are a line on stderr, a row of `log.jsonl` and TensorBoard events, written by the main process alone. A
resumed run first drops the rows after the step that it continues from, so that no step has two rows.
"""

import json
import math
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from train_iqa.data import require_readable
from train_iqa.training.policy import TrainedWeights
from zoomiqa_reward.model.fingerprint import contents_of
from zoomiqa_reward.protocol import Protocol
from zoomiqa_reward.runs.folder import bind, locked
from zoomiqa_reward.runs.json_lines import append_line, read_lines, trim_lines, write_json
from zoomiqa_reward.runs.outputs import part_folder
from zoomiqa_reward.runs.progress import say
from zoomiqa_reward.runs.provenance import provenance
from zoomiqa_reward.runs.training_folder import RunFolder

FREE_FIELDS = ("out", "save_every", "page_every", "tensorboard")
"""Of a configuration: may differ when a run is continued, since they do not change its curve."""


class RunState:
    """Loads and saves one run. All processes call its methods."""

    def __init__(self, folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any) -> None:
        self.folder, self.accelerator = RunFolder(folder), accelerator
        self.parts = {"weights": TrainedWeights(accelerator.unwrap_model(model)), "optimizer": optimizer}
        self.is_sharded = accelerator.distributed_type.value in ("FSDP", "DEEPSPEED")

    def load(self) -> int:
        """Restore the last saved state and return the steps done; 0 in a new folder."""
        if not self.is_sharded:
            return self.folder.load(self.parts)
        pointer = self.folder.folder / "sharded.json"
        if not pointer.exists():
            return 0
        step = int(json.loads(pointer.read_text())["step"])
        self.accelerator.load_state(str(self._shards(step)))
        return step

    def save(self, step: int) -> None:
        """Write the state after `step` steps."""
        if not self.is_sharded:
            if self.accelerator.is_main_process:
                self.folder.save(step, self.parts)
            self.accelerator.wait_for_everyone()
            return
        self.accelerator.save_state(str(self._shards(step)))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_json(self.folder.folder / "sharded.json", {"step": step})
            for old in self.folder.folder.glob("sharded-*"):
                if old != self._shards(step):
                    shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _shards(self, step: int) -> Path:
        return self.folder.folder / f"sharded-{step:08d}"


def require_readable_images(paths: Sequence[Path], folder: Path, accelerator: Accelerator) -> None:
    """Raise DatasetProblems for images that cannot be decoded, where no run is continued in the folder.

    A run that meets one later could not go on: the next attempt draws it again, and another file in its place is
    another run's. All processes call, and each decodes its share.
    """
    is_new = not (folder / "run.json").exists()
    accelerator.wait_for_everyone()  # before the file is written
    if is_new:
        require_readable(paths[accelerator.process_index :: accelerator.num_processes])


@contextmanager
def open_run(config: Any, folder: Path, accelerator: Accelerator, data: Sequence[str]) -> Iterator[None]:
    """Hold the folder and write `run.json` (configuration, command, commit, versions), or check that it is this run's.

    data: digests of what is learned from. They, the files of a checkpoint in a folder and a protocol in a file are
    compared too: the same path may hold other bytes by now. The main process holds the folder for all.
    Raises ValueError where another run works in the folder, and where it belongs to a run of another configuration or
    other contents: its curve could not be continued.
    """

    def facts() -> dict[str, Any]:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
        return {"processes": accelerator.num_processes, "device": device} | provenance("accelerate", "peft")

    is_holder = accelerator.is_main_process
    with locked(folder, is_holder=is_holder):
        if is_holder or (folder / "run.json").exists():
            contents = {"data": list(data)} | _model_contents(config.model)
            settings = json.loads(json.dumps(asdict(config), default=str)) | {"contents": contents}
            bind(folder, settings, key="config", free=FREE_FIELDS, is_holder=is_holder, facts=facts)
        accelerator.wait_for_everyone()
        yield


def _model_contents(model: Any) -> dict[str, str | None]:
    """Return digests of the files that the policy starts from."""
    contents = {"model": contents_of(model.name)}
    if model.adapter is not None:
        contents["adapter"] = contents_of(model.adapter)
    if isinstance(model.protocol, str) and Path(model.protocol).exists():
        contents["protocol"] = Protocol.load(model.protocol).fingerprint
    return contents


DIGITS = 6


class MetricLog:
    """Writes rows of numbers; as a context manager it closes its files."""

    def __init__(self, folder: Path, *, resumed_at: int, is_main: bool = True, tensorboard: bool = True) -> None:
        self.file, self.is_main = folder / "log.jsonl", is_main
        self.events: Any = None
        if not is_main:
            return
        part_folder(folder)
        trim_lines(self.file, "step", resumed_at)
        if tensorboard:
            self.events = _events(folder / "tensorboard", resumed_at)

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self.events is not None:
            self.events.close()

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
    return read_lines(folder / "log.jsonl")


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _events(folder: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        say(f"no TensorBoard events: {error}; basicsr-fixed of [restoration] brings tb-nightly")
        return None
    return SummaryWriter(str(part_folder(folder)), purge_step=resumed_at + 1 if resumed_at else None)
