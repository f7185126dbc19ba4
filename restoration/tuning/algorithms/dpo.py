"""Diffusion-DPO on mined pairs: the better candidate is to be denoised better than the worse one, relative to the base.

Sources: Wallace et al. 2024 (Diffusion-DPO; beta 5000 presumes the mean over latent elements), DP2O-SR (Wu et al. 2025:
pairs and weights, lr 2e-5, 500 to 1000 updates), Pang et al. 2024 (the winner's own likelihood beside the comparison).
Winner, loser and both networks see the same time and the same noise. The pairs are mined once, from the base model, and
lie in `pairs.parquet` of the run folder; a file of one's own takes their place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from restoration.restorer.image_io import drawn_sharpness
from restoration.tuning.algorithms.groups import check_failures
from restoration.tuning.algorithms.pairs import PreferencePair, mine_pairs, read_pairs, weigh_pairs, write_pairs
from restoration.tuning.config import TuneConfig, require_numbers
from restoration.tuning.context import Collected, LossTerm, Part, Tuning
from restoration.tuning.data import Example, pick_crops
from restoration.tuning.denoisers.base import Condition
from restoration.tuning.lora import POLICY, reference
from restoration.tuning.sampler.denoising import denoising_errors, expected_target, random_noise
from restoration.tuning.sampler.rollout import (
    Varied,
    convert_prediction,
    draw_candidates,
    draw_piece,
    encode,
    generators_of,
    score,
)
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.model.pairs import pair_probabilities
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import fingerprint_of
from zoomiqa_reward.rewards.normalise import group_keys
from zoomiqa_reward.rewards.restorations import PREFIX
from zoomiqa_reward.runs.progress import progress

MAX_LATENTS = 512
"""Drawn latents that are kept for the next time their pair is chosen."""


def _drawing(config: TuneConfig) -> dict[str, float]:
    """What a seed's image depends on, beside the model."""
    return {key: getattr(config, key) for key in ("steps", "eta", "temperature", "vary_sharpness")}


def dpo_loss(winner: Tensor, loser: Tensor, winner_base: Tensor, loser_base: Tensor, beta: float) -> Tensor:
    """Return [pairs] -log sigmoid(-beta / 2 ((e_w - e_w_base) - (e_l - e_l_base))) of denoising errors [pairs].

    >>> zero = torch.zeros(1)
    >>> dpo_loss(zero, zero, zero, zero, 5000.0)
    tensor([0.6931])
    """
    return -logsigmoid(-beta / 2 * ((winner - winner_base) - (loser - loser_base)))


