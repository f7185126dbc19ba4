"""Is a reward fit for best-of-N, for DPO, for gradients? Measured on photographs, for any `Reward`.

`run_check(reward, photographs)` asks the reward about images whose order is known, and about the same image again,
sent by other ways, and pushed uphill; it returns a `CheckReport` with the measures and one verdict a use.
"""

from zoomiqa_reward.check.figure import ladder_figure
from zoomiqa_reward.check.ladders import Photograph, bundled_photographs, load_photographs
from zoomiqa_reward.check.report import CheckReport
from zoomiqa_reward.check.run import run_check
from zoomiqa_reward.check.verdict import Thresholds, Verdict
from zoomiqa_reward.rewards.find import find_reward

__all__ = [
    "CheckReport",
    "Photograph",
    "Thresholds",
    "Verdict",
    "bundled_photographs",
    "find_reward",
    "ladder_figure",
    "load_photographs",
    "run_check",
]
