"""Candidates of low-quality images, and their scores: drawn in pieces that fit, scored together, by turns."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from restoration.restorer.image_io import drawn_sharpness, sharpened
from restoration.restorer.rng import candidate_seed
from restoration.tuning.config import TuneConfig
from restoration.tuning.context import Tuning
from restoration.tuning.data import Example
from restoration.tuning.denoisers.base import Condition
from restoration.tuning.progress import Mean
from restoration.tuning.sampler.transitions import Trajectory, sample
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward
from zoomiqa_reward.rewards.composite import CompositeReward
from zoomiqa_reward.rewards.normalise import group_keys
from zoomiqa_reward.rewards.restorations import as_worst, ask_restorations, name_empty_sources
from zoomiqa_reward.runs.progress import progress


@dataclass(frozen=True, kw_only=True, eq=False)
class Varied:
    """What varied candidates saw, and where to learn from it: the images that their seeds lead to by themselves."""

    condition: Condition
    """The LR image as each candidate saw it, softer or sharper than it is."""
    x0_as_is: Tensor
    """[rows, ...] x0 that the seeds lead to under the image as it is: states that the sampler comes to."""
    x0: Tensor
    """The same images as `x0_as_is` under `condition`: another x0 where the decoder adds the enlarged LR image."""

    def rows(self, picked: Sequence[int]) -> "Varied":
        """Return those rows, in that order."""
        rows = list(picked)
        return Varied(condition=self.condition.rows(rows), x0_as_is=self.x0_as_is[rows], x0=self.x0[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Some candidates of one LR image, drawn in one pass; re-scoring runs the same rows together again."""

    condition: Condition
    trajectory: Trajectory
    first: int
    """Place of its first candidate in the round."""
    varied: Varied | None = None
    """Where it was asked for (`TuneConfig.expected_targets`)."""

    def places(self) -> list[int]:
        """Return the places of its candidates in the round."""
        return list(range(self.first, self.first + len(self.condition)))


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnCandidates:
    """A round's candidates, image after image."""

    pieces: list[Piece]
    images: list[Tensor]
    """CHW in [0, 1] on the CPU, one per candidate."""
    owners: list[Example]
    """The LR image of each candidate."""
    keys: list[str]
    """The group of each candidate."""
    seeds: list[int]


def draw_candidates(
    tuning: Tuning, examples: Sequence[Example], seeds: Sequence[int], *, keep: bool = False,
    count: int | None = None, vary_sharpness: float = 0.0,
    expected: bool = False,
) -> DrawnCandidates:  # fmt: skip
    """Return `count` candidates (default: the run's) of each image, by the adapter that is active.

    seeds: one per image; candidate k of an image has `candidate_seed(seed, k)`. keep: hold the states of every step.
    vary_sharpness, expected: see `draw_piece`.
    """
    count = tuning.config.num_samples if count is None else count
    numbers = [candidate_seed(seed, k) for seed in seeds for k in range(count)]
    owners = [example for example in examples for _ in range(count)]
    keys = group_keys([example.lq for example in examples], [example.prompt for example in examples])
    pieces, images = [], []
    places: Iterable[int] = range(0, len(numbers), count)
    if len(examples) > 1:  # of a single one the caller tells
        places = progress(places, len(examples), "candidates", shown=tuning.process == 0)
    for index in places:
        for start in range(index, index + count, tuning.config.rows_at_once):
            stop = min(index + count, start + tuning.config.rows_at_once)
            piece = draw_piece(tuning, owners[start], numbers[start:stop], first=start, keep=keep,
                               vary_sharpness=vary_sharpness, expected=expected)  # fmt: skip
            pieces.append(piece)
            with torch.no_grad():
                images += list(eight_bit(tuning.denoiser.decode(piece.trajectory.x0, piece.condition).float()).cpu())
    return DrawnCandidates(pieces=pieces, images=images, owners=owners, seeds=numbers,
                 keys=[key for key in keys for _ in range(count)])  # fmt: skip


def eight_bit(images: Tensor) -> Tensor:
    """Return the images as a PNG would hold them; the gradient passes as if nothing had been rounded.

    Without it a tuned model learns changes that the reward sees and no file can hold.
    """
    return images + ((255 * images.clamp(0, 1)).round() / 255 - images).detach()


