"""`transformers serve` for a checkpoint in a folder, on this machine, for as long as a `with` block lasts.

For a first look, for examples and tests: one request at a time, no log-probabilities. To serve for real, use vLLM.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from zoomiqa_reward.model.checkpoint import embedded
from zoomiqa_reward.model.text_server.client import ServerError

START = "from transformers.cli.transformers import main; main()"
"""Runs the program `transformers` in this very environment, whatever stands on the PATH."""
POLL_S = 0.2
STOP_S = 10.0
"""How long the server may take to stop by itself before it is killed."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server."""

    base_url: str
    model: str
    """As the server calls it: the folder."""
    pid: int


def folder_of(name_or_path: str | os.PathLike[str]) -> Path | None:
    """Return the folder of an embedded model's name or of a path; None where it is no folder."""
    if name_or_path in embedded():
        return Path(str(resources.files("zoomiqa_reward"))) / "checkpoints" / str(name_or_path)
    path = Path(name_or_path).expanduser()
    return path.resolve() if path.is_dir() else None


@contextmanager
def serve(
    name_or_path: str | os.PathLike[str] = "nano",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    startup_timeout_s: float = 180.0,
) -> Iterator[Served]:
    """Run `transformers serve` on a free port of the loopback interface; it is stopped when the block ends.

    Nothing is downloaded. dtype: float32 is what a local model computes in on a CPU. Needs the serving extra of
    transformers. Raises ValueError for what is no folder; ServerError, with the end of the server's log, where it
    does not start in time.
    """
    folder = folder_of(name_or_path)
    if folder is None or "@" in str(folder):
        raise ValueError(f"{name_or_path}: must be a checkpoint's folder, without @ in its path, or an embedded name")
    port = _free_port()
    command = [
        sys.executable, "-c", START, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port),
        "--device", device, "--dtype", dtype,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=offline)
        try:
            if not _answers(f"http://127.0.0.1:{port}/health", process, startup_timeout_s):
                log.seek(max(0, os.fstat(log.fileno()).st_size - 2000))
                log_text = log.read().decode(errors="replace").strip()
                raise ServerError(
                    f"`transformers serve {folder}` did not start within {startup_timeout_s:g} s "
                    f"(pip install 'transformers[serving]'?): ...{log_text}"
                )
            yield Served(base_url=f"http://127.0.0.1:{port}/v1", model=str(folder), pid=process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(address: str, process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this loopback
    while time.monotonic() < end and process.poll() is None:
        try:
            with opener.open(address, timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_S)
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
