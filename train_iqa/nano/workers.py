"""Processes that draw degraded images all the time, while the device trains.

They are forked before torch computes anything: no second import, and the decoded photographs are shared. So
`Workers` must be made first, before a model is built.
"""

import multiprocessing
import os
import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from train_iqa.nano.drawing import DegradedImage, draw_image

BATCH = 16
LARGE_SHARE = 0.28


class DrawnBatch(NamedTuple):
    """A batch from one worker."""

    large: bool
    images: list[DegradedImage]


class WorkerError(RuntimeError):
    """A drawing process failed or died; the message holds its traceback."""


def _work(index: int, photographs: list[Image.Image], seed: int, out: Any, stop: Any) -> None:
    torch.set_num_threads(1)
    os.nice(5)
    rng = np.random.default_rng([seed, index])
    while not stop.is_set():
        large = bool(rng.random() < LARGE_SHARE)
        try:
            chosen = [photographs[k] for k in rng.integers(0, len(photographs), BATCH)]
            message: DrawnBatch | str = DrawnBatch(
                large, [draw_image(photograph, rng, large=large) for photograph in chosen]
            )
        except Exception as error:  # noqa: BLE001  it is raised again where the batch is taken
            message = f"drawing process {index}: {error!r}"
        while not stop.is_set():
            try:
                out.put(message, timeout=1)
                break
            except queue.Full:
                continue


class Workers:
    """Drawing processes and the queue that they fill. Use as a context: leaving it ends them.

    Raises WorkerError from `take` when a process failed, ValueError where the platform cannot fork.
    """

    def __init__(self, paths: Sequence[Path], *, count: int, seed: int) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError("drawing processes need os.fork, which this platform lacks: train on Linux or macOS")
        photographs = []
        for path in paths:
            with Image.open(path) as file:
                photographs.append(file.convert("RGB"))
        context = multiprocessing.get_context("fork")
        self._queue, self._stop = context.Queue(maxsize=8 * count), context.Event()
        self._processes = [
            context.Process(target=_work, args=(k, photographs, seed, self._queue, self._stop), daemon=True)
            for k in range(count)
        ]
        for process in self._processes:
            process.start()

    def take(self, timeout_s: float) -> DrawnBatch | None:
        """Return the next batch, None where none comes in time."""
        try:
            message = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            dead = [process for process in self._processes if not process.is_alive()]
            if dead:
                raise WorkerError(f"a drawing process ended with code {dead[0].exitcode}") from None
            return None
        if isinstance(message, str):
            raise WorkerError(message)
        return message

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for process in self._processes:
            process.terminate()
            process.join()
        self._queue.close()
