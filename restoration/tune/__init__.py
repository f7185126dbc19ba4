"""Tune a diffusion restorer on a reward: five algorithms on one surface, with a monitor for reward hacking.

Light to import: diffusers, peft and accelerate are loaded when a run starts. `recipes.py` holds ready settings,
`trainer.tune` runs them, `zoomiqa tune` does it from a shell; `docs/tune.md` says which to take.

The package is also its main function: `from restoration import tune` and then `tune(recipe, ...)`.
"""

import sys
from types import ModuleType
from typing import Any

from restoration.tune.config import MonitorConfig, Recipe, TuneConfig
from restoration.tune.data import Example, load_examples
from restoration.tune.trainer import TuneResult, tune

__all__ = ["Example", "MonitorConfig", "Recipe", "TuneConfig", "TuneResult", "load_examples", "tune"]


class _CallablePackage(ModuleType):
    """`restoration.tune` is a function beside `best_of_n` and `refine`, and the home of recipes and algorithms."""

    def __call__(self, *args: Any, **options: Any) -> TuneResult:
        return tune(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
