"""A program that is killed, and which of its worker processes outlive it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE_S = 30.0
ROOT = Path(__file__).resolve().parents[2]


def outliving(code: str, folder: Path) -> list[int]:
    """Run a program that prints the ids of its workers in one line, kill it, and return the ids of those that go on.

    code: its functions, with `start(folder)` that returns the ids while the workers go on.
    """
    script = folder / "program.py"
    script.write_text(
        f"import sys, time\nfrom pathlib import Path\n{code}\n"
        "if __name__ == '__main__':\n"
        "    held = start(Path(sys.argv[1]))\n"
        "    print(*next(held), flush=True)\n"
        "    time.sleep(600)\n"
    )
    paths = [
        str(ROOT),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]  # this tree, wherever the package is installed from
    program_env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(script), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=program_env) as program:
        assert program.stdout is not None
        workers = [int(number) for number in program.stdout.readline().split()]
        assert workers
        assert all(map(_goes_on, workers))
        program.send_signal(signal.SIGKILL)
        until = time.monotonic() + PATIENCE_S
        while (left := [worker for worker in workers if _goes_on(worker)]) and time.monotonic() < until:
            time.sleep(0.1)
        for worker in left:
            os.kill(worker, signal.SIGKILL)
    return left


def _goes_on(process: int) -> bool:
    """Whether the process runs; one that has ended may wait for ever that somebody asks for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
