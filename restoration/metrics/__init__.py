"""Full-reference and no-reference metrics of restoration, each also as a reward; `docs/metrics.md` is the guide."""

from typing import TYPE_CHECKING

from zoomiqa_reward.lazy import lazy_exports

if TYPE_CHECKING:
    from restoration.metrics.conditioned import ConditionedReward
    from restoration.metrics.fidelity import MetricUnavailable, fsim, haarpsi, lr_consistency, mdsi, psnr_y, ssim_y, vif
    from restoration.metrics.perceptual import lpips, niqe
    from restoration.metrics.referenced import ReferencedReward
    from restoration.metrics.registry import METRICS, Measurement, Metric, as_reward, find_metrics, measure

_HOMES = {
    "ConditionedReward": "conditioned",
    "METRICS": "registry",
    "Measurement": "registry",
    "Metric": "registry",
    "MetricUnavailable": "fidelity",
    "ReferencedReward": "referenced",
    "as_reward": "registry",
    "find_metrics": "registry",
    "fsim": "fidelity",
    "haarpsi": "fidelity",
    "lpips": "perceptual",
    "lr_consistency": "fidelity",
    "mdsi": "fidelity",
    "measure": "registry",
    "niqe": "perceptual",
    "psnr_y": "fidelity",
    "ssim_y": "fidelity",
    "vif": "fidelity",
}

__all__ = [
    "METRICS",
    "ConditionedReward",
    "Measurement",
    "Metric",
    "MetricUnavailable",
    "ReferencedReward",
    "as_reward",
    "find_metrics",
    "fsim",
    "haarpsi",
    "lpips",
    "lr_consistency",
    "mdsi",
    "measure",
    "niqe",
    "psnr_y",
    "ssim_y",
    "vif",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
