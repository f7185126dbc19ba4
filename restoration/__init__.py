"""Restoration of images, judged and tuned by `zoomiqa_reward`.

>>> from restoration import Restorer, best_of_n
"""

from typing import TYPE_CHECKING

from zoomiqa_reward.lazy import lazy_exports

if TYPE_CHECKING:
    from restoration.degradation.classical import classical_candidates, degrade_for_demo
    from restoration.degradation.pipeline import degrade
    from restoration.evaluation.evaluate import evaluate
    from restoration.metrics.conditioned import ConditionedReward
    from restoration.metrics.fidelity import MetricUnavailable
    from restoration.metrics.registry import METRICS, as_reward, measure
    from restoration.refinement import Refined, refine
    from restoration.restorer.image_io import RestorationError
    from restoration.restorer.loading import PipelineError
    from restoration.restorer.restorer import Restored, Restorer
    from restoration.search.fusion import Fused, fuse
    from restoration.search.noise_search import search_noise
    from restoration.selection.best_of_n import Cascade, best_of_n
    from restoration.selection.candidates import Candidate
    from restoration.selection.early_stop import EarlyStop
    from restoration.selection.pool import varied_pool
    from restoration.selection.result import BestOfN
    from restoration.tuning.algorithms.groups import NothingLearned, TooManyFailures
    from restoration.tuning.data import load_examples
    from restoration.tuning.trainer import tune

_HOMES = {
    "BestOfN": "selection.result",
    "Candidate": "selection.candidates",
    "Cascade": "selection.best_of_n",
    "ConditionedReward": "metrics.conditioned",
    "EarlyStop": "selection.early_stop",
    "METRICS": "metrics.registry",
    "Fused": "search.fusion",
    "MetricUnavailable": "metrics.fidelity",
    "NothingLearned": "tuning.algorithms.groups",
    "PipelineError": "restorer.loading",
    "Refined": "refinement",
    "RestorationError": "restorer.image_io",
    "Restored": "restorer.restorer",
    "Restorer": "restorer.restorer",
    "TooManyFailures": "tuning.algorithms.groups",
    "as_reward": "metrics.registry",
    "best_of_n": "selection.best_of_n",
    "classical_candidates": "degradation.classical",
    "degrade": "degradation.pipeline",
    "degrade_for_demo": "degradation.classical",
    "evaluate": "evaluation.evaluate",
    "fuse": "search.fusion",
    "load_examples": "tuning.data",
    "measure": "metrics.registry",
    "refine": "refinement",
    "search_noise": "search.noise_search",
    "tune": "tuning.trainer",
    "varied_pool": "selection.pool",
}

__all__ = [
    "METRICS",
    "BestOfN",
    "Candidate",
    "Cascade",
    "ConditionedReward",
    "EarlyStop",
    "Fused",
    "MetricUnavailable",
    "NothingLearned",
    "PipelineError",
    "Refined",
    "RestorationError",
    "Restored",
    "Restorer",
    "TooManyFailures",
    "as_reward",
    "best_of_n",
    "classical_candidates",
    "degrade",
    "degrade_for_demo",
    "evaluate",
    "fuse",
    "load_examples",
    "measure",
    "refine",
    "search_noise",
    "tune",
    "varied_pool",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
