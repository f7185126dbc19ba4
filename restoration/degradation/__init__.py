"""Low-quality copies of clean images: recipes, presets and classical restorations."""

from typing import TYPE_CHECKING

from zoomiqa_reward.lazy import lazy_exports

if TYPE_CHECKING:
    from restoration.degradation.classical import classical_candidates, degrade_for_demo
    from restoration.degradation.pipeline import degrade
    from restoration.degradation.presets import PRESETS, Degradation, DegradationStage, find_preset

_HOMES = {
    "Degradation": "presets",
    "PRESETS": "presets",
    "DegradationStage": "presets",
    "classical_candidates": "classical",
    "degrade": "pipeline",
    "degrade_for_demo": "classical",
    "find_preset": "presets",
}

__all__ = [
    "PRESETS",
    "Degradation",
    "DegradationStage",
    "classical_candidates",
    "degrade",
    "degrade_for_demo",
    "find_preset",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
