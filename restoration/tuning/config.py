"""Settings of a run: `TuneConfig` for all algorithms, `MonitorConfig`, and `Recipe` with algorithm and reward."""

import math
import numbers
import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from restoration.restorer.rng import SEED_END
from zoomiqa_reward.rewards.base import Reward

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PRECISIONS = ("no", "bf16")
TRUTH_STATES = ("noisy", "sampled")


def require_numbers(settings: "DataclassInstance") -> None:
    """Make numbers of another library Python's own in a dataclass of settings, for its `__post_init__`.

    Raises ValueError that names the field of what is no number, no whole one where one is needed, or not finite: it
    would pass every comparison with a bound.
    """
    for item in fields(settings):
        kind, value = str(getattr(item.type, "__name__", item.type)), getattr(settings, item.name)
        is_whole = kind.startswith("int")
        if not (is_whole or kind.startswith("float")) or (value is None and kind.endswith("None")):
            continue
        number: float
        if is_whole and isinstance(value, SupportsIndex) and not isinstance(value, bool):
            number = operator.index(value)
        elif not is_whole and isinstance(value, numbers.Real) and not isinstance(value, bool):
            number = float(value)
        else:
            raise ValueError(f"{item.name}={value!r}: must be a {'whole ' if is_whole else ''}number")
        if not math.isfinite(number):
            raise ValueError(f"{item.name}={number}: must be finite")
        object.__setattr__(settings, item.name, number)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Settings that all algorithms share."""

    seed: int = 0
    rounds: int = 40
    """Number of rounds; a round draws, scores and updates."""
    images_per_round: int = 8
    """Low-quality images per round, of all processes together."""
    num_samples: int = 8
    """Candidates per low-quality image (the group)."""
    crop_px: int | None = 32
    """Side of the crop of each low-quality image; None: whole images."""
    steps: int = 8
    """Denoising steps per candidate."""
    eta: float = 1.0
    """Noise of the sampler: DDIM's eta, or the noise level of a flow's SDE."""
    temperature: float = 1.0
    """Factor of all noise of the sampler. Use the value of the pipeline's own calls; otherwise the scored images differ
    from those that the pipeline will make."""
    vary_sharpness: float = 0.0
    """0 to 1: candidates see a softer or sharper input, by an amount from their seed (`image_io.sharpened`), and
    count as restorations of the original input. They then differ in something that a reward can see; another seed
    alone changes only grain. For nft, dpo and sft, which accept images from any sampler."""
    expected_targets: bool = False
    """For nft, dpo and sft on varied candidates: regress to the model's *mean prediction*, given the input that the
    candidate saw, instead of to the sampled image (`denoising.expected_target`). This removes sampling noise, which
    training would otherwise fit first. NFT uses the current sampling model; DPO and SFT use the base model."""
    rows_at_once: int = 8
    """Candidates per pass of the denoiser."""
    truth_weight: float = 0.0
    """Weight of the denoising loss on the ground truths, added to the loss of the algorithm. It keeps the network at
    its original task; with a reward alone grain and grids grow. Needs ground truths."""
    truth_states: str = "noisy"
    """Where the network is told the ground truth: at `noisy` truths, as in its first training, or at states `sampled`
    from the model as it stands, with this run's steps and temperature. There it learns what is wrong in its own
    restorations, which hold grain that no noisy truth has."""
    truth_sharpness: float = 0.0
    """0 to 1: the ground truths that the network is told are sharpened by so much (unsharp masking). A squared error
    teaches the mean of what is possible, which is soft; sharper truths make up for it. Real-ESRGAN (Wang et al. 2021)
    learns from sharpened truths too."""
    epochs: int = 1
    """How often the candidates of a round are used."""
    updates_per_round: int = 1
    """Optimizer steps per epoch."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Clipping of the gradient norm; lower it if runs collapse. 0: no clipping."""
    lora_rank: int = 32
    lora_alpha: int = 64
    lora_targets: tuple[str, ...] | None = None
    """Name endings of the tuned layers; None: the choice of the pipeline's denoiser; (): all."""
    ema_decay: float = 0.9
    """Decay of the average of the weights, which is monitored and saved; 0: no average."""
    max_failure_rate: float = 0.1
    """Largest share of candidates without a score; above it the run stops."""
    mixed_precision: str = "no"
    """`no` or `bf16`; log-probabilities and losses stay float32."""
    gradient_checkpointing: bool = False
    offload: bool = False
    """The pipeline and the reward take turns on the device."""
    save_every: int = 5
    """Rounds between saved states: the most that a kill loses."""

    def __post_init__(self) -> None:
        require_numbers(self)
        counts = ("rounds", "images_per_round", "num_samples", "steps", "rows_at_once", "epochs", "updates_per_round",
                  "lora_rank", "lora_alpha", "save_every")  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.crop_px is not None and self.crop_px < 8:
            raise ValueError(f"crop_px={self.crop_px}: must be at least 8, or None for whole images")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(
                f"mixed_precision={self.mixed_precision!r}: must be one of {', '.join(PRECISIONS)}; float16 would need "
                "a loss scale, which is too coarse for policy ratios near 1"
            )
        if self.truth_states not in TRUTH_STATES:
            raise ValueError(f"truth_states={self.truth_states!r}: must be one of {', '.join(TRUTH_STATES)}")
        for name, bottom in (("seed", 0), ("eta", 0), ("learning_rate", 0), ("max_grad_norm", 0), ("weight_decay", 0),
                             ("truth_weight", 0)):  # fmt: skip
            if getattr(self, name) < bottom:
                raise ValueError(f"{name}={getattr(self, name)}: must be {bottom} or more")
        if self.seed >= SEED_END:
            raise ValueError(f"seed={self.seed}: must be below 2^64")
        if not 0 <= self.ema_decay < 1 or not 0 <= self.max_failure_rate <= 1:
            raise ValueError(
                f"ema_decay={self.ema_decay}, max_failure_rate={self.max_failure_rate}: both must be 0 to 1"
            )
        self._check_candidates()

    def _check_candidates(self) -> None:
        if not 0 < self.temperature <= 1:
            raise ValueError(f"temperature={self.temperature}: must be above 0, at most 1")
        if not 0 <= self.vary_sharpness <= 1:
            raise ValueError(f"vary_sharpness={self.vary_sharpness}: must be 0 to 1")
        if not 0 <= self.truth_sharpness <= 1:
            raise ValueError(f"truth_sharpness={self.truth_sharpness}: must be 0 to 1")
        if self.expected_targets and not self.vary_sharpness:
            raise ValueError(
                "expected_targets: candidates that differ only in noise have one mean prediction, the model's own "
                "already, so nothing would be learned; set vary_sharpness above 0"
            )


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Settings of the monitor, which watches a run for reward hacking."""

    every: int = 5
    """Rounds between looks."""
    num_seeds: int = 2
    """Candidates per image, always with the same seeds."""
    crop_px: int | None = 48
    """Side of the middle crop of each low-quality image; None: whole images."""
    metrics: tuple[str, ...] = ("fsim", "vif", "psnr_y", "niqe")
    """Held-out metrics of `restoration.metrics.registry`. None of them may be in the reward or in its labels."""
    deviations: float = 4.0
    """Distance of a limit from the base model's mean, in bootstrap standard deviations."""
    max_kl: float = 0.5
    """Limit of the KL measure, which is 0 for the base and so has no standard deviation."""
    stop: bool = True
    """Stop at an alarm and return to the best weights; False: record the alarm and continue."""

    def __post_init__(self) -> None:
        require_numbers(self)
        if self.every < 1 or self.num_seeds < 2:
            raise ValueError(
                f"every={self.every}, num_seeds={self.num_seeds}: every must be at least 1, num_seeds at least 2"
            )
        if self.crop_px is not None and self.crop_px < 8:
            raise ValueError(f"crop_px={self.crop_px}: must be at least 8, or None for whole images")
        if self.deviations <= 0 or self.max_kl <= 0:
            raise ValueError(f"deviations={self.deviations}, max_kl={self.max_kl}: both must be above 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a run except its images."""

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
        """Return the settings of a run folder, ready for JSON."""
        given = {item.name: getattr(self.algorithm, item.name) for item in fields(self.algorithm) if item.init}
        values = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
        return {
            "recipe": self.name, "source": self.source, "algorithm": {"name": self.algorithm.name, **values},
            "config": asdict(self.config), "monitor": asdict(self.monitor), "denoiser": dict(self.denoiser_options),
        }  # fmt: skip
