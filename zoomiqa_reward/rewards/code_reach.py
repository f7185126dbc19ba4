"""What code reaches beyond itself: the globals that it reads, the modules that it imports, and whose code those are."""

import dis
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from zoomiqa_reward.runs.digest import file_digest

OWN_PACKAGES = ("zoomiqa_reward", "restoration", "train_iqa")
"""Their functions count by the contents of their module's file: the version stays the same while the code changes."""
_GLOBAL_READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


@dataclass(frozen=True)
class Reach:
    """Of one function, the functions inside it included."""

    globals: frozenset[str]
    """Names that it reads among the globals."""
    names: frozenset[str]
    """All names that it looks up anywhere, attributes included: what it may take from a module."""
    imports: frozenset[tuple[str, int]]
    """Modules that it imports when it runs, and how many dots stand before each."""


@functools.lru_cache(maxsize=4096)
def reach_of(code: types.CodeType) -> Reach:
    """Return what a function's code reaches."""
    reads: set[str] = set()
    names: set[str] = set(code.co_names)
    imports: set[tuple[str, int]] = set()
    steps = list(dis.get_instructions(code))
    for index, step in enumerate(steps):
        if step.opname in _GLOBAL_READS:
            reads.add(step.argval)
        elif step.opname == "IMPORT_NAME":  # after its level and the names that are taken from it
            imports.add((step.argval, int(steps[index - 2].argval)))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = reach_of(constant)
            reads, names, imports = reads | inner.globals, names | inner.names, imports | inner.imports
        elif isinstance(constant, str):
            names.add(constant)  # `getattr(module, "NAME")`
    return Reach(frozenset(reads), frozenset(names), frozenset(imports))


def imported_by(fn: types.FunctionType) -> Iterator[tuple[str, types.ModuleType | None]]:
    """Yield the modules that a function imports when it runs, by name; None for those of installed packages.

    Raises ImportError for one that is not there.
    """
    package = fn.__globals__.get("__package__") or ""
    for name, level in sorted(reach_of(fn.__code__).imports):
        whole = name if level == 0 else importlib.util.resolve_name("." * level + name, package)
        yield whole, None if is_installed(whole) else importlib.import_module(whole)


@functools.lru_cache(maxsize=1024)
def is_installed(module: str | None) -> bool:
    """Whether a module belongs to Python or an installed package, whose code its version names."""
    if module is None or module == "builtins":
        return True
    root = module.partition(".")[0]
    if root in OWN_PACKAGES or (root in sys.stdlib_module_names and root != "__main__"):
        return True
    file = _file_of(root)
    return file is not None and ("site-packages" in file or "dist-packages" in file)


def is_foreign(module: str | None) -> bool:
    """Whether objects of a module may hide state: those of Python and of installed packages, not our own."""
    return is_installed(module) and (module or "").partition(".")[0] not in OWN_PACKAGES


@functools.lru_cache(maxsize=1024)
def version_of(module: str) -> str:
    """Return the version of a module's package, or a digest of its file where no package has one."""
    root = module.partition(".")[0]
    if root not in OWN_PACKAGES:
        if root in sys.stdlib_module_names:
            return ".".join(map(str, sys.version_info[:3]))
        try:
            return version(root)
        except PackageNotFoundError:  # PIL is Pillow's, cv2 opencv-python's
            if names := _distributions().get(root):
                return " ".join(f"{name} {version(name)}" for name in sorted(set(names)))
    file = _file_of(module)
    return "unknown" if file is None else file_digest(file)


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _file_of(module: str) -> str | None:
    loaded = sys.modules.get(module)
    if loaded is not None:
        return getattr(loaded, "__file__", None)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin
