"""Ready settings, as functions: `nano_*` for the embedded restorer on a CPU, `sdx4_*` for SD-x4 on one 24 GB GPU.

Keyword arguments replace fields of `TuneConfig`. The numbers are those of the algorithms' papers, scaled down for nano.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from restoration.nano.pipeline import STEPS, TEMPERATURE
from restoration.tuning.algorithms.dpo import DPO
from restoration.tuning.algorithms.grpo import GRPO
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.reward_gradient import RewardGradient
from restoration.tuning.algorithms.sft import SFT
from restoration.tuning.config import MonitorConfig, Recipe, TuneConfig
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.composite import CompositeReward, Term
from zoomiqa_reward.rewards.robust import RobustReward
from zoomiqa_reward.rewards.zoomiqa import ZoomIQAReward

SD_X4 = "stabilityai/stable-diffusion-x4-upscaler"
CONSISTENCY_WEIGHT = 0.5
"""Of LR-consistency beside the rating, both as z-scores of their group: a no-reference reward alone is hacked."""
RATING_PER_DB = 0.07
"""What a dB of LR-consistency is worth beside the rating's 1 to 5, where neither is normalised."""
PAIR_SHARPNESS = 0.75
"""How far the embedded restorer's candidates are varied for pairs, which set the extremes against each other."""
EXPECTED: dict[str, Any] = {
    "vary_sharpness": 1.0, "expected_targets": True, "lora_rank": 64, "lora_alpha": 128, "ema_decay": 0.95,
}  # fmt: skip
"""Another noise changes grain alone, from which little can be learned: so candidates see their image softer or
sharper, as far as that goes, and what is learned is what they saw, not their grain. In small steps of many weights:
Adam moves each by about as much, so what they agree on grows with their number, and what they do not agree on with its
root. A longer average cancels more of the latter."""


def rating(iqa: Any) -> Reward:
    """Return the Zoom-IQA rating alone: differentiable, and hackable without the losses beside it."""
    return ZoomIQAReward(iqa)


def rating_and_consistency(iqa: Any) -> Reward:
    """Return the rating and LR-consistency, each normalised in its group."""
    from restoration.metrics.registry import as_reward

    return CompositeReward([
        Term(ZoomIQAReward(iqa), 1.0, "z"), Term(as_reward("lr_consistency"), CONSISTENCY_WEIGHT, "z"),
    ])  # fmt: skip


def robust_rating_and_consistency(iqa: Any) -> Reward:
    """Return the rating's mean over unseen copies plus `RATING_PER_DB` of LR-consistency.

    Not normalised each for itself: candidates that differ by 0.1 dB, which nothing shows, would differ by as much as
    the best and the worst rating.
    """
    from restoration.metrics.registry import as_reward

    return CompositeReward([
        Term(RobustReward(ZoomIQAReward(iqa)), 1.0, "raw"), Term(as_reward("lr_consistency"), RATING_PER_DB, "raw"),
    ])  # fmt: skip


def nano_grpo(**changes: Any) -> Recipe:
    """Return GRPO on the embedded restorer."""
    config = _nano({"learning_rate": 1e-4, "lora_rank": 2, "lora_alpha": 4, "updates_per_round": 2} | changes)
    return Recipe(name="nano_grpo", source="nano", algorithm=GRPO(), config=config, reward=rating_and_consistency)


def nano_nft(**changes: Any) -> Recipe:
    """Return DiffusionNFT on the embedded restorer.

    Advantages are clipped at 1, not at the paper's 5, which would set the aim of a round a fifth as far: these rounds
    are few, and of many images each. The KL term is what holds all that a round's candidates share; for longer than
    these rounds it does not (docs/notes/tuning.md).
    """
    known = {"rounds": 4, "images_per_round": 16, "learning_rate": 4e-4, "updates_per_round": 8, "epochs": 8}
    return Recipe(name="nano_nft", source="nano", algorithm=NFT(advantage_clip=1.0, kl=0.2),
                  config=_nano(known | EXPECTED | changes), reward=robust_rating_and_consistency)  # fmt: skip


def nano_dpo(pairs_file: Path | None = None, **changes: Any) -> Recipe:
    """Return DPO on the embedded restorer, with pairs mined from it or read from a file.

    What mined winners and losers saw differs far more than two draws of one image do, so beta is far below the 5000
    that suit those: there the comparison would be over before anything had moved. Pairs from a file may be images, of
    which nobody knows what was seen; they are learned as they are, by the first layer, which can draw no grid.
    """
    known: dict[str, Any] = {"num_samples": 16, "rounds": 100}
    if pairs_file is None:
        algorithm = DPO(beta=200.0, winner_weight=40.0)
        known |= {"learning_rate": 4e-4, "updates_per_round": 4} | EXPECTED | {"vary_sharpness": PAIR_SHARPNESS}
    else:
        algorithm = DPO(pairs_file=pairs_file)
        known |= {"learning_rate": 1e-3, "vary_sharpness": PAIR_SHARPNESS, "lora_targets": ("conv_in",)}
    return Recipe(name="nano_dpo", source="nano", algorithm=algorithm, config=_nano(known | changes),
                  reward=robust_rating_and_consistency)  # fmt: skip


