"""Zoom-IQA in the call form of `lpips.LPIPS`: `distance(in0, in1)` of two batches, lower is better; lpips not needed.

LPIPS says how different two images look; this says how much worse the first looks than the second. So it can stand
where a training or an evaluation calls LPIPS with (output, reference), and it asks for no more than the quality of the
reference: an output that already looks as good has distance 0 and no gradient. It does not see invented content, which
LPIPS does: use both, or keep a fidelity loss.
Source of the form: richzhang/PerceptualSimilarity, lpips 0.1.4, `LPIPS.forward`.
"""

import torch
from torch import Tensor, nn

from zoomiqa_reward.model.zoomiqa import ZoomIQA
from zoomiqa_reward.rewards.base import ask
from zoomiqa_reward.rewards.loss import clamped, share_reward
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward


class ZoomIQADistance(nn.Module):
    """max(0, rating(in1) - rating(in0)) / 4: 0 if in0 looks as good as in1, 1 at most.

    The model is no submodule: it is in no state_dict, `.to()` does not move it, and a deep copy shares it.
    """

    def __init__(
        self, model: str | ZoomIQA = "nano", *, device: str | None = None, strict: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:  # fmt: skip
        """Load `model` (a name, a folder, a hub id, or a loaded one)."""
        super().__init__()
        iqa = model if isinstance(model, ZoomIQA) else ZoomIQA.from_pretrained(model, device=device)
        self.reward = ZoomIQAReward(iqa, strict=strict, gradient_checkpointing=gradient_checkpointing)

    def __deepcopy__(self, memo: dict[int, object]) -> "ZoomIQADistance":
        return share_reward(self, memo)

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool = False, normalize: bool = False) -> Tensor:
        """Return the distances [batch, 1, 1, 1] on the device of in0; NaN where an image could not be measured.

        in0, in1: float BCHW in [-1, 1], or in [0, 1] with `normalize=True`. What lies outside is judged clamped, and
        its gradient passes as if it did not. The gradient goes to in0 only. Average with `torch.nanmean`.
        Raises ValueError for `retPerLayer=True` (there are no layers), other layouts and different batch sizes.
        """
        if retPerLayer:
            raise ValueError("retPerLayer=True: a rating has no layers; leave it out")
        if in0.ndim != 4 or in1.ndim != 4 or len(in0) != len(in1):
            raise ValueError(f"in0 {tuple(in0.shape)} and in1 {tuple(in1.shape)}: must be two BCHW batches of one size")
        wants_gradient = in0.requires_grad and torch.is_grad_enabled()
        judged = ask(self.reward, clamped(_unit_range(in0, normalize)), grad=wants_gradient).value
        goal = ask(self.reward, clamped(_unit_range(in1.detach(), normalize))).value
        return ((goal.to(judged.device) - judged).clamp(min=0) / 4).to(in0.device)[:, None, None, None]


def _unit_range(batch: Tensor, is_unit: bool) -> Tensor:
    return batch if is_unit else (batch + 1) / 2
