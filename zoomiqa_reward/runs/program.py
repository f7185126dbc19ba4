"""How every program of the project ends: a line that says what went wrong and what to do, and an exit code.

0 done, 1 failed or wrong options, 2 done but something could not be measured, 130 interrupted. `ZOOMIQA_TRACEBACK=1`
shows where an error came from.
"""

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from zoomiqa_reward.errors import ZoomIQAError
from zoomiqa_reward.runs.progress import say

INTERRUPTED = 130
TRACEBACK = "ZOOMIQA_TRACEBACK"
GOES_ON = "what is finished lies in the folder given as --out, and the same command goes on from there"
NOT_BEGUN = "it had not begun to work yet, so nothing is lost; give the same command again"
_LONGEST = 400
"""Characters that are shown of an error of another library."""
_SYSTEM = {
    errno.ENOENT: "no such file or folder; check the path",
    errno.EACCES: "may not be read or written; change its permissions, or name another place",
    errno.EPERM: "may not be read or written; change its permissions, or name another place",
    errno.EROFS: "lies on a disk that is read-only; name another place",
    errno.ENOSPC: "the disk is full; make room and give the same command again",
    errno.EDQUOT: "your share of the disk is full; make room and give the same command again",
    errno.EISDIR: "is a folder where a file is wanted; name a file in it",
    errno.ENOTDIR: "is no folder; check the path",
    errno.EEXIST: "is there already; name another place",
    errno.ENAMETOOLONG: "has too long a name for this disk; choose a shorter one",
    errno.ELOOP: "is a link that leads back to itself; name the file itself",
}


_run_folders: set[Path] = set()
"""Of the runs that the program has begun."""


class Parser(argparse.ArgumentParser):
    """Options of a `python -m` program; wrong ones end with exit code 1, for 2 means that some image failed."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and how to see the options."""
        self.exit(1, f"{self.prog}: {message}; {self.prog} --help lists the options\n")


def run_program(name: str, work: Callable[[], int], *, kept: str = GOES_ON) -> int:
    """Do the work and return its exit code; an error or Ctrl-C becomes a line on stderr.

    kept: what an interrupt leaves, and how to go on.
    """
    forget_runs()
    try:
        return work()
    except KeyboardInterrupt:
        say(f"{name}: interrupted; {what_is_left(kept)}")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone: say nothing more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # a program's last line: one message, the traceback on request
        if os.environ.get(TRACEBACK):
            raise
        say(f"{name}: {message_of(error)}")
        return 1


def forget_runs() -> None:
    """Begin a program: none of its runs has a folder yet."""
    _run_folders.clear()


def note_run(folder: Path) -> None:
    """Remember that a run works in the folder now, so that an interrupt leaves something there."""
    _run_folders.add(folder)


def what_is_left(kept: str) -> str:
    """Return what an interrupt leaves: `kept`, but not `GOES_ON` before any run has its folder."""
    return NOT_BEGUN if kept == GOES_ON and not _run_folders else kept


def stop_when_told() -> threading.Event:
    """Return an event that is set when the system asks the program to end, or its terminal closes.

    A signal that is ignored stays so: `nohup` wants the program to outlive its terminal.
    """
    stopped = threading.Event()
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:  # Windows has no SIGHUP
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stopped.set())
    return stopped


def message_of(error: BaseException) -> str:
    """Return what people read of an error: ours as it is, the system's with a way out, others' in one line.

    >>> message_of(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'a.csv: no such file or folder; check the path'
    >>> bug = ZeroDivisionError("division by zero")
    >>> bug.add_note("raised by the reward 'mine'")
    >>> message_of(bug)
    "ZeroDivisionError: division by zero; raised by the reward 'mine' (ZOOMIQA_TRACEBACK=1 shows where)"
    >>> message_of(KeyError("mos"))
    "KeyError: 'mos' (ZOOMIQA_TRACEBACK=1 shows where)"
    """
    if isinstance(error, ZoomIQAError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
        return f"{name}: {_SYSTEM.get(error.errno, error.strerror)}"
    text = "; ".join(" ".join(line.split()) for line in (str(error), *getattr(error, "__notes__", ())))
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    if isinstance(error, ValueError | OSError | ImportError):
        return shown or type(error).__name__
    return f"{type(error).__name__}: {shown} ({TRACEBACK}=1 shows where)"