def nano_sft(**changes: Any) -> Recipe:
    """Return rejection-sampling fine-tuning of the embedded restorer.

    Rounds of many images, each gone through often: what is learned of few is what happened to be their best. The base
    sets the targets, so nothing beyond its own best candidates can be learned.
    """
    known = {"rounds": 6, "images_per_round": 32, "learning_rate": 4e-4, "updates_per_round": 8, "epochs": 20}
    return Recipe(name="nano_sft", source="nano", algorithm=SFT(top=2), config=_nano(known | EXPECTED | changes),
                  reward=robust_rating_and_consistency)  # fmt: skip


def nano_reward_gradient(**changes: Any) -> Recipe:
    """Return the reward's gradient through the embedded restorer's last step; the rating alone has one.

    The heavier the truth_weight, the less of FSIM and VIF is paid for the rating, and the slower it rises. Expect a
    pattern that only the rating's model sees (docs/tune.md), and an alarm by `fragility`.
    """
    known = {"num_samples": 2, "lora_rank": 16, "lora_alpha": 32, "truth_weight": 5.0}
    config = _nano({"learning_rate": 3e-4} | known | changes)
    return Recipe(name="nano_reward_gradient", source="nano", algorithm=RewardGradient(reward_weight=0.1),
                  config=config, reward=rating)  # fmt: skip


def sdx4_grpo(**changes: Any) -> Recipe:
    """Return GRPO on SD-x4."""
    return _sdx4("sdx4_grpo", GRPO(), {"learning_rate": 1e-4} | changes)


def sdx4_nft(**changes: Any) -> Recipe:
    """Return DiffusionNFT on SD-x4: the first to try, since any sampler will do and nothing is re-scored."""
    return _sdx4("sdx4_nft", NFT(), {"learning_rate": 3e-4} | changes)


def sdx4_dpo(pairs_file: Path | None = None, **changes: Any) -> Recipe:
    """Return DPO on SD-x4."""
    settings = {"learning_rate": 2e-5, "num_samples": 16, "rounds": 500} | changes
    return _sdx4("sdx4_dpo", DPO(pairs_file=pairs_file), settings)


def sdx4_sft(**changes: Any) -> Recipe:
    """Return rejection-sampling fine-tuning of SD-x4."""
    return _sdx4("sdx4_sft", SFT(), {"learning_rate": 5e-5} | changes)


def sdx4_reward_gradient(**changes: Any) -> Recipe:
    """Return the reward's gradient through SD-x4; both models side by side, so a 7B reward needs more than 24 GB."""
    settings = {"learning_rate": 1e-5, "num_samples": 1, "rows_at_once": 1, "offload": False, "truth_weight": 1.0}
    settings |= changes
    return _sdx4("sdx4_reward_gradient", RewardGradient(reward_weight=1e-2), settings, rating)


RECIPES: dict[str, Callable[..., Recipe]] = {
    one.__name__: one
    for one in (nano_grpo, nano_nft, nano_dpo, nano_sft, nano_reward_gradient, sdx4_grpo, sdx4_nft, sdx4_dpo, sdx4_sft,
                sdx4_reward_gradient)
}  # fmt: skip


def find_recipe(name: str, **changes: Any) -> Recipe:
    """Return the recipe of that name. Raises ValueError that lists the known ones."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r}: must be among {', '.join(RECIPES)}")
    return RECIPES[name](**changes)


def _nano(settings: dict[str, Any]) -> TuneConfig:
    common = {
        "lora_rank": 8, "lora_alpha": 16, "learning_rate": 1e-4, "steps": STEPS, "crop_px": 32,
        "temperature": TEMPERATURE,
    }  # fmt: skip
    return TuneConfig(**(common | settings))


def _sdx4(
    name: str, algorithm: Any, settings: dict[str, Any], reward: Callable[[Any], Reward] = rating_and_consistency
) -> Recipe:
    common = {
        "rounds": 100, "steps": 20, "crop_px": 128, "rows_at_once": 2, "mixed_precision": "bf16", "offload": True,
        "gradient_checkpointing": True,
    }  # fmt: skip
    return Recipe(name=name, source=SD_X4, algorithm=algorithm, config=TuneConfig(**(common | settings)), reward=reward,
                  monitor=MonitorConfig(crop_px=128))  # fmt: skip
