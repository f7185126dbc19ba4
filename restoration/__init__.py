"""Restoration of images, judged and tuned by `zoomiqa_reward`.

>>> from restoration import Restorer, best_of_n

Names are loaded when they are first used: looking at the command line's help imports neither torch nor diffusers.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "BestOfN": "candidates",
    "Candidate": "candidates",
    "Cascade": "selection",
    "EarlyStop": "early_stop",
    "Refined": "refinement",
    "Restored": "restorer",
    "Restorer": "restorer",
    "best_of_n": "selection",
    "classical_candidates": "classical",
    "degrade_for_demo": "classical",
    "evaluate": "evaluation",
    "measure": "metrics",
    "refine": "refinement",
}
_CALLABLE_PACKAGES = ("tune",)
__all__ = sorted([*_HOMES, *_CALLABLE_PACKAGES])


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
