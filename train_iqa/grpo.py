"""GRPO on two-round trajectories: `python -m train_iqa.grpo CONFIG.yaml` or `--recipe NAME --data koniq=DIR`.

A step: draw images (Progressive Re-sampling), sample K trajectories each with real crops, reward them, give each
trajectory's advantage to its rows, choose the tokens that are held to the reference policy (KL-Coverage), update.
Everything random comes from (seed, step, image), so a resumed run goes on with the same curve, and the number of
processes changes only rounding.

The paper leaves open the score and rank rewards, the re-sampling schedule and the defaults of KL-Coverage. They are our
choices, and options of the configuration; each file of `train_iqa/rl` says which.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from train_iqa.data import DatasetSource, IqaDataset, LabelledImage, load_datasets, select
from train_iqa.rl.config import GrpoConfig
from train_iqa.rl.coverage import clip_cov_mask, covariance, coverage_mask, quadrant_counts
from train_iqa.rl.generation import Generation, make_generation, page_groups
from train_iqa.rl.objective import (
    AdapterOff,
    FrozenCopy,
    clipped_loss,
    k3,
    mean_over_processes,
    mismatch_weight,
    old_policy_penalty,
    rows_loss,
    token_values,
    trajectory_statistics,
)
from train_iqa.rl.page import write_page
from train_iqa.rl.resampling import draw_images
from train_iqa.rl.rewards import all_rewards, format_reward
from train_iqa.rl.rollout import roll_out
from train_iqa.rl.vllm_rollout import VllmConfig, VllmSampler
from train_iqa.rows.completions import TrainingRow, answer_logprobs, collate_completions, micro_batches
from train_iqa.rows.shared_prompts import can_share, collate_shared, shared_batches
from train_iqa.rows.turn_rows import plan_rows
from train_iqa.training.config import run_trainer
from train_iqa.training.learner import (
    gather_rows,
    load_base,
    make_accelerator,
    make_learner,
    optimizer_step,
    pad_parts,
    seed_of,
    total_of,
)
from train_iqa.training.policy import answering, save_policy
from train_iqa.training.run_state import MetricLog, RunState, open_run, require_readable_images
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.model.generate import Sampling, suppressed_tokens
from zoomiqa_reward.runs.digest import digest, listing_digest

PAGE_GROUPS = 4
"""Images on a page of trajectories."""


class Trainer:
    """The state of one run on one process; `train` is the way in."""

    def __init__(self, config: GrpoConfig, parts: Sequence[Sequence[LabelledImage]], accelerator: Accelerator) -> None:
        self.config, self.parts, self.accelerator = config, parts, accelerator
        self.checkpoint = load_base(config.model, accelerator, config.tuning)
        self.suppressed = suppressed_tokens(self.checkpoint)
        self.shares = can_share(self.checkpoint)
        self.engine: VllmSampler | None = None
        if config.sampler == "vllm":  # first, since it claims its share of the memory
            self.engine = VllmSampler(self.checkpoint, config.vllm or VllmConfig(), accelerator)
        self.reference: AdapterOff | FrozenCopy | None = None
        if config.kl.needs_initial and not config.tuning.is_lora:
            dtype = getattr(torch, config.reference_dtype)
            self.reference = FrozenCopy(accelerator, self.checkpoint.model, dtype, offload=config.reference_offload)
        self.model, self.optimizer = make_learner(
            self.checkpoint, accelerator, config.tuning, weight_decay=config.weight_decay, seed=config.seed
        )
        if config.kl.needs_initial and config.tuning.is_lora:
            self.reference = AdapterOff(accelerator, self.model)
        self.cohorts = plan_rows([1] * len(parts), [len(part) for part in parts], config.steps, config.seed)[:, 0]

    def draw(self, step: int) -> list[LabelledImage]:
        """Return the step's images, all of one data set, the same on every process."""
        part = self.parts[int(self.cohorts[step])]
        rng, progress = np.random.default_rng([self.config.seed, 11, step]), step / max(1, self.config.steps - 1)
        mos = [image.mos for image in part]
        return [part[k] for k in draw_images(mos, self.config.images_per_step, self.config.resampling, progress, rng)]

    def generate(self, step: int) -> Generation:
        """Return this process's trajectories with rewards and advantages; rank rewards see all processes' images."""
        config, drawn = self.config, self.draw(step)
        share = len(drawn) // self.accelerator.num_processes
        first = self.accelerator.process_index * share
        images = drawn[first : first + share]
        pixels, groups = [load_image(image.path) for image in images], []
        with answering(self.checkpoint, self.accelerator, self.model) as checkpoint:
            if self.engine is not None:
                self.engine.load(checkpoint.model)
            for start in range(0, share, config.images_per_rollout):
                sampling = Sampling(
                    temperature=config.temperature, top_p=1.0, top_k=0, max_new_tokens=config.max_new_tokens,
                    seed=seed_of(config.seed, step, first + start),
                )  # fmt: skip
                some = pixels[start : start + config.images_per_rollout]
                groups += roll_out(
                    checkpoint, some, num_samples=config.num_samples, sampling=sampling, draw=self.engine
                )
        protocol = self.checkpoint.protocol
        ratings = torch.tensor([[trajectory.assessment.rating for trajectory in group] for group in groups])
        forms = torch.tensor(
            [[format_reward(protocol, trajectory.assessment) for trajectory in group] for group in groups]
        )
        everyone, index = gather_rows(self.accelerator, torch.stack([ratings, forms], dim=1))
        mos = torch.tensor([image.mos for image in drawn])
        results = all_rewards(everyone[:, 0], everyone[:, 1], mos, config.rewards)
        rewards = {name: values[index : index + share] for name, values in results.items()}
        return make_generation(images, pixels, groups, rewards, count_tokens=config.count_tokens)

    def _batches(self, rows: Sequence[TrainingRow]) -> tuple[list[list[int]], int]:
        size = self.config.micro_rows
        return pad_parts(
            shared_batches(rows, size) if self.shares else micro_batches([row.length for row in rows], size)
        )

    def _logprobs(self, model: Any, rows: Sequence[TrainingRow], *, entropy: bool = False) -> tuple[Any, Any, Any]:
        batch = (collate_shared if self.shares else collate_completions)(self.checkpoint, rows)
        temperature = self.config.temperature
        logprobs, spread = answer_logprobs(
            model, batch, temperature=temperature, suppressed=self.suppressed, entropy=entropy
        )
        return batch, logprobs, spread

    @torch.no_grad()
    def logprobs_and_entropies(self, model: Any, rows: Sequence[TrainingRow]) -> tuple[list[Tensor], list[Tensor]]:
        """Return each row's log-probabilities and entropies [tokens] under `model`, on the CPU."""
        priced: list[Tensor] = [torch.empty(0)] * len(rows)
        spreads = list(priced)
        for group in self._batches(rows)[0]:
            batch, logprobs, spread = self._logprobs(model, [rows[k] for k in group], entropy=True)
            for index, k in enumerate(group):
                priced[k] = logprobs[index][batch.mask[index]].cpu()
                spreads[k] = spread[index][batch.mask[index]].cpu()
        return priced, spreads

    def hold(self, made: Generation, step: int) -> dict[str, float]:
        """Choose the tokens that the KL acts on, over all processes' tokens; price them under the reference."""
        kl, counts = self.config.kl, [len(row) for row in made.old]
        values = torch.cat(made.old)
        advantages = made.row_advantages.repeat_interleave(torch.tensor(counts))
        pairs, index = gather_rows(self.accelerator, torch.stack([values, advantages], dim=1))
        logprobs, advantages = pairs.unbind(dim=1)
        held = torch.full_like(logprobs, kl.kind == "all", dtype=torch.bool)
        if kl.kind == "coverage":
            held = coverage_mask(logprobs, advantages, share=kl.share, quadrant=kl.quadrant)
        dropped = torch.zeros_like(held)
        if kl.clip_cov:
            generator = torch.Generator().manual_seed(seed_of(self.config.seed, step))
            dropped = clip_cov_mask(logprobs, advantages, generator)
        made.held = list(held[index : index + len(values)].split(counts))
        made.dropped = list(dropped[index : index + len(values)].split(counts))
        made.reference = [torch.zeros(count) for count in counts]
        if self.reference is not None:
            asked = [k for k, tokens in enumerate(made.held) if tokens.any()] or [0]
            with self.reference.active() as model:
                priced, _ = self.logprobs_and_entropies(model, [made.rows[k] for k in asked])
            for k, results in zip(asked, priced, strict=True):
                made.reference[k] = results
        distances = [k3(old, ref)[tokens] for old, ref, tokens in zip(made.old, made.reference, made.held, strict=True)]
        held_kl = token_values(distances) if self.reference is not None else []
        return {
            "covariance": float(covariance(logprobs, advantages).mean()),
            "held_tokens": float(held.sum()),
            "tokens": float(len(held)),
            **mean_over_processes({"held_kl": held_kl}),
            **{f"held_{name}": float(n) for name, n in quadrant_counts(logprobs, advantages, held).items()},
        }

    def part_loss(self, made: Generation, group: list[int], total: float, seen: dict[str, float]) -> Tensor:
        """Return one micro-batch's part of the loss; notes the largest |ratio - 1| and the clipped tokens in `seen`."""
        batch, logprobs, _ = self._logprobs(self.model, [made.rows[k] for k in group])
        device, width = logprobs.device, logprobs.shape[1]

        def padded(rows: list[Tensor]) -> Tensor:
            out = torch.zeros(len(group), width, dtype=rows[0].dtype)
            for index, k in enumerate(group):
                out[index, : len(rows[k])] = rows[k]
            return out.to(device)

        old, held, kl = padded(made.old), padded(made.held), self.config.kl
        losses = clipped_loss(logprobs, old, made.row_advantages[group].to(device)[:, None], self.config.clip)
        losses = losses * mismatch_weight(old, padded(made.sampled), self.config.mismatch_cap) * ~padded(made.dropped)
        if kl.kind != "none" and kl.beta > 0:
            distance = old_policy_penalty(logprobs, old)
            if kl.reference == "initial":
                # where: an unheld token's reference is a placeholder, and its exponential may overflow
                distance = k3(logprobs, torch.where(held, padded(made.reference), logprobs.detach()))
            losses = losses + kl.beta * held * distance
        apart = ((logprobs.detach() - old).exp() - 1).abs() * batch.mask
        seen["ratio_off"] = max(seen["ratio_off"], float(apart.max()))
        seen["clipped"] += float((apart > self.config.clip).sum())
        return rows_loss(losses, batch.mask, made.row_weights[group].to(device)) / total

    def update(self, made: Generation, learning_rate: float) -> dict[str, float]:
        """Take the optimizer steps on a generation batch."""
        total = total_of(float(made.row_weights.sum()))
        groups, real = self._batches(made.rows)
        loss = norm = 0.0
        seen = {"ratio_off": 0.0, "clipped": 0.0}
        for _ in range(self.config.updates):
            parts = [
                lambda group=group, factor=float(k < real), noted=seen if k < real else dict(seen): (
                    factor * self.part_loss(made, group, total, noted)  # what a filler notes is thrown away
                )
                for k, group in enumerate(groups)
            ]
            seen["ratio_off"] = seen["clipped"] = 0.0
            loss, norm = optimizer_step(
                self.accelerator, self.model, self.optimizer, parts, learning_rate=learning_rate,
                max_norm=self.config.max_grad_norm,
            )  # fmt: skip
        return {
            "loss": total_of(loss), "grad_norm": norm, "learning_rate": learning_rate,
            "ratio_off": max(gather_object([seen["ratio_off"]])),
            "clipped": total_of(seen["clipped"]),
        }  # fmt: skip

    def step(self, step: int) -> tuple[Generation, dict[str, float]]:
        """Do one step; return what was generated and the metrics."""
        began = time.monotonic()
        made = self.generate(step)
        generated = time.monotonic()
        made.old, entropies = self.logprobs_and_entropies(self.model, made.rows)
        held = self.hold(made, step)
        rate = self.config.learning_rate * min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        updated = self.update(made, rate)
        differences = [(old - sampled).abs() for old, sampled in zip(made.old, made.sampled, strict=True)]
        local = {
            **{f"reward_{name}": values.flatten().tolist() for name, values in made.rewards.items()},
            "reward_std": made.rewards["total"].std(dim=1).tolist(),
            "entropy": token_values(entropies),
            "mismatch": token_values(differences),
            **trajectory_statistics(made.groups),
            "mos": [image.mos for image in made.images],
        }
        alpha = self.config.resampling.alpha(step / max(1, self.config.steps - 1))
        ended = time.monotonic()
        return made, {
            **mean_over_processes(local), **held, **updated, "alpha": alpha,
            "generate_s": generated - began, "train_s": ended - generated,
            "tokens_per_s": held["tokens"] / (ended - began),
        }  # fmt: skip

    def page(self, made: Generation, step: int) -> None:
        """Write a page of this process's first trajectories."""
        file = self.config.out / "pages" / f"{step + 1:06d}.html"
        write_page(file, f"step {step + 1}", page_groups(made, PAGE_GROUPS), self.checkpoint.protocol)


