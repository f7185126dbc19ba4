"""Public names of a package that are imported when they are first used, so that `--help` starts without torch."""

from collections.abc import Callable
from importlib import import_module
from sys import modules
from typing import Any


def lazy_exports(
    package: str, homes: dict[str, str], *, root: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package or module (PEP 562).

    homes: for each public name the module, relative to `root`, that defines it; root: the package itself by default.
    Write the same imports below `if TYPE_CHECKING:` for type checkers; a test compares the two.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{root or package}.{homes[name]}"), name)
        setattr(modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(modules[package]), *homes})

    return get, names
