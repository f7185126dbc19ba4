"""Ready settings, as functions: `nano_*` for the embedded restorer on a CPU, `sdx4_*` for SD-x4 on one 24 GB GPU.

Keyword arguments replace fields of `TuneConfig`. The numbers are those of the algorithms' papers, scaled down for nano.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restoration.nano.pipeline import STEPS, TEMPERATURE
from restoration.tuning.algorithms.dpo import DPO
from restoration.tuning.algorithms.grpo import GRPO
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.reward_gradient import RewardGradient
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.algorithms.supervised import Supervised
from restoration.tuning.config import MonitorConfig, Recipe, TuneConfig
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.rewards.robust import RobustReward
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

if TYPE_CHECKING:
    from zoomiqa_reward.model.text_server import RemoteZoomIQA
    from zoomiqa_reward.model.zoomiqa import ZoomIQA

SD_X4 = "stabilityai/stable-diffusion-x4-upscaler"
CONSISTENCY_WEIGHT = 0.5
"""Weight of LR-consistency beside the rating, both as z-scores of their group. A rating alone gets hacked."""
RATING_PER_DB = 0.07
"""Value of 1 dB of LR-consistency on the rating's scale of 1 to 5, if neither is normalised."""
PAIR_SHARPNESS = 0.75
"""`vary_sharpness` for pairs of the embedded restorer, which compare the extremes."""
EXPECTED: dict[str, Any] = {
    "vary_sharpness": 1.0, "expected_targets": True, "lora_rank": 64, "lora_alpha": 128, "ema_decay": 0.95,
}  # fmt: skip
"""Settings for `expected_targets`. Another seed changes only grain, which teaches little; so candidates see softer and
sharper inputs, and training learns the effect of the input, not the grain. High rank and small steps: Adam moves every
weight by about the learning rate, so a change that all weights share grows with their number and noise only with its
square root. A longer average removes more of the noise."""

TRUTH_SHARPNESS = 0.25
"""`truth_sharpness` for DPO on the embedded restorer: the reward rises more, VIF and PSNR-Y less (docs/tune.md)."""
TRUTHS: dict[str, Any] = {"truth_states": "sampled"}
"""Ground truths beside the reward, where the sampler comes to. Without them the embedded restorer learns grain: on 49
photographs NFT lost 0.78 dB of PSNR-Y without and 0.07 dB with them (docs/tune.md)."""


def rating(iqa: "ZoomIQA | RemoteZoomIQA") -> Reward:
    """Return the rating alone: differentiable, but hackable without additional losses."""
    return ZoomIQAReward(iqa)


def rating_and_consistency(iqa: "ZoomIQA | RemoteZoomIQA") -> Reward:
    """Return the rating and LR-consistency, each normalised in its group."""
    from restoration.metrics.registry import as_reward

    return CompositeReward([
        Term(ZoomIQAReward(iqa), 1.0, "z"), Term(as_reward("lr_consistency"), CONSISTENCY_WEIGHT, "z"),
    ])  # fmt: skip


def robust_rating_and_consistency(iqa: "ZoomIQA | RemoteZoomIQA") -> Reward:
    """Return the robust rating plus `RATING_PER_DB` per dB of LR-consistency.

    The terms are not normalised: otherwise an invisible difference of 0.1 dB would count as much as the difference
    between the best and the worst rating.
    """
    from restoration.metrics.registry import as_reward

    return CompositeReward([
        Term(RobustReward(ZoomIQAReward(iqa)), 1.0, "raw"), Term(as_reward("lr_consistency"), RATING_PER_DB, "raw"),
    ])  # fmt: skip


def nano_grpo(**changes: object) -> Recipe:
    """Return GRPO on the embedded restorer."""
    config = _nano({"learning_rate": 1e-4, "lora_rank": 2, "lora_alpha": 4, "updates_per_round": 2} | changes)
    return Recipe(name="nano_grpo", source="nano", algorithm=GRPO(), config=config, reward=rating_and_consistency)


def nano_nft(**changes: object) -> Recipe:
    """Return DiffusionNFT on the embedded restorer.

    Advantages are clipped at 1, not at the paper's 5, so the target of a round is five times as far away: there are few
    rounds, each with many images. The KL term holds everything that the candidates of a round share, but not for many
    more rounds (docs/notes/tuning.md). It needs ground truths; `truth_weight=0` does without.
    """
    defaults = {"rounds": 2, "images_per_round": 16, "learning_rate": 4e-4, "updates_per_round": 8, "epochs": 8}
    defaults |= {"truth_weight": 3.0} | TRUTHS
    return Recipe(name="nano_nft", source="nano", algorithm=NFT(advantage_clip=1.0, kl=0.2),
                  config=_nano(defaults | EXPECTED | changes), reward=robust_rating_and_consistency)  # fmt: skip


def nano_dpo(pairs_file: Path | None = None, **changes: object) -> Recipe:
    """Return DPO on the embedded restorer, with pairs mined from it or read from a file.

    The inputs of mined winners and losers differ far more than two samples of one input, so beta is far below the usual
    5000: with that the comparison would saturate before the weights move. Pairs from a file may be images without known
    inputs; they are learned as they are, by the first layer alone, which cannot draw a grid. Mined pairs are learned
    beside sharpened ground truths; `truth_weight=0` does without.
    """
    defaults: dict[str, Any] = {"num_samples": 16, "rounds": 100}
    if pairs_file is None:
        algorithm = DPO(beta=200.0, winner_weight=40.0)
        defaults |= {"learning_rate": 4e-4, "updates_per_round": 4} | EXPECTED | {"vary_sharpness": PAIR_SHARPNESS}
        defaults |= {"truth_weight": 10.0, "truth_sharpness": TRUTH_SHARPNESS} | TRUTHS
    else:
        algorithm = DPO(pairs_file=pairs_file)
        defaults |= {"learning_rate": 1e-3, "vary_sharpness": PAIR_SHARPNESS, "lora_targets": ("conv_in",)}
    return Recipe(name="nano_dpo", source="nano", algorithm=algorithm, config=_nano(defaults | changes),
                  reward=robust_rating_and_consistency)  # fmt: skip