def train(config: GrpoConfig, datasets: Sequence[IqaDataset] | None = None) -> Path:
    """Run what is missing of the training and return the folder of what was learned.

    `datasets`: already loaded ones, instead of `config.data`. Every image is decoded once before a new run starts.
    Raises DatasetProblems, ValueError for a run folder of another configuration and for counts that do not fit,
    FloatingPointError for a gradient that is not finite.
    """
    if datasets is None:
        if not config.data:
            raise ValueError("no data: give at least one labelled data set, such as koniq=DIR")
        datasets = load_datasets(config.data, checks="paths")
    accelerator = make_accelerator(config.model)
    world = accelerator.num_processes
    if config.images_per_step % world or (config.images_per_step // world) % config.images_per_rollout:
        raise ValueError(
            f"images_per_step={config.images_per_step} must be a multiple of processes x images_per_rollout = "
            f"{world} x {config.images_per_rollout}"
        )
    parts = [select(dataset, config.part) for dataset in datasets]
    _require_enough(config, parts)
    require_readable_images([image.path for images in parts for image in images], config.out, accelerator)
    drawn_from = digest("\n".join(f"{image.dataset}\t{image.id}" for images in parts for image in images))
    files = listing_digest(image.path for dataset in datasets for image in dataset.images)
    contents = [*(dataset.digest for dataset in datasets), files, drawn_from]
    with open_run(config, config.out, accelerator, contents):
        trainer = Trainer(config, parts, accelerator)
        state = RunState(config.out, accelerator, trainer.model, trainer.optimizer)
        start, is_main = state.load(), accelerator.is_main_process
        with MetricLog(config.out, resumed_at=start, is_main=is_main, tensorboard=config.tensorboard) as log:
            for step in range(start, config.steps):
                made, values = trainer.step(step)
                log.write(step + 1, values)
                if config.page_every and is_main and (step % config.page_every == 0 or step + 1 == config.steps):
                    trainer.page(made, step)
                if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                    state.save(step + 1)
        save_policy(trainer.checkpoint, accelerator, trainer.model, config.tuning, config.out / "policy")
    return config.out / "policy"


def _require_enough(config: GrpoConfig, parts: Sequence[Sequence[LabelledImage]]) -> None:
    """Raise ValueError for a data set with fewer images than a step draws, in whatever step its turn comes."""
    for images in parts:
        if len(images) < config.images_per_step:
            raise ValueError(
                f"{images[0].dataset}: part {config.part!r} holds {len(images)} images, and a step draws "
                f"images_per_step={config.images_per_step} different ones of one data set; lower it (below 8 with "
                f"rewards.rank 0), or leave the data set out"
            )


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    return run_trainer(
        argv, name="grpo", description=__doc__, kind=GrpoConfig, train=train, read_data=_source,
        data_help="FAMILY=PATH, such as koniq=DIR or csv=FILE",
    )  # fmt: skip


def _source(text: str) -> DatasetSource:
    family, equals, root = text.partition("=")
    if not equals:
        raise ValueError(f"--data {text!r}: must be FAMILY=PATH, such as koniq=DIR or csv=FILE")
    return DatasetSource(family=family, root=Path(root))


if __name__ == "__main__":
    sys.exit(main())
