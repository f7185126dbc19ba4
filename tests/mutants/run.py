"""Apply each mutant to a copy of the tree, run the tests that should notice, and report which ones do not.

    make mutants                                    all of them
    python tests/mutants/run.py nft_no_kl sft_count       some of them

A mutant is a small mistake in one file: `old` becomes `new`, and its `tests` must fail. The files beside this one name
them. The heavy libraries are imported once; each mutant runs in a child of this process, so one costs seconds.
The exit code is 0 only if no `required` mutant survives and at least 90 % are killed in all.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEAST_KILLED = 0.9
LIMIT_S = 300
KILLED, SURVIVED, ERROR = "killed", "SURVIVED", "ERROR"


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One mistake."""

    name: str
    file: str
    """From the root of the repository."""
    old: str
    """Stands exactly once in the file."""
    new: str
    what: str
    """What is wrong with it."""
    tests: tuple[str, ...]
    """pytest's arguments; the first failure ends them."""
    required: bool = False
    """It survived once, with a published result behind it: it must never again."""


def read_mutants(folder: Path = Path(__file__).parent) -> list[Mutant]:
    """Return all mutants of the TOML files here. Raises ValueError for a name that comes twice."""
    found = []
    for file in sorted(folder.glob("*.toml")):
        rows = tomllib.loads(file.read_text(encoding="utf-8"))["mutant"]
        found += [Mutant(**(row | {"tests": tuple(row["tests"])})) for row in rows]
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"mutants named twice: {', '.join(twice)}")
    return found


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """Return the file's text with the mistake. Raises ValueError where `old` does not stand there exactly once."""
    text = (root / mutant.file).read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(
            f"{mutant.name}: `old` stands {count} times in {mutant.file} and must stand once: bring it up to date"
        )
    return text.replace(mutant.old, mutant.new)


def copy_tree(to: Path) -> None:
    """Copy what git knows or would add."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)


def run_tests(tree: Path, tests: tuple[str, ...], limit_s: float = LIMIT_S) -> int:
    """Run pytest in a child process on the copy; return its exit code, or -1 where it took too long."""
    with warnings.catch_warnings():  # Python 3.12 warns of threads, such as a caller's progress bar
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(tree)
            sys.path[:0] = [str(tree)]
            silence = os.open(tree / "last_output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
        except BaseException:  # noqa: BLE001 - a child says why it failed, whatever that was
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1


def fate_of(mutant: Mutant, tree: Path) -> str:
    """Return what the tests say of the mutant; the copy is as before afterwards."""
    file = tree / mutant.file
    kept = file.read_text(encoding="utf-8")
    try:
        file.write_text(mutated(mutant, tree), encoding="utf-8")
        code = run_tests(tree, mutant.tests)
    finally:
        file.write_text(kept, encoding="utf-8")
    # 1: tests failed; -1: they never ended. Anything else but 0 says that nothing was tested.
    return {0: SURVIVED, 1: KILLED, -1: KILLED}.get(code, ERROR)


def import_heavy_libraries() -> None:
    """Import once what every child would import, and nothing of the project."""
    import diffusers  # noqa: F401
    import peft  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)  # a process with threads must not fork


def main(argv: list[str] | None = None) -> int:
    """Run the mutants and print their fates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="mutants; none: all")
    parser.add_argument("--list", action="store_true", help="only say which there are")
    args = parser.parse_args(argv)
    mutants = read_mutants()
    if unknown := set(args.names) - {one.name for one in mutants}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [one for one in mutants if not args.names or one.name in args.names]
    if args.list:
        print("\n".join(f"{one.name:28} {one.file}: {one.what}" for one in chosen))
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a plugin may be imported already, which is a warning
    sys.dont_write_bytecode = True  # a file that is changed back within a second would look compiled
    import_heavy_libraries()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        tests = tuple(dict.fromkeys(test for one in chosen for test in one.tests))
        if code := run_tests(tree, tests, limit_s=10 * LIMIT_S):
            print((tree / "last_output.txt").read_text()[-3000:])
            print(f"the tests fail without any mutant (exit code {code}): mend that first")
            return 2
        fates = {}
        for one in chosen:
            began = time.monotonic()
            fates[one.name] = fate_of(one, tree)
            print(f"{fates[one.name]:9} {time.monotonic() - began:5.1f} s  {one.name:28} {one.what}", flush=True)
    return summary(chosen, fates)


def summary(chosen: list[Mutant], fates: dict[str, str]) -> int:
    """Print the counts; return 0 where they are good enough."""
    killed = sum(fate == KILLED for fate in fates.values())
    required = [one.name for one in chosen if one.required]
    lost = [name for name in required if fates[name] != KILLED]
    print(f"killed {killed} of {len(chosen)}; required ones {len(required) - len(lost)} of {len(required)}")
    for word in (SURVIVED, ERROR):
        if names := [name for name, fate in fates.items() if fate == word]:
            print(f"{word}: {', '.join(names)}")
    return int(bool(lost) or killed < LEAST_KILLED * len(chosen) or ERROR in fates.values())


if __name__ == "__main__":
    sys.exit(main())
