"""Zoom-IQA as a metric in the manner of pyiqa, with or without pyiqa.

`ZoomIQAScorer()` is used as pyiqa's metrics are. pyiqa's licence is non-commercial, so nothing here needs it. Where it
is installed, it finds `ZoomIQAScorer` by the entry point `pyiqa.archs` of this package, from version 0.1.16 on. It
loads entry points when a registry lacks a name, and `pyiqa.create_metric` asks its table of metrics before any
registry: call `register()` first, or create another metric first, to use `pyiqa.create_metric("zoomiqa")`.
Source of the interface: chaofengc/IQA-PyTorch, `pyiqa/models/inference_model.py` (a network from ARCH_REGISTRY, built
from `metric_opts` of DEFAULT_CONFIGS, called with a BCHW batch, averaged over the batch when used as a loss) and
`pyiqa/utils/registry.py` (entry points).
"""

from typing import Any

import torch
from torch import Tensor, nn

from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.rewards.loss import clamped, share_reward
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

METRIC_NAME = "zoomiqa"


class ZoomIQAScorer(nn.Module):
    """The rating of each image, [batch, 1], 1 bad .. 5 excellent.

    The model is no submodule, does not move, and is shared by deep copies.
    """

    lower_better = False
    metric_mode = "NR"
    score_range = "1, 5"

    def __init__(
        self,
        model: str | ZoomIQA = "nano",
        mode: str = "direct",
        strict: bool = True,
        device: str | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Load `model` (a name, a folder, a hub id, or a loaded one)."""
        super().__init__()
        iqa = model if isinstance(model, ZoomIQA) else ZoomIQA.from_pretrained(model, device=device)
        self.reward = ZoomIQAReward(iqa, mode, strict=strict, gradient_checkpointing=gradient_checkpointing)

    def __deepcopy__(self, memo: dict[int, object]) -> "ZoomIQAScorer":
        return share_reward(self, memo)

    def forward(self, x: Any, ref: Any = None, **_: Any) -> Tensor:
        """Return the ratings of a float BCHW batch in [0, 1], or of one image of any kind; NaN where not measured.

        A batch that requires a gradient gets one where gradients are switched on (pyiqa: `as_loss=True`). Of such a
        batch, what lies outside [0, 1] is rated clamped, and its gradient passes as if it did not. `ref` is not looked
        at. Raises ValueError for mode `reason` then, because text has no gradient, and RuntimeError with the first
        reason if no image of that batch could be measured, because the loss would be NaN without a gradient.
        """
        if not (isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()):
            value = self.reward(x).value
            return (value.to(x.device) if isinstance(x, Tensor) else value)[:, None]
        scores = self.reward(clamped(x), grad=True)
        if not bool(scores.valid.any()):
            raise RuntimeError(
                f"ZoomIQAScorer: none of {len(scores)} images of a loss could be measured: "
                f"{scores.reason(0, self.reward.name)}"
            )
        return scores.value.to(x.device)[:, None]


def register() -> None:
    """Make the metric known to pyiqa as `zoomiqa`. Calling it again changes nothing.

    Raises ImportError where pyiqa is not installed: `ZoomIQAScorer` works without it.
    """
    try:
        from pyiqa.default_model_configs import DEFAULT_CONFIGS
        from pyiqa.utils.registry import ARCH_REGISTRY
    except ImportError as error:
        raise ImportError(
            "register() needs pyiqa, whose licence is non-commercial: pip install pyiqa; ZoomIQAScorer works without"
        ) from error
    if ZoomIQAScorer.__name__ not in ARCH_REGISTRY:
        ARCH_REGISTRY.register()(ZoomIQAScorer)
    DEFAULT_CONFIGS[METRIC_NAME] = {
        "metric_opts": {"type": ZoomIQAScorer.__name__},
        "metric_mode": ZoomIQAScorer.metric_mode,
        "lower_better": ZoomIQAScorer.lower_better,
        "score_range": ZoomIQAScorer.score_range,
    }