def draw_piece(
    tuning: Tuning, example: Example, seeds: Sequence[int], *, first: int = 0, keep: bool = False,
    vary_sharpness: float = 0.0, expected: bool = False,
) -> Piece:  # fmt: skip
    """Return candidates of one image with these seeds, drawn in one pass.

    vary_sharpness: each is the restoration of the image as its seed sees it, softer or sharper, and stands in the
    piece as if the image as it is had led to it. Its steps did not: there are then no states to keep (ValueError).
    expected: also draw what is needed to learn from what they saw (`Piece.varied`).
    """
    if vary_sharpness and keep:
        raise ValueError("vary_sharpness: the steps of such candidates are those of another image; keep=False")
    # Encoding may draw noise of its own, and sampling goes on with the same generators. So each encoding of a
    # candidate has new ones: then its noise is the same under any sharpness.
    generators = generators_of(seeds)
    condition = encode(tuning, example, generators)
    seen, varied = condition, None
    if vary_sharpness:
        after_encoding, generators = generators, generators_of(seeds)
        seen = encode(tuning, example, generators, [drawn_sharpness(seed, vary_sharpness) for seed in seeds])
    drawn = sample(tuning.denoiser, seen, tuning.path, generators, eta=tuning.config.eta, keep=keep)
    if vary_sharpness:
        drawn = replace(drawn, states=(convert_prediction(tuning, drawn.x0, seen, condition),))
    if vary_sharpness and expected:
        x0 = sample(tuning.denoiser, condition, tuning.path, after_encoding, eta=tuning.config.eta).x0
        varied = Varied(condition=seen, x0_as_is=x0, x0=convert_prediction(tuning, x0, condition, seen))
    return Piece(condition=condition, trajectory=drawn, first=first, varied=varied)


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a new generator on the CPU for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def convert_prediction(tuning: Tuning, x0: Tensor, condition: Condition, other: Condition) -> Tensor:
    """Return the x0 that under the other condition means the same images."""
    return tuning.denoiser.encode_target(tuning.denoiser.decode(x0, condition), other).float()


def encode(
    tuning: Tuning, example: Example, generators: Sequence[torch.Generator], sharpness: Sequence[float] | None = None
) -> Condition:
    """Return the condition of one image, one row per generator; of the image so much sharper in each row."""
    rows = len(generators)
    lq = example.lq[None].expand(rows, -1, -1, -1)
    if sharpness is not None:
        lq = torch.stack([sharpened(example.lq, amount) for amount in sharpness])
    with torch.no_grad():
        return tuning.denoiser.encode(lq.to(tuning.device), [example.prompt] * rows, generators)


def refuse_varied(config: TuneConfig, name: str) -> None:
    """Raise ValueError where an algorithm that learns from the sampler's own steps is to vary its input."""
    if config.vary_sharpness:
        raise ValueError(
            f"{name} learns from its own steps on the image as it is: vary_sharpness={config.vary_sharpness} must be "
            "0; nft, dpo and sft can learn from such candidates"
        )


def score(tuning: Tuning, drawn: DrawnCandidates) -> Scores:
    """Return the reward of the candidates, groups whole, with the reward on the device.

    A candidate without content is the worst of its group (`rewards.restorations.as_worst`), not missing. One whose
    source has none either is missing, with a reason that `groups.check_failures` knows.
    """
    low, high = tuning.reward.score_range
    scores = as_worst(score_images(tuning, drawn.images, drawn.owners), drawn.keys, high - low)
    return name_empty_sources(scores, drawn.images, [owner.lq for owner in drawn.owners])


def score_images(tuning: Tuning, images: Sequence[Tensor], owners: Sequence[Example]) -> Scores:
    """Return the reward of images that restore `owners`; one without content is not valid."""
    with tuning.share.scoring():
        return ask_restorations(tuning.reward, list(images), **reward_inputs(tuning, owners))


def reward_inputs(tuning: Tuning, owners: Sequence[Example]) -> dict[str, Any]:
    """Return the keywords that the reward gets. Raises ValueError where it needs a ground truth that is not there."""
    given: dict[str, Any] = {
        "lq": [example.lq for example in owners],
        "prompts": [example.prompt for example in owners],
    }
    if "hr" in tuning.reward.needs:
        for example in owners:
            if example.hr is None:
                raise ValueError(f"reward {tuning.reward.name!r} needs hr, which {example.name} does not have")
        given["hr"] = [example.hr for example in owners]
    return given


def raw_values(scores: Scores) -> list[float]:
    """Return values that mean the same in every call: of a sum of rewards that is normalised in groups, its first
    term's own; NaN where not valid.
    """
    raw = scores.terms[0]["raw"] if scores.terms else scores.value.tolist()
    return [float(v) if ok else math.nan for v, ok in zip(raw, scores.valid.tolist(), strict=True)]


def raw_range(reward: Reward) -> tuple[float, float]:
    """Return the range of what `raw_values` reads of the reward's scores."""
    return reward.terms[0].reward.score_range if isinstance(reward, CompositeReward) else reward.score_range


def score_report(scores: Scores, keys: Sequence[str]) -> dict[str, float]:
    """Return the mean raw score and the mean spread within groups, of finite scores alone; nothing where none is."""
    groups: dict[str, list[float]] = {}
    for key, value in zip(keys, scores.value.tolist(), strict=True):
        if math.isfinite(value):
            groups.setdefault(key, []).append(value)
    spreads = [float(torch.tensor(group).std(correction=0)) for group in groups.values()]
    measured = [value for value in raw_values(scores) if math.isfinite(value)]
    if not spreads or not measured:
        return {}
    return {
        "score": Mean(sum(measured) / len(measured), len(measured)),
        "score_std": Mean(sum(spreads) / len(spreads), len(spreads)),
    }
