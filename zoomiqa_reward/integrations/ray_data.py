"""Rate a folder on a Ray cluster: `zoomiqa score FOLDER --out scores.parquet --ray 8`.

Ray Data starts the workers, on as many machines as the cluster has, and restarts one that died. Which worker rates
which images is decided by `runs.shared_work`, as between processes on one machine, so the folder of the images and that
of the table must be reachable under the same path on all machines.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zoomiqa_reward.runs.progress import counting
from zoomiqa_reward.runs.shared_work import block_size, parts_of

LOOK_S = 2.0


Prepare = Callable[[], Callable[[int], int]]
"""Called once in each worker, whose process is its own; returns what rates, given the worker's number."""


class Worker:
    """An actor of Ray Data."""

    def __init__(self, prepare: Prepare) -> None:
        """Prepare: load the model."""
        self.rate = prepare()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a column `count`: what `rate` returned for each worker of the batch."""
        return {"count": np.array([self.rate(int(number)) for number in batch["worker"]])}


def score_on_ray(
    prepare: Prepare, *, workers: int, out: Path, num_files: int, gpus_per_worker: float | None = None
) -> None:
    """Run the workers until all files are rated and the table is written. prepare: must be picklable.

    The cluster is that of the variable RAY_ADDRESS, else one that this call starts on this machine and ends.
    gpus_per_worker: by default 1 where the cluster has as many GPUs as workers, else 0. Raises ValueError for fewer
    than 1 worker, ModuleNotFoundError without the extra `serve`, and what a worker raises.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    from zoomiqa_reward.serving.ray_environment import import_ray, init_ray

    address = os.environ.get("RAY_ADDRESS")
    ray, _ = import_ray(own_cluster=address is None)
    import ray.data as ray_data

    with tempfile.TemporaryDirectory(prefix="zoomiqa-", ignore_cleanup_errors=True) as folder:
        local = {"address": "local", "num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False,
               "_temp_dir": folder}  # fmt: skip
        if started := not ray.is_initialized():
            init_ray(ray, **({"address": address} if address else local))
        try:
            if gpus_per_worker is None:
                gpus_per_worker = 1.0 if ray.cluster_resources().get("GPU", 0) >= workers else 0.0
            ray_data.DataContext.get_current().enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.WARNING)
            numbers = ray_data.from_items(
                [{"worker": number} for number in range(workers)], override_num_blocks=workers
            )
            rows = numbers.map_batches(
                Worker, fn_constructor_args=(prepare,), batch_size=1, num_gpus=gpus_per_worker,
                compute=ray_data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            )  # fmt: skip
            with _told(out, num_files):
                rows.take_all()
        finally:
            if started:
                ray.shutdown()


@contextmanager
def _told(out: Path, num_files: int) -> Iterator[None]:
    """Show how many files are done, by the parts that are there, while the workers work."""
    parts, size = parts_of(out), block_size(num_files)
    over = threading.Event()

    def look(count: Callable[[int], None]) -> None:
        seen = 0
        while not over.wait(LOOK_S):
            done = min(num_files, size * sum(1 for _ in parts.glob("*.jsonl")))
            if done > seen:  # the parts are gone once the table is written
                count(done - seen)
                seen = done

    with counting("rating", num_files) as count:
        looking = threading.Thread(target=look, args=(count,), daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()
