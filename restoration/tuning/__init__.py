"""Tune a diffusion restorer on a reward: five algorithms and a control, with a monitor for hacking.

Light to import: diffusers, peft and accelerate are loaded when a run starts. `recipes.py` holds ready settings,
`tune` runs them, `zoomiqa tune` does it from a shell; `docs/tune.md` says which to take.
"""

from restoration.tuning.config import MonitorConfig, Recipe, TuneConfig
from restoration.tuning.data import Example, load_examples
from restoration.tuning.trainer import TuneResult, tune

__all__ = ["Example", "MonitorConfig", "Recipe", "TuneConfig", "TuneResult", "load_examples", "tune"]
