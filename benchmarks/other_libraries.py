"""Other libraries' own loading code with our entries: each is installed into a throwaway folder and its tests are run.

python benchmarks/other_libraries.py [--only pyiqa trl ...] [--folder DIR] [--flow-factory CHECKOUT]

The libraries are no dependencies, and pyiqa's licence is non-commercial. Flow-Factory is on no index: name a checkout
of its repository; without one its test runs with a stand-in for its interface. Needs a network for pip.
"""

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write_result

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "zoomiqa_reward"
INSTALLED = {
    "pyiqa": ("pyiqa==0.1.16", "einops", "addict", "facexlib", "timm", "openai-clip", "ftfy", "yapf", "future",
              "bitsandbytes", "sentencepiece", "platformdirs"),
    "trl": ("trl==1.16.0",),
    "verl_omni": ("verl==0.9.1", "codetiming", "hydra-core", "omegaconf", "antlr4-python3-runtime==4.9.3", "tensordict",
                  "pyvers", "orjson", "cloudpickle"),
}  # fmt: skip
"""Requirements of each library beside this project's own; the first is the library itself."""
PRESENT = {
    "basicsr_train": "basicsr-fixed", "lpips": "lpips", "diffusers": "diffusers", "flow_factory": None, "ddpo": None,
}  # fmt: skip
"""Libraries that are dependencies, with their distribution; None: tested with a stand-in for the interface."""


def install(name: str, folder: Path) -> Path:
    """Install a library into its folder, unless it is there; return the folder."""
    target = folder / name
    if not target.is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, *INSTALLED[name]]
        subprocess.run(command, check=True)
    return target


def version_of(name: str, target: Path | None) -> str:
    """Return the distribution with its version."""
    if target is not None:
        library = INSTALLED[name][0].partition("==")[0]
        found = next(importlib.metadata.distributions(name=library, path=[str(target)]))
        return f"{library} {found.version}"
    distribution = PRESENT.get(name)
    return "none" if distribution is None else f"{distribution} {importlib.metadata.version(distribution)}"


def run_tests(name: str, paths: list[Path]) -> dict[str, object]:
    """Run the tests of a library with more folders on the path; return how many passed, failed and were skipped."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support"), *map(str, paths)])
    command = [
        sys.executable, "-m", "pytest", "-q", "--tb=short", "-m", "", "-p", "no:hydra_pytest",
        str(TESTS / f"test_integrations_{name}.py"),
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    return {**counts, "seconds": round(time.perf_counter() - start, 1)}


def main() -> int:
    """Run the tests of the libraries that were asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*INSTALLED, *PRESENT], default=[*INSTALLED, *PRESENT])
    parser.add_argument("--folder", type=Path, help="keeps what pip installs, for the next run")
    parser.add_argument("--flow-factory", type=Path, help="a checkout of X-GenGroup/Flow-Factory")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only:
            target = install(name, args.folder or Path(scratch)) if name in INSTALLED else None
            paths = [] if target is None else [target]
            if name == "flow_factory" and args.flow_factory is not None:
                paths.append(args.flow_factory / "src")
            results[name] = {"library": version_of(name, target), **run_tests(name, paths)}
            print(name, results[name], file=sys.stderr)
    write_result("other_libraries", {"libraries": results})
    return int(any(found.get("failed") or found.get("error") or not found.get("passed") for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
