"""What `tune.py` compares: each method's recipe, how it is made small, and what it is trained on."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from restoration import Restorer
from restoration.evaluation.measuring import BicubicRestorer
from restoration.metrics import as_reward
from restoration.selection.candidate_loop import pixels_digest
from restoration.tuning.algorithms.nft import NFT
from restoration.tuning.algorithms.reward_gradient import RewardGradient
from restoration.tuning.config import MonitorConfig, Recipe
from restoration.tuning.recipes import TRUTH_SHARPNESS, find_recipe
from zoomiqa_reward import MetricReward
from zoomiqa_reward.check import find_reward
from zoomiqa_reward.images import to_pil
from zoomiqa_reward.rewards.base import Reward

TRAIN_LR_PX, EVAL_LR_PX = 28, 49
"""Their restorations are multiples of 28 px, nano's token, so that a rating takes one view; NIQE needs 196 px."""
SMALL: dict[str, Any] = {
    "images_per_round": 4, "num_samples": 6, "rounds": 20, "crop_px": TRAIN_LR_PX,
}  # fmt: skip
"""What differs from the recipes: less, so that a run takes four to thirty minutes of one core."""
USE_SHARPNESS = 0.15
"""What keeps VIF and PSNR-Y of the tuned restorer near the base's, on 24 other photographs (docs/notes/tuning.md)."""
WITHOUT_TRUTHS: dict[str, Any] = {"truth_weight": 0.0, "truth_states": "noisy", "truth_sharpness": 0.0}
"""The reward alone; the recipes of NFT and DPO tell the truth beside it, and `supervised` tells nothing else."""
HACKED: dict[str, Any] = WITHOUT_TRUTHS | {
    "rounds": 40, "learning_rate": 5e-4, "lora_rank": 8, "lora_alpha": 16, "epochs": 1, "expected_targets": False,
    "ema_decay": 0.9, "images_per_round": 4, "updates_per_round": 4,
}  # fmt: skip
"""NFT on a reward that can be hacked, in larger steps and from the candidates' own grain, so that the alarm comes in
minutes."""
CLIMB: dict[str, Any] = {
    "rounds": 40, "learning_rate": 1e-4, "num_samples": 2, "truth_weight": 0.0, "ema_decay": 0.5,
}  # fmt: skip
UNHELD = RewardGradient(reward_weight=100.0, low_frequency=0.0)
"""The slope of a reward whose values are a thousandth of a rating's, and nothing beside it."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table."""

    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)
    every: int = 6
    """Rounds between looks of the monitor."""
    algorithm: Any = None
    """In place of the recipe's."""
    reward: Callable[[Any], Reward] | None = None
    """From the model; None: the recipe's."""
    hackable: bool = False
    """Alarms end the run, and NIQE is not watched; on the others they are counted, so that all train equally long."""
    heedless: bool = False
    """A hackable reward whose alarms are only counted: what they are good for."""
    control: str | None = None
    """The method that learns the same without the reward, or before this stage."""
    start: str | None = None
    """The method, finished with the same seed, whose pipeline is tuned further; None: the recipe's pipeline."""
    trained_as: str | None = None
    """The method whose finished runs are measured in another way, so that nothing is trained."""
    sharpness: float = 0.0
    """By how much an evaluation image is sharpened before it is restored."""


def chance(image: Any) -> float:
    """Return a number in [0, 1) that belongs to the image and says nothing about it."""
    return int(pixels_digest(to_pil(image)), 16) / 16**16


def laplacian(iqa: Any) -> Reward:
    """Return the variance of the Laplacian, whatever the model."""
    return find_reward("zoomiqa_reward.check.baselines:laplacian")


