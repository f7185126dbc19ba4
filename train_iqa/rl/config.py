"""What a run of RL is made of: its configuration, checked when it is built."""

from dataclasses import dataclass, field
from pathlib import Path

from train_iqa.data import DatasetSource
from train_iqa.rl.coverage import KlConfig
from train_iqa.rl.resampling import ResamplingConfig
from train_iqa.rl.rewards import RewardConfig
from train_iqa.rl.vllm_rollout import VllmConfig
from train_iqa.training.learner import DTYPES, ModelConfig
from train_iqa.training.policy import TuningConfig

SAMPLERS = ("transformers", "vllm")
LEAST = {
    "steps": 1, "images_per_step": 1, "images_per_rollout": 1, "micro_rows": 1, "updates": 1, "save_every": 1,
    "max_new_tokens": 1, "page_every": 0,
}  # fmt: skip
"""Counts of `GrpoConfig` and their smallest values."""


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """One run of RL."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    kl: KlConfig = field(default_factory=KlConfig)
    resampling: ResamplingConfig = field(default_factory=ResamplingConfig)
    data: tuple[DatasetSource, ...] = ()
    part: str = "training"
    """Of each data set, the same for every `seed`; validation images choose, test images never."""
    out: Path = Path("runs/grpo")
    """Run folder; continued if it exists. What was learned is in its `policy`."""
    seed: int = 0
    steps: int = 1000
    images_per_step: int = 8
    """Over all processes, all of one data set: the cohort of the rank reward."""
    images_per_rollout: int = 1
    """Whose first rounds are written in one batch on one process."""
    num_samples: int = 8
    """Trajectories of one image: the group."""
    max_new_tokens: int = 1024
    """Of one round."""
    temperature: float = 1.0
    sampler: str = "transformers"
    """What writes the answers: `transformers` or `vllm`."""
    vllm: VllmConfig | None = None
    """Options of the sampler `vllm`; None: its defaults."""
    micro_rows: int = 2
    """Rows of one forward pass of the trainer. First rounds of one image share their prompt within it, so `num_samples`
    of them cost least."""
    updates: int = 1
    """Optimizer steps on one generation batch; each uses all of it."""
    learning_rate: float = 1e-6
    """Constant after `warmup_steps`."""
    warmup_steps: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """0: gradients are not clipped."""
    clip: float = 0.2
    """The ratio's room on either side of 1."""
    mismatch_cap: float = 2.0
    """Highest weight of a token for which sampler and trainer disagree."""
    count_tokens: bool = False
    """False: every trajectory counts once, as the mean of its rows' means. True: every token does (ablation)."""
    reference_dtype: str = "bfloat16"
    """Of the frozen copy that full tuning keeps."""
    reference_offload: bool = False
    """Keep that copy in main memory while it is not asked."""
    save_every: int = 10
    page_every: int = 20
    """Steps between pages of trajectories; 0: none."""
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ValueError(f"num_samples={self.num_samples}: a group needs at least 2 to have an advantage")
        if self.rewards.rank > 0 and self.images_per_step < 8:
            raise ValueError(
                f"images_per_step={self.images_per_step}: the rank reward compares at least 8 images; raise it or set "
                f"rewards.rank to 0"
            )
        short = [name for name, least in LEAST.items() if getattr(self, name) < least]
        if short:
            raise ValueError(f"{short[0]}={getattr(self, short[0])}: must be at least {LEAST[short[0]]}")
        if self.temperature <= 0 or self.learning_rate <= 0 or not 0 < self.clip < 1 or self.mismatch_cap < 1:
            raise ValueError(
                f"temperature={self.temperature} and learning_rate={self.learning_rate} must be above 0, "
                f"clip={self.clip} in (0, 1), mismatch_cap={self.mismatch_cap} at least 1"
            )
        if not self.max_grad_norm >= 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: must be above 0, or 0 for no clipping")
        if self.sampler not in SAMPLERS or (self.vllm is not None and self.sampler != "vllm"):
            raise ValueError(f"sampler {self.sampler!r}: must be one of {', '.join(SAMPLERS)}, and vllm if its options "
                             f"are given")  # fmt: skip
        if self.seed < 0 or self.reference_dtype not in DTYPES:
            raise ValueError(
                f"seed={self.seed} must be 0 or more, reference_dtype={self.reference_dtype!r} one of "
                f"{', '.join(DTYPES)}"
            )
        if self.tuning.lora_dropout:
            raise ValueError(
                f"lora_dropout={self.tuning.lora_dropout}: must be 0 in RL, because with dropout the recomputed "
                "log-probabilities are not those of sampling"
            )
