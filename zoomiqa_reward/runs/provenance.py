"""What a number needs to be made again: command, code, libraries, machine."""

import platform
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("zoomiqa-reward", "torch", "torchvision", "transformers", "numpy", "pillow")


def provenance(*libraries: str) -> dict[str, Any]:
    """Return `command`, `code` (commit), `versions` of Python and of `LIBRARIES` with those named, and `platform`."""
    return {
        "command": sys.argv,
        "code": dict(code_version()),
        "versions": versions(*dict.fromkeys((*LIBRARIES, *libraries))),
        "platform": platform.platform(),
    }


def versions(*libraries: str) -> dict[str, str | None]:
    """Return the versions of Python and of distributions; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in libraries}


@lru_cache(maxsize=1)
def code_version() -> dict[str, Any]:
    """Return the git `commit` of the checkout that this package is part of, whatever the working directory.

    `is_changed`: whether the checkout differs from that commit. Both are None for an installed copy.
    """
    folder = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    is_own = git("ls-files", "--error-unmatch", __file__) is not None
    commit = git("rev-parse", "HEAD") if is_own else None
    changed = None if commit is None else git("status", "--porcelain")
    return {"commit": commit, "is_changed": None if changed is None else bool(changed)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
