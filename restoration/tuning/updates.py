"""A round's optimizer steps, on the LoRA alone.

The gradients are summed over processes, weighted by the rows of each, because dropped groups leave different numbers of
rows in the processes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from restoration.tuning.algorithms.groups import refuse_failures
from restoration.tuning.context import Asked, Collected, LossTerm, Part, Tuning
from restoration.tuning.lora import EMA, weights_of
from restoration.tuning.progress import all_sum, gather
from restoration.tuning.sampler.denoising import truth_error
from zoomiqa_reward.runs.progress import progress

MAX_TRUTHS = 8
"""Maximum number of noise levels at which one ground-truth image is denoised in a micro-batch (a `Part`, which holds
one image; a step has several)."""


class Updates:
    """Optimizer of a run, and the moving average of its weights."""

    def __init__(self, tuning: Tuning) -> None:
        """Start with the weights as they are."""
        config = tuning.config
        self.tuning = tuning
        self.weights = list(weights_of(tuning.denoiser.module).values())
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.ema = EMA(self.weights, config.ema_decay)
        self._count = 0

    def take(self, collected: Collected, number: int) -> tuple[dict[str, float], int]:
        """Take round `number`'s steps. Return the mean of what the losses reported, weighted by rows and over all
        processes, and how many steps there were: none where nothing was kept of a step's material.

        Raises TooManyFailures where the losses asked for scores, and too many of the round's could not be measured.
        """
        config, sums, rows = self.tuning.config, dict[str, float](), 0.0
        steps, before, asked = [], self._count, list[Asked]()
        for epoch in range(config.epochs):
            order = np.random.default_rng(self.tuning.seed(8, number, epoch)).permutation(len(collected.parts))
            steps += [(epoch, chunk) for chunk in np.array_split(order, config.updates_per_round)]
        for epoch, chunk in progress(steps, len(steps), "updates", shown=self.tuning.process == 0):
            seeds = [self.tuning.seed(9, number, epoch, int(k)) for k in chunk]
            losses = self._update([collected.parts[int(k)] for k in chunk], seeds, number, asked)
            rows += losses.pop("rows")
            sums |= {name: sums.get(name, 0.0) + value for name, value in losses.items()}
        every = gather((sums, rows, asked))
        rows = sum(count for _, count, _ in every)
        asked = [scored for _, _, batch in every for scored in batch]
        names = dict.fromkeys(name for reported, _, _ in every for name in reported)
        sums = {name: sum(reported.get(name, 0.0) for reported, _, _ in every) for name in names}
        means = {name: value / max(1, rows) for name, value in sums.items()}
        if asked:
            reasons = [why for scored in asked for why in scored.failures]
            refuse_failures(reasons, sum(scored.total for scored in asked), config.max_failure_rate)
            means |= {"failed": float(len(reasons)), "empty": float(sum(scored.empty for scored in asked))}
        return means, self._count - before

    def _update(self, parts: Sequence[Part], seeds: Sequence[int], number: int, asked: list[Asked]) -> dict[str, float]:
        """Take one step; return the sums of what the losses reported, times their rows, and the rows.

        asked: what the losses asked for is added to it, also where they measured nothing.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {"rows": 0}
        for part, seed in zip(parts, seeds, strict=True):
            term = self._term(part, torch.Generator().manual_seed(seed))
            if term.asked is not None:
                asked.append(term.asked)
            if term.value is None:
                continue
            if not bool(torch.isfinite(term.value)):
                raise FloatingPointError(f"round {number + 1}: the loss is {float(term.value)}; lower learning_rate")
            (term.value * term.rows).backward()
            for name, value in (term.report | {"loss": float(term.value.detach())}).items():
                sums[name] = sums.get(name, 0.0) + value * term.rows
            sums["rows"] += term.rows
        total = int(all_sum(torch.tensor(sums["rows"], device=self.tuning.device)))
        if total == 0:
            return sums
        for weight in self.weights:
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad = all_sum(gradient) / total
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.tuning.config.max_grad_norm or math.inf)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"round {number + 1}: the gradient is {float(norm)}; lower learning_rate, or find the image for which "
                "the reward has no finite slope"
            )
        sums["gradient_norm"] = float(norm) * sums["rows"]
        self.optimizer.step()
        self.ema.update()
        self._count += 1
        return sums

    def _term(self, part: Part, generator: torch.Generator) -> LossTerm:
        """Return what the part says, with the ground truth's error beside it where that is asked for."""
        term, weight = part.loss(generator), self.tuning.config.truth_weight
        if term.value is None or not weight:
            return term
        error = truth_error(self.tuning, part.example, min(term.rows, MAX_TRUTHS), generator)
        return term._replace(value=term.value + weight * error, report=term.report | {"truth": float(error.detach())})
