"""A folder in which a run can be continued: bound to the run's settings, and to one process at a time.

All resumable folders work alike. `locked` holds the folder for one process, and `bind` writes its settings, or refuses
those of another run.
Results are appended by `json_lines.append_line`, one line each, after the files that the line names were written in one
step; `json_lines.read_lines` gives what is done. So a kill at any moment loses at most the result in work.
"""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoomiqa_reward.runs.json_lines import write_json
from zoomiqa_reward.runs.outputs import claim_folder
from zoomiqa_reward.runs.program import note_run
from zoomiqa_reward.runs.settings import AnotherRun, refuse_another_run


def bind(
    folder: Path,
    settings: dict[str, Any],
    *,
    file: str = "run.json",
    key: str | None = None,
    results: Collection[str] = (),
    free: Collection[str] = (),
    is_holder: bool = True,
    facts: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Write the settings into a new folder; in one that holds a run, check that they are those of that run.

    settings: JSON values. file: what holds them. key: they stand under it, beside `facts()` of the run's start; None:
    they are the whole file. results: files that belong to a run, so that they cannot lie there without its settings.
    free: settings that may change. is_holder: this process holds the folder (`locked`); False where another process of
    the run holds it, or where several work in it by design. Raises AnotherRun (a ValueError), OutputError for files of
    another program, RuntimeError where nobody holds the folder.
    """
    if is_holder and folder.resolve() not in _HELD:
        raise RuntimeError(f"{folder}: nobody holds it, so a second process could write there; bind it inside `locked`")
    target = claim_folder(folder) / file
    if target.exists():
        try:
            stored = json.loads(target.read_text(encoding="utf-8"))
        except ValueError as error:
            raise AnotherRun(f"{target}: damaged ({error}); name another folder") from error
        before = stored.get(key) if key and isinstance(stored, dict) else stored
        if not isinstance(before, dict):
            raise AnotherRun(f"{target}: is no record of this kind of run; name another folder")
        refuse_another_run(folder, before, settings, free=free)
        return
    if stray := [name for name in results if (folder / name).exists()]:
        raise AnotherRun(f"{folder} holds {stray[0]} without {file}: what made it is unknown; name another folder")
    write_json(target, {key: settings} | facts() if key else settings)


_HELD: set[Path] = set()
"""Folders that this process holds."""


@contextmanager
def locked(folder: Path | None, *, is_holder: bool = True) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process ends, however it ends.

    folder: None: there is none, and nothing is held. is_holder: False: another process of the same run holds it.
    Raises ValueError where another process holds it, OutputError for files of another program. Windows has no such
    lock: nothing keeps a second process out.
    """
    if folder is not None and not is_holder:
        note_run(folder)
    if folder is None or not is_holder:
        yield
        return
    claim_folder(folder)  # first: `.lock` would be one more file of ours in a folder of the user's
    with open(folder / ".lock", "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ModuleNotFoundError:
            pass
        except OSError as error:
            raise ValueError(f"{folder}: another process works in it; wait for it, or use another folder") from error
        _HELD.add(folder.resolve())
        note_run(folder)
        try:
            yield
        finally:
            _HELD.discard(folder.resolve())