METHODS = {
    "sft": Method(recipe="nano_sft", changes={"images_per_round": 32, "num_samples": 8, "rounds": 2}, every=1),
    "dpo": Method(recipe="nano_dpo", changes={"num_samples": 8, "rounds": 80} | WITHOUT_TRUTHS),
    "grpo": Method(recipe="nano_grpo", changes={"rounds": 30}),
    "nft": Method(recipe="nano_nft", changes={"images_per_round": 16, "rounds": 4} | WITHOUT_TRUTHS, every=2),
    "reward_gradient": Method(recipe="nano_reward_gradient", changes={"num_samples": 2, "rounds": 36}),
    "chance": Method(recipe="nano_dpo", changes={"num_samples": 8, "rounds": 80} | WITHOUT_TRUTHS,
                     reward=lambda iqa: MetricReward(chance, "chance", True, (0.0, 1.0))),
    "supervised": Method(recipe="nano_supervised",
                         changes={"images_per_round": 16, "num_samples": 4, "rounds": 20}, every=10),
    "nft_truth": Method(recipe="nano_nft", changes={"images_per_round": 16, "rounds": 2}, every=1,
                        control="supervised"),
    "dpo_truth": Method(recipe="nano_dpo", changes={"num_samples": 8, "rounds": 80, "truth_sharpness": 0.0},
                        control="supervised"),
    "supervised_sharp": Method(
        recipe="nano_supervised", every=10,
        changes={"images_per_round": 16, "num_samples": 4, "rounds": 40, "truth_sharpness": TRUTH_SHARPNESS},
    ),
    "dpo_sharp": Method(recipe="nano_dpo", changes={"num_samples": 8, "rounds": 80}, control="supervised_sharp"),
    "dpo_grpo": Method(recipe="nano_grpo", changes={"rounds": 30}, start="dpo_sharp", control="dpo_sharp"),
    "truth_grpo": Method(recipe="nano_grpo", changes={"rounds": 30}, start="dpo_truth", control="dpo_truth"),
    "supervised_sharpened": Method(recipe="nano_supervised", trained_as="supervised", sharpness=USE_SHARPNESS),
    "dpo_sharpened": Method(recipe="nano_dpo", trained_as="dpo_truth", sharpness=USE_SHARPNESS,
                            control="supervised_sharpened"),
    "grpo_sharpened": Method(recipe="nano_grpo", trained_as="truth_grpo", sharpness=USE_SHARPNESS,
                             control="dpo_sharpened"),
    "laplacian": Method(recipe="nano_reward_gradient", changes=CLIMB, every=1, algorithm=UNHELD, hackable=True,
                        reward=laplacian),
    "laplacian_heedless": Method(recipe="nano_reward_gradient", changes=CLIMB, every=10, algorithm=UNHELD,
                                 hackable=True, heedless=True, reward=laplacian),
    "niqe": Method(recipe="nano_nft", changes=HACKED | {"crop_px": EVAL_LR_PX, "num_samples": 4}, every=2,
                   algorithm=NFT(), hackable=True, reward=lambda iqa: as_reward("niqe")),
}  # fmt: skip


def sharpened_first(amount: float, source: str | Path = "nano", **options: float) -> Restorer:
    """Return a restorer that sees its input sharpened by a fixed amount; its images agree with the input itself."""
    return Restorer.from_pretrained(source, vary_sharpness=(amount, amount), **options)


SHARPNESS = (0.15, 0.25, 0.5, 0.75)
"""By which the base's input is sharpened: what a method that learns to be sharper has to beat, since it needs no
training."""
COOL_SHARPNESS = (0.25, 0.5)
"""Of the rows at temperature 0: without noise to sharpen, the base bears a sharper input."""
BASELINES: dict[str, Callable[[], Any]] = {
    "base": lambda: Restorer.from_pretrained("nano"),
    "bicubic": lambda: BicubicRestorer(scale=4),
    **{f"sharpened_{amount}": partial(sharpened_first, amount) for amount in SHARPNESS},
    "cool": lambda: Restorer.from_pretrained("nano", temperature=0.0),
    **{f"cool_sharpened_{amount}": partial(sharpened_first, amount, temperature=0.0) for amount in COOL_SHARPNESS},
}
"""What is measured without training."""
UNTRAINED = tuple(name for name in BASELINES if name.startswith(("sharpened", "cool")))
"""What a method has to beat: the base on a sharpened input, at its own temperature, and at 0."""


def recipe_of(method: str, seed: int, rounds: int | None) -> Recipe:
    """Return the method's recipe, made small."""
    known = METHODS[method]
    changes = SMALL | known.changes | {"seed": seed} | ({} if rounds is None else {"rounds": rounds})
    recipe = find_recipe(known.recipe, **changes)
    metrics = ("fsim", "vif", "psnr_y") if known.hackable else ("fsim", "vif", "psnr_y", "niqe")
    monitor = MonitorConfig(metrics=metrics, every=known.every, crop_px=EVAL_LR_PX,
                            stop=known.hackable and not known.heedless)  # fmt: skip
    algorithm = recipe.algorithm if known.algorithm is None else known.algorithm
    return replace(recipe, name=f"{recipe.name}_{method}", algorithm=algorithm, monitor=monitor,
                   reward=known.reward or recipe.reward)  # fmt: skip
