"""Reward gradient: the reward's own slope through the last denoising steps and the decoder, to the LoRA weights.

Sources: ReFL (Xu et al. 2023: one step with gradient at a random late time, hinge), DRaFT-K (Clark et al. 2024: the
last K steps), RFSR (denoising and low-frequency losses beside the reward, or the images fall apart:
set `TuneConfig.truth_weight`).
Deviations: RFSR compares wavelet bands of early predictions with the ground truth; here the early prediction, reduced
to the LR image's size, is compared with the LR image, which needs no ground truth. A candidate without content is the
worst of the candidates that are drawn beside it, and gets a slope back to the scene: see `away_from_nothing`.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from restoration.tuning.config import TuneConfig, require_numbers
from restoration.tuning.context import Asked, Collected, LossTerm, Part, Tuning
from restoration.tuning.data import Example, pick_crops
from restoration.tuning.denoisers.base import Condition
from restoration.tuning.lora import POLICY
from restoration.tuning.sampler.rollout import eight_bit, encode, generators_of, refuse_varied, reward_inputs
from restoration.tuning.sampler.transitions import draw, sample, transition
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import is_groupwise
from zoomiqa_reward.rewards.restorations import PREFIX, as_worst, ask_restorations


def hinge(value: Tensor, tau: float) -> Tensor:
    """Return relu(tau - value): nothing is gained above tau.

    >>> hinge(torch.tensor([1.0, 5.0]), 4.0)
    tensor([3., 0.])
    """
    return (tau - value).clamp_min(0)


def away_from_nothing(scores: Scores, images: Tensor, lq: Tensor, tau: float, width: float) -> Tensor:
    """Return [rows] the values with those of candidates without content put in: low, and with a slope to the scene.

    No reward has a slope there, and none would be worth following. The value is the worst of the rows (`as_worst`), or
    below `tau` where all rows are empty. It falls by the step that it lies below the others as the candidate's squared
    distance to the LR image, at that image's size, doubles; so the gradient brings the scene back.

    scores: of the candidates, NaN where empty. images: [rows, 3, height, width] with a graph. lq: [3, height, width].
    width: of the reward's range, or infinite. NaN stays where a value is missing for another reason.
    """
    empty = torch.tensor([(why or "").startswith(PREFIX) for why in scores.errors], device=scores.value.device)
    if not bool(empty.any()):
        return scores.value
    measured = scores.value[scores.valid].detach()
    worst = as_worst(replace(scores, value=scores.value.detach()), ["one"] * len(scores), width)
    least = 0.05 * width if math.isfinite(width) else max(0.05 * abs(tau), 1e-3)
    low = float(worst.value[empty].min()) if len(measured) else tau - least
    step = float(measured.min()) - low if len(measured) else least
    low = min(low, tau - step)  # the hinge has a slope only below tau
    shown = torch.nn.functional.interpolate(images[empty.to(images.device)], size=lq.shape[-2:], mode="bicubic",
                                            antialias=True)  # fmt: skip
    distance = (shown - lq.to(shown.device)).square().flatten(1).mean(dim=1)
    pulled = low - step * (distance / distance.detach().clamp_min(1e-12) - 1)
    return scores.value.index_copy(0, empty.nonzero().flatten(), pulled.to(scores.value))


def _chunks(config: TuneConfig) -> list[int]:
    """Return how many candidates of an image are drawn and scored at once, pass by pass."""
    size = config.rows_at_once
    return [min(size, config.num_samples - start) for start in range(0, config.num_samples, size)]


@dataclass(frozen=True, kw_only=True)
class RewardGradient:
    """Settings."""

    name: ClassVar[str] = "reward_gradient"
    adapters: ClassVar[tuple[str, ...]] = (POLICY,)
    last_share: float = 0.25
    """Of the steps: the gradient starts at a random one among them."""
    grad_steps: int = 1
    """K: steps that the gradient goes through; the image is what the last of them predicts."""
    tau: float | None = None
    """The hinge, in the reward's unit; None: the top of its range."""
    reward_weight: float = 1.0
    low_frequency: float = 1.0
    """Weight of the early prediction's mean squared distance to the LR image at its size."""

    def __post_init__(self) -> None:
        require_numbers(self)
        if not 0 < self.last_share <= 1 or self.grad_steps < 1 or self.reward_weight <= 0:
            raise ValueError(
                f"{self}: last_share must be above 0 and at most 1, grad_steps at least 1, reward_weight above 0"
            )
        if self.low_frequency < 0:
            raise ValueError(f"{self}: low_frequency must be 0 or more")

    def prepare(self, tuning: Tuning) -> None:
        """Raise ValueError for a reward without gradient, or without a top and no tau, or that compares candidates of
        which one is drawn alone.
        """
        reward = tuning.reward
        refuse_varied(tuning.config, self.name)
        if not reward.differentiable:
            raise ValueError(
                f"reward {reward.name!r} is not differentiable, so no gradient can reach the weights; take a "
                "differentiable one (Zoom-IQA in mode 'direct'), or grpo, nft, dpo or sft"
            )
        if self.tau is None and not math.isfinite(reward.score_range[1]):
            raise ValueError(f"reward {reward.name!r} has no largest value: give tau=, the value to aim at")
        if tuning.config.offload:
            raise ValueError("reward_gradient needs the pipeline and the reward side by side: switch offload off")
        if is_groupwise(reward) and min(_chunks(tuning.config)) < 2:
            raise ValueError(
                f"reward {reward.name!r} compares the candidates that are drawn at once, and of num_samples="
                f"{tuning.config.num_samples} by rows_at_once={tuning.config.rows_at_once} one would be alone, without "
                "a gradient; take numbers that leave 2 or more in each pass, or terms that are 'raw'"
            )
        if tuning.config.steps < self.grad_steps:
            raise ValueError(f"grad_steps={self.grad_steps}: there are only {tuning.config.steps} steps")

    def collect(self, tuning: Tuning, number: int) -> Collected:
        """Choose a round's images; they are drawn inside the loss."""
        examples = pick_crops(tuning.examples, tuning.images_here, tuning.config.crop_px, (tuning.seed(1, number),))
        return Collected(
            parts=[
                Part(loss=partial(self._loss, tuning, example, rows), example=example)
                for example in examples
                for rows in _chunks(tuning.config)
            ]
        )

    def after_round(self, tuning: Tuning, updates: int) -> None:
        """The model that draws is the one that is trained."""

    def _loss(self, tuning: Tuning, example: Example, rows: int, generator: torch.Generator) -> LossTerm:
        seeds = torch.randint(2**62, (rows,), generator=generator).tolist()
        generators = generators_of(seeds)
        condition = encode(tuning, example, generators)
        images = self._images(tuning, condition, generators, generator)
        if not bool(images.isfinite().all()):  # their gradient would spoil all weights
            return LossTerm(None, 0, {}, Asked(rows, ["the restoration has pixels that are not finite"] * rows, 0))
        scores = ask_restorations(tuning.reward, list(images), **reward_inputs(tuning, [example] * rows), grad=True)
        bottomless = scores.value.detach() == -math.inf
        if bool(bottomless.any()):
            why = f"{tuning.reward.name} gave -inf, from where no gradient leads back"
            errors = tuple(why if out else error for out, error in zip(bottomless, scores.errors, strict=True))
            scores = replace(scores, valid=scores.valid & ~bottomless, errors=errors)
        bottom, top = tuning.reward.score_range
        tau = top if self.tau is None else self.tau
        values = away_from_nothing(scores, images, example.lq, tau, top - bottom)
        valid = ~values.isnan()
        failures = [scores.reason(k, tuning.reward.name) for k in (~valid).nonzero().flatten().tolist()]
        asked = Asked(rows, failures, int((valid & ~scores.valid).sum()))
        if not bool(valid.any()):
            return LossTerm(None, 0, {}, asked)
        value = values[valid]
        loss = self.reward_weight * hinge(value, tau).mean().to(tuning.device)
        report = {"score": float(value.detach().mean())}
        if self.low_frequency > 0:
            low = self._low_frequency(tuning, condition, generators)
            loss = loss + self.low_frequency * low
            report["low_frequency"] = float(low.detach())
        return LossTerm(loss, int(valid.sum()), report, asked)

    def _images(
        self, tuning: Tuning, condition: Condition, generators: list[torch.Generator], generator: torch.Generator
    ) -> Tensor:
        """Draw without gradient up to a late step, then with it."""
        path, eta = tuning.path, tuning.config.eta
        late = max(1, round(self.last_share * len(path)))
        first = len(path) - late + int(torch.randint(late, (1,), generator=generator))
        first = max(0, min(first, len(path) - self.grad_steps))
        x = sample(tuning.denoiser, condition, path, generators, eta=eta, steps=first).x0
        for index in range(first, first + self.grad_steps):
            output = tuning.denoiser.predict(x, path.times[index], condition)
            noise = draw(x.shape[1:], generators, x.device)
            done = transition(path, index, output, x, eta=eta, noise=noise)
            # The mean carries the gradient; the noise is a constant (the sample that `transition` gives is detached).
            x = done.mean + done.std * noise
        return eight_bit(tuning.denoiser.decode(done.x0, condition))

    def _low_frequency(self, tuning: Tuning, condition: Condition, generators: list[torch.Generator]) -> Tensor:
        """Mean squared distance of an early prediction, reduced, to the LR image."""
        path = tuning.path
        early = len(path) // 4
        x = sample(tuning.denoiser, condition, path, generators, eta=tuning.config.eta, steps=early).x0
        output = tuning.denoiser.predict(x, path.times[early], condition)
        noise = draw(x.shape[1:], generators, x.device)
        image = tuning.denoiser.decode(transition(path, early, output, x, noise=noise).x0, condition)
        size = condition.lq.shape[-2:]
        reduced = torch.nn.functional.interpolate(image, size=size, mode="bicubic", antialias=True)
        return (reduced - condition.lq).square().mean()