def probabilities_of(scores: Scores) -> Tensor:
    """Return float64 [candidates, candidates] that the row is better than the column, of the scores of one group.

    As `pair_probabilities`; a candidate without content, the worst of the group by rule, has no distribution and loses
    to each of the others for certain. NaN where one was not measured. Raises ValueError for scores without deviation.
    """
    is_blank = torch.tensor([why is not None and why.startswith(PREFIX) for why in scores.errors])
    is_blank &= scores.valid.cpu()
    is_measured = scores.valid.cpu() & ~is_blank
    alone = replace(scores, valid=is_measured.to(scores.valid.device))
    probabilities = pair_probabilities(alone).cpu()
    probabilities[is_measured[:, None] & is_blank[None]] = 1.0
    probabilities[is_blank[:, None] & is_measured[None]] = 0.0
    return probabilities


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Settings."""

    name: ClassVar[str] = "dpo"
    adapters: ClassVar[tuple[str, ...]] = (POLICY,)
    beta: float = 5000.0
    share: float = 0.25
    """Of an image's candidates: the best and the worst are paired. 1/16 for big models with many candidates."""
    min_probability: float = 0.0
    """Least probability that the winner is better than the loser, from the ratings' distributions
    (`zoomiqa_reward.model.pairs`); pairs below are left out. 0: all pairs. Needs a reward with a standard deviation."""
    pairs_per_image: int = 4
    """Drawn of an image for a round."""
    winner_weight: float = 0.0
    """Of the winner's own denoising error beside the comparison, which says nothing of what both sides share: without
    it both may get worse, as long as the loser does so faster."""
    pairs_file: Path | None = None
    """Pairs that are there already; None: mined from the base model first."""
    _held: dict[str, list[PreferencePair]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _images: dict[str, Example] = field(default_factory=dict, init=False, repr=False, compare=False)
    _latents: dict[tuple[str, int], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The latest of those drawn again, on the CPU: the base model does not change."""

    def __post_init__(self) -> None:
        require_numbers(self)
        if self.beta <= 0 or not 0 < self.share <= 0.5 or self.pairs_per_image < 1 or self.winner_weight < 0:
            raise ValueError(
                f"{self}: beta must be above 0, share above 0 and at most 0.5, pairs_per_image at least 1, "
                "winner_weight at least 0"
            )
        if not 0 <= self.min_probability < 1:
            raise ValueError(f"min_probability={self.min_probability}: must be at least 0 and below 1")

    def prepare(self, tuning: Tuning) -> None:
        """Read the pairs that are there already; `begin` mines others.

        Raises ValueError where there are none, where an image is missing, and for files of another size.
        """
        for kept in (self._held, self._images, self._latents):  # of an earlier run
            kept.clear()
        if self.pairs_file is not None:
            self._take_pairs(tuning)

    def begin(self, tuning: Tuning) -> None:
        """Mine the pairs, or read those that the run has mined."""
        if not self._held:
            self._take_pairs(tuning)

    def _take_pairs(self, tuning: Tuning) -> None:
        """Mine the pairs unless they are in a file, and read them. Raises ValueError as `prepare` says."""
        crops = pick_crops(tuning.examples, len(tuning.examples), tuning.config.crop_px, (tuning.seed(1),))
        keys = group_keys([item.lq for item in crops], [item.prompt for item in crops])
        file = self.pairs_file
        if file is None:
            file = tuning.folder / f"pairs{f'.{tuning.process}' if tuning.process else ''}.parquet"
            if not file.exists():
                mined = weigh_pairs(self._mine_pairs(tuning, crops))
                write_pairs(file, mined, reward=tuning.reward.name, drawing=_drawing(tuning.config))
        else:
            whole = group_keys([item.lq for item in tuning.examples], [item.prompt for item in tuning.examples])
            crops, keys = [*crops, *tuning.examples], [*keys, *whole]
        self._images.update(zip(keys, crops, strict=True))
        pairs, header = read_pairs(file)
        drawing = header.get("drawing", _drawing(tuning.config))
        if drawing != _drawing(tuning.config) and any(item.file_winner is None for item in pairs):
            raise ValueError(
                f"{file}: its candidates were drawn with {drawing}, and would be drawn again with "
                f"{_drawing(tuning.config)}: take the same settings"
            )
        for item in pairs:
            if item.lr_hash in self._images:
                self._held.setdefault(item.lr_hash, []).append(item)
            elif tuning.num_processes == 1:
                raise ValueError(f"{file}: no training image has the hash {item.lr_hash}; give the images it is of")
        if tuning.config.expected_targets and any(item.file_winner is not None for item in pairs):
            raise ValueError(f"{file}: expected_targets needs candidates drawn from seeds, and these are files")
        self._check_files(file, pairs, tuning.denoiser.scale)
        if not self._held:
            raise ValueError(f"{file}: no pairs: all groups were tied or could not be measured; draw more candidates")

    def _check_files(self, file: Path, pairs: Sequence[PreferencePair], scale: int) -> None:
        """Raise ValueError for a candidate's file that is not as large as what the pipeline makes of its image."""
        files = {(pair.lr_hash, path) for pair in pairs for path in (pair.file_winner, pair.file_loser) if path}
        for key, path in sorted(files):
            if (example := self._images.get(key)) is None:
                continue
            wanted = [scale * side for side in example.lq.shape[1:]]
            if (shape := list(load_image(path).shape[1:])) != wanted:
                raise ValueError(
                    f"{file}: {path} has {shape[1]} x {shape[0]} px, and the pipeline makes {wanted[1]} x {wanted[0]} "
                    f"of its image, {scale} times as large; give pairs of a restorer with that scale"
                )

    def collect(self, tuning: Tuning, number: int) -> Collected:
        """Choose a round's pairs and make their latents again from their seeds."""
        rng = np.random.default_rng(tuning.seed(2, number))
        keys = sorted(self._held)
        chosen = rng.choice(len(keys), size=min(tuning.images_here, len(keys)), replace=False)
        parts, count = [], 0
        for key in (keys[int(k)] for k in chosen):
            own_pairs = self._held[key]
            picked = rng.choice(len(own_pairs), size=min(self.pairs_per_image, len(own_pairs)), replace=False)
            pairs = [own_pairs[int(k)] for k in picked]
            count += len(pairs)
            example = self._images[key]
            parts.append(Part(loss=partial(self._loss, tuning, example, pairs), example=example))
        return Collected(parts=parts, report={"pairs": count})

    def after_round(self, tuning: Tuning, updates: int) -> None:
        """The pairs stay those of the base model."""

    def _mine_pairs(self, tuning: Tuning, crops: Sequence[Example]) -> list[PreferencePair]:
        pairs: list[PreferencePair] = []
        with reference(tuning.denoiser.module):
            for index, example in enumerate(progress(crops, len(crops), "pairs", shown=tuning.process == 0)):
                drawn = draw_candidates(tuning, [example], [tuning.seed(4, index)],
                                        vary_sharpness=tuning.config.vary_sharpness)  # fmt: skip
                scores = score(tuning, drawn)
                check_failures(scores, tuning.config.max_failure_rate)
                pairs += mine_pairs(
                    [float(v) if ok else float("nan") for v, ok in zip(scores.value, scores.valid, strict=True)],
                    drawn.seeds, lr_hash=drawn.keys[0], prompt=example.prompt, reward=fingerprint_of(tuning.reward),
                    share=self.share, min_probability=self.min_probability,
                    probabilities=probabilities_of(scores) if self.min_probability > 0 else None,
                )  # fmt: skip
        return pairs

    def _latent(self, tuning: Tuning, example: Example, key: str, seed: int, file: str | None) -> Tensor:
        """One candidate's x0 [1, ...]: encoded from its file, or drawn again, alone, from the base model.

        With expected_targets: what its seed leads to under the image as it is.
        """
        if file is not None:
            generator = torch.Generator().manual_seed(seed)
            condition = encode(tuning, example, [generator])
            with torch.no_grad():
                return tuning.denoiser.encode_target(load_image(file)[None].to(tuning.device), condition)
        latent = self._latents.pop((key, seed), None)
        if latent is None:
            with reference(tuning.denoiser.module):
                vary = 0.0 if tuning.config.expected_targets else tuning.config.vary_sharpness
                latent = draw_piece(tuning, example, [seed], vary_sharpness=vary).trajectory.x0.cpu()
        self._latents[key, seed] = latent  # last used, last dropped
        while len(self._latents) > MAX_LATENTS:
            self._latents.pop(next(iter(self._latents)))
        return latent.to(tuning.device)

    def _varied(
        self, tuning: Tuning, example: Example, pairs: list[PreferencePair], latents: Tensor, plain: Condition,
        noise_seeds: list[int],
    ) -> Varied:  # fmt: skip
        """What winners and then losers saw, told of the winners' own states for both: only the sharpness differs.

        plain: the condition of both under the image as it is. noise_seeds: of the noise in it, one per pair.
        """
        seeds = [pair.seed_winner for pair in pairs] + [pair.seed_loser for pair in pairs]
        amounts = [drawn_sharpness(seed, tuning.config.vary_sharpness) for seed in seeds]
        seen = encode(tuning, example, generators_of([*noise_seeds, *noise_seeds]), amounts)
        latents = torch.cat([latents, latents])
        return Varied(condition=seen, x0_as_is=latents, x0=convert_prediction(tuning, latents, plain, seen))

    def _loss(
        self, tuning: Tuning, example: Example, pairs: list[PreferencePair], generator: torch.Generator
    ) -> LossTerm:
        sides = [
            torch.cat([self._latent(tuning, example, *row) for row in rows])
            for rows in (
                [(pair.lr_hash, pair.seed_winner, pair.file_winner) for pair in pairs],
                [(pair.lr_hash, pair.seed_loser, pair.file_loser) for pair in pairs],
            )
        ]
        rows = len(pairs)
        seeds = torch.randint(2**62, (rows,), generator=generator).tolist()
        condition = encode(tuning, example, generators_of(seeds))
        both = condition.rows([*range(rows), *range(rows)])
        noise = random_noise(sides[0], generator, tuning.config.temperature).repeat(2, *[1] * (sides[0].ndim - 1))
        times, alphas, sigmas = (
            torch.cat([tensor, tensor]) for tensor in tuning.denoiser.schedule.draw(rows, generator)
        )
        levels = times, alphas, sigmas
        x0, wanted = torch.cat(sides), None
        with torch.no_grad(), reference(tuning.denoiser.module):
            if tuning.config.expected_targets:
                varied = self._varied(tuning, example, pairs, sides[0], both, seeds)
                x0, wanted = varied.x0_as_is, expected_target(tuning.denoiser, varied, noise, levels)
            base = denoising_errors(tuning.denoiser, both, x0, noise, levels, wanted)
        now = denoising_errors(tuning.denoiser, both, x0, noise, levels, wanted)
        weights = torch.tensor([pair.weight for pair in pairs], device=now.device)
        loss = weights * dpo_loss(now[:rows], now[rows:], base[:rows], base[rows:], self.beta)
        loss = loss + self.winner_weight * now[:rows]
        gain = (base[:rows] - now[:rows]) - (base[rows:] - now[rows:])
        margin = self.beta / 2 * float(gain.detach().mean())
        report = {"accuracy": float((gain.detach() > 0).float().mean()), "margin": margin}
        return LossTerm(loss.mean(), rows, report)