def nano_sft(**changes: object) -> Recipe:
    """Return rejection-sampling fine-tuning of the embedded restorer.

    Rounds have many images, each used often: with few images training fits whatever was best of those few. The base
    model sets the targets, so training cannot go beyond its best candidates.
    """
    defaults = {"rounds": 6, "images_per_round": 32, "learning_rate": 4e-4, "updates_per_round": 8, "epochs": 20}
    return Recipe(name="nano_sft", source="nano", algorithm=SFT(top=2), config=_nano(defaults | EXPECTED | changes),
                  reward=robust_rating_and_consistency)  # fmt: skip


def nano_reward_gradient(**changes: object) -> Recipe:
    """Return the reward's gradient through the embedded restorer's last step; the rating alone has one.

    A larger truth_weight costs less FSIM and VIF, and the rating rises more slowly. Expect a pattern that only the
    rating model sees (docs/tune.md), and an alarm by `fragility`.
    """
    defaults = {"num_samples": 2, "lora_rank": 16, "lora_alpha": 32, "truth_weight": 5.0}
    config = _nano({"learning_rate": 3e-4} | defaults | changes)
    return Recipe(name="nano_reward_gradient", source="nano", algorithm=RewardGradient(reward_weight=0.1),
                  config=config, reward=rating)  # fmt: skip


def nano_supervised(**changes: object) -> Recipe:
    """Return learning from ground truths at the states that the embedded restorer comes to; the rating only watches."""
    defaults = {"rounds": 20, "images_per_round": 16, "num_samples": 4, "learning_rate": 4e-4, "updates_per_round": 8,
                "lora_rank": 64, "lora_alpha": 128, "ema_decay": 0.95, "truth_states": "sampled"}  # fmt: skip
    return Recipe(name="nano_supervised", source="nano", algorithm=Supervised(), config=_nano(defaults | changes),
                  reward=robust_rating_and_consistency)  # fmt: skip


def sdx4_grpo(**changes: object) -> Recipe:
    """Return GRPO on SD-x4."""
    return _sdx4("sdx4_grpo", GRPO(), {"learning_rate": 1e-4} | changes)


def sdx4_nft(**changes: object) -> Recipe:
    """Return DiffusionNFT on SD-x4: try it first, because it works with any sampler and re-scores nothing."""
    return _sdx4("sdx4_nft", NFT(), {"learning_rate": 3e-4} | changes)


def sdx4_dpo(pairs_file: Path | None = None, **changes: object) -> Recipe:
    """Return DPO on SD-x4."""
    settings = {"learning_rate": 2e-5, "num_samples": 16, "rounds": 500} | changes
    return _sdx4("sdx4_dpo", DPO(pairs_file=pairs_file), settings)


def sdx4_sft(**changes: object) -> Recipe:
    """Return rejection-sampling fine-tuning of SD-x4."""
    return _sdx4("sdx4_sft", SFT(), {"learning_rate": 5e-5} | changes)


def sdx4_reward_gradient(**changes: object) -> Recipe:
    """Return the reward's gradient through SD-x4; both models side by side, so a 7B reward needs more than 24 GB."""
    settings = {"learning_rate": 1e-5, "num_samples": 1, "rows_at_once": 1, "offload": False, "truth_weight": 1.0}
    return _sdx4("sdx4_reward_gradient", RewardGradient(reward_weight=1e-2), settings | changes, rating)


def sdx4_supervised(**changes: object) -> Recipe:
    """Return learning from ground truths at the states that SD-x4 comes to; the reward only watches."""
    return _sdx4("sdx4_supervised", Supervised(), {"learning_rate": 5e-5, "truth_states": "sampled"} | changes)


RECIPES: dict[str, Callable[..., Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        nano_grpo,
        nano_nft,
        nano_dpo,
        nano_sft,
        nano_reward_gradient,
        nano_supervised,
        sdx4_grpo,
        sdx4_nft,
        sdx4_dpo,
        sdx4_sft,
        sdx4_reward_gradient,
        sdx4_supervised,
    )
}


def find_recipe(name: str, **changes: object) -> Recipe:
    """Return the recipe of that name. Raises ValueError that lists the known ones."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r}: must be among {', '.join(RECIPES)}")
    return RECIPES[name](**changes)


def _nano(settings: Mapping[str, object]) -> TuneConfig:
    common: dict[str, Any] = {
        "lora_rank": 8, "lora_alpha": 16, "learning_rate": 1e-4, "steps": STEPS, "crop_px": 32,
        "temperature": TEMPERATURE,
    }  # fmt: skip
    return TuneConfig(**(common | dict(settings)))


def _sdx4(
    name: str, algorithm: Any, settings: Mapping[str, object], reward: Callable[[Any], Reward] = rating_and_consistency
) -> Recipe:
    common: dict[str, Any] = {
        "rounds": 100, "steps": 20, "crop_px": 128, "rows_at_once": 2, "mixed_precision": "bf16", "offload": True,
        "gradient_checkpointing": True,
    }  # fmt: skip
    config = TuneConfig(**(common | dict(settings)))
    return Recipe(name=name, source=SD_X4, algorithm=algorithm, config=config, reward=reward,
                  monitor=MonitorConfig(crop_px=128))  # fmt: skip
