"""Settings of a run: what all algorithms share, what the monitor measures; with an algorithm and a reward, a recipe."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zoomiqa_reward.rewards.base import Reward

PRECISIONS = ("no", "bf16")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What every algorithm needs to know."""

    seed: int = 0
    rounds: int = 40
    """Draw, score, update: so many times."""
    images_per_round: int = 8
    """LR images of a round, of all processes together."""
    num_samples: int = 8
    """Candidates an LR image (the group)."""
    crop_px: int | None = 32
    """Side of the LR crop that a round takes of an image; None: whole images."""
    steps: int = 8
    """Denoising steps of a candidate."""
    eta: float = 1.0
    """Noise of the sampler: DDIM's eta, or the noise level of a flow's SDE."""
    temperature: float = 1.0
    """Factor of all the sampler's noise. Take that of the pipeline's own calls, or what is scored is not what it will
    make."""
    vary_sharpness: float = 0.0
    """0 to 1: candidates restore the LR image as if it were softer or sharper, by an amount of their seed
    (`hooks.sharpened`); what is learned of them is learned for the image as it is. Candidates then differ in what a
    reward can see, where another noise alone is grain. For nft, dpo and sft, which take images of any sampler."""
    expected_targets: bool = False
    """For nft, dpo and sft on varied candidates: in place of a candidate, learn what the model that drew it expects
    when it sees what the candidate saw, at states that the image as it is leads to (`denoising.expected_target`). A
    candidate's grain, which is learned first otherwise, is not in it. nft's model is the one that draws, that of dpo
    and sft the base."""
    rows_at_once: int = 8
    """Candidates in one pass of the denoiser."""
    truth_weight: float = 0.0
    """Of the denoising loss on the ground truths beside the algorithm's own: it keeps the network at what it was
    trained for, where a reward alone lets grain and grids grow. Needs ground truths."""
    epochs: int = 1
    """How often a round's candidates are gone through."""
    updates_per_round: int = 1
    """Optimizer steps an epoch."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Smaller where runs collapse; 0: gradients are not clipped."""
    lora_rank: int = 32
    lora_alpha: int = 64
    lora_targets: tuple[str, ...] | None = None
    """Endings of the names of the layers that are tuned; None: what the pipeline's denoiser chooses, (): all."""
    ema_decay: float = 0.9
    """Of the weights that are monitored and saved; 0: none."""
    max_failure_rate: float = 0.1
    """Share of candidates without a score above which the run stops."""
    mixed_precision: str = "no"
    """`no` or `bf16`; log-probabilities and losses stay float32."""
    gradient_checkpointing: bool = False
    offload: bool = False
    """The pipeline and the reward take turns on the device."""
    save_every: int = 5
    """Rounds between saved states; a kill loses at most those."""

    def __post_init__(self) -> None:
        counts = ("rounds", "images_per_round", "num_samples", "steps", "rows_at_once", "epochs", "updates_per_round",
                  "lora_rank", "lora_alpha", "save_every")  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.crop_px is not None and self.crop_px < 8:
            raise ValueError(f"crop_px={self.crop_px}: at least 8, or None for whole images")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(
                f"mixed_precision={self.mixed_precision!r}: must be one of {', '.join(PRECISIONS)}; float16 would need "
                "a loss scale, which policy ratios near 1 do not survive"
            )
        for name, bottom in (("seed", 0), ("eta", 0), ("learning_rate", 0), ("max_grad_norm", 0), ("weight_decay", 0),
                             ("truth_weight", 0)):  # fmt: skip
            if getattr(self, name) < bottom:
                raise ValueError(f"{name}={getattr(self, name)}: must be {bottom} or more")
        if not 0 <= self.ema_decay < 1 or not 0 <= self.max_failure_rate <= 1:
            raise ValueError(f"ema_decay={self.ema_decay}, max_failure_rate={self.max_failure_rate}: shares, 0 to 1")
        self._check_candidates()

    def _check_candidates(self) -> None:
        if not 0 < self.temperature <= 1:
            raise ValueError(f"temperature={self.temperature}: must be above 0, at most 1")
        if not 0 <= self.vary_sharpness <= 1:
            raise ValueError(f"vary_sharpness={self.vary_sharpness}: must be 0 to 1")
        if self.expected_targets and not self.vary_sharpness:
            raise ValueError(
                "expected_targets: of candidates that nothing but their noise tells apart the model expects what it "
                "would draw anyway, so nothing would be learned; set vary_sharpness above 0"
            )


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What watches a run for reward hacking."""

    every: int = 5
    """Rounds between looks."""
    num_seeds: int = 2
    """Candidates an image, always the same seeds."""
    crop_px: int | None = 48
    """Side of the LR crop, from the middle; None: whole images."""
    metrics: tuple[str, ...] = ("fsim", "vif", "psnr_y", "niqe")
    """Held-out ones, by their names in `restoration.metrics.registry`; none may be in the reward or in its labels."""
    deviations: float = 4.0
    """Bootstrap deviations between the base model's mean and a limit."""
    max_kl: float = 0.5
    """Limit of the KL measure, which is 0 for the base and so has no spread of its own."""
    stop: bool = True
    """Stop at an alarm and go back to the best weights; False: record it and go on."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.num_seeds < 2:
            raise ValueError(f"every={self.every}, num_seeds={self.num_seeds}: at least 1, and 2 to see any diversity")
        if self.deviations <= 0 or self.max_kl <= 0:
            raise ValueError(f"deviations={self.deviations}, max_kl={self.max_kl}: both must be above 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run but for its images."""

    name: str
    source: str
    """The pipeline: `nano`, a hub id or a folder."""
    algorithm: Any
    """One of `grpo.GRPO`, `nft.NFT`, `dpo.DPO`, `sft.SFT`, `reward_gradient.RewardGradient`, or like them."""
    config: TuneConfig
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    reward: Callable[[Any], Reward]
    """Makes the reward of a `ZoomIQA` model."""
    denoiser_options: dict[str, Any] = field(default_factory=dict)
    """See the pipeline's file in `denoisers/`."""

    def settings(self) -> dict[str, Any]:
        """Return what a run folder is made of, ready for JSON."""
        given = {one.name: getattr(self.algorithm, one.name) for one in fields(self.algorithm) if one.init}
        own = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
        return {
            "recipe": self.name, "source": self.source, "algorithm": {"name": self.algorithm.name, **own},
            "config": asdict(self.config), "monitor": asdict(self.monitor), "denoiser": dict(self.denoiser_options),
        }  # fmt: skip
