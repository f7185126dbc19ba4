"""Judge a restoration together with its low-quality input: good only if it is better **and** faithful.

With Q the quality reward (the 1..5 rating) and F in [0.01, 1] the fidelity of the restoration SR to its input LR:

    R = F Q_LR  +  F^(Q_LR / gamma) (Q_SR - Q_LR)
        base       gain

An unfaithful image loses its base, and its gain counts little; the better the input, the less it counts.
By default F = clip((LR-consistency - 15 dB) / 25 dB, 0.01, 1); any callable may replace it. The form is
that of OARS, with two deviations: Q is on our scale, and F is this one. Its authors report that the gain alone was
hacked (PSNR fell from 22.71 to 21.38) and the whole was not (22.36); `form` switches parts off for such ablations.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from restoration.metrics.fidelity import lr_consistency
from restoration.metrics.paired_scores import (
    Fidelity,
    PairedReward,
    fidelity_of_pairs,
    joined_errors,
    metric_names,
    where_all_measured,
)
from zoomiqa_reward.images.loading import ImageError, ImageSource, ImageSources, split_images
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward, ask, fingerprint_of, needed_inputs
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest
from zoomiqa_reward.rewards.normalise import group_keys
from zoomiqa_reward.runs.settings import identity_of

FORMS = ("whole", "gain", "base", "quality")
GAMMA = 7.0
"""Smaller values make the gain depend more on fidelity if the input is good."""
FIDELITY_FLOOR = 0.01
"""Smallest fidelity: at 0 the gain and its gradient would vanish."""
WORST_DB, RANGE_DB = 15.0, 25.0


def fidelity_from_db(decibels: float) -> float:
    """Return LR-consistency in dB as a fidelity: 0.01 up to 15 dB, 1 from 40 dB, a line between; NaN stays NaN.

    >>> [fidelity_from_db(db) for db in (10, 27.5, 50)]
    [0.01, 0.5, 1.0]
    """
    if math.isnan(decibels):
        return math.nan
    return min(max((decibels - WORST_DB) / RANGE_DB, FIDELITY_FLOOR), 1.0)


class ConditionedReward(PairedReward):
    """`quality`, conditioned on the low-quality image. Needs `lq`.

    form: `whole`; for ablations `gain` or `base` (that part alone), or `quality` (Q_SR without the input).
    """

    def __init__(
        self,
        quality: Reward,
        fidelity: Fidelity | None = None,
        *,
        gamma: float = GAMMA,
        form: str = "whole",
        blur_px: float = 1.0,
        fidelity_differentiable: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        """Create the reward. `quality` is a reward without reference whose values are at least 0, such as a rating.

        fidelity: `fn(image_sr, image_lq)`, float32 CHW in [0, 1], returns F (a float or a tensor of one element),
        clipped to [0.01, 1]; by default from LR-consistency, with both images blurred by `blur_px` input pixels (0 for
        a clean bicubic input). fidelity_differentiable: whether its tensor keeps the graph; the default's does not.
        fingerprint: of `fidelity`; by default it covers everything that this callable depends on, except files.
        Raises ValueError for another form, gamma, or a quality that can be negative or needs a reference.
        """
        if form not in FORMS:
            raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}")
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma={gamma}: must be above 0")
        self._require_alone(quality, "the form takes powers of an image's own quality")
        low, high = quality.score_range
        if low < 0 or not math.isfinite(high):
            raise ValueError(
                f"quality {quality.name!r} has the range {quality.score_range}: the form takes powers of a quality, so "
                "it must be finite and at least 0, as a rating of 1..5 is"
            )
        if fidelity is None and fidelity_differentiable:
            raise ValueError("fidelity_differentiable=True: LR-consistency is a number; pass a fidelity of tensors")
        self.quality, self.fidelity, self.gamma, self.form, self.blur_px = quality, fidelity, gamma, form, blur_px
        self.name = f"conditioned-{form}-{quality.name}"
        self.score_range = {"whole": (low - high, high), "gain": (low - high, high - low),
                            "base": (FIDELITY_FLOOR * low, high), "quality": (low, high)}[form]  # fmt: skip
        self.needs = quality.needs | ({"lq"} if form != "quality" else frozenset())
        self.deterministic = quality.deterministic
        is_faithful_graph = fidelity_differentiable or form == "quality"
        self.differentiable = quality.differentiable and is_faithful_graph
        self._given_fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """Covers the quality, the fidelity, gamma and the form."""
        fidelity: object = self._given_fingerprint or self.fidelity or ("lr_consistency", self.blur_px)
        parts = fingerprint_of(self.quality), fidelity, float(self.gamma), self.form
        return state_digest("conditioned", *parts, *added_by_subclass(self, ConditionedReward))

    @property
    def identity(self) -> dict[str, object]:
        """Form, gamma and blur, and the identity of the quality."""
        return {"name": self.name, "form": self.form, "gamma": float(self.gamma), "blur_px": float(self.blur_px),
                "quality": identity_of(self.quality)}  # fmt: skip

    @property
    def labels(self) -> frozenset[str]:
        """The metric that measures fidelity, if the form uses one: it must not judge this reward."""
        return frozenset() if self.form == "quality" else metric_names(self.fidelity or lr_consistency)

    @canonical
    def __call__(
        self, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None, *, grad: bool = False,
    ) -> Scores:  # fmt: skip
        """Return R for each image. Not valid if a part that the form uses could not be measured.

        `info`: the lists `fidelity`, `quality_lq` and `quality_sr`, NaN if unused. Images of the same
        input share one rating of it. Raises ValueError without lq, or for grad=True without a gradient.
        """
        sources = split_images(images)
        if grad:
            self._require_gradient()
        quality_sr: Scores | None = None
        quality_lq: Scores | None = None
        fidelity: Scores | None = None
        if self.form != "base":
            quality_sr = ask(self.quality, sources, prompts=prompts, grad=grad)
        if self.form != "quality":
            lqs = needed_inputs(self, len(sources), lq=lq, hr=hr, prompts=prompts)["lq"]
            quality_lq = self._rate_sources(lqs, prompts)
            measure = self.fidelity or partial(_default_fidelity, blur_px=self.blur_px)
            fidelity = fidelity_of_pairs(sources, lqs, measure, FIDELITY_FLOOR)
        parts = {"quality": quality_sr, "quality of lq": quality_lq, "fidelity": fidelity}
        used = {name: scores for name, scores in parts.items() if scores is not None}
        home = next(iter(used.values())).value.device
        values = {name: scores.value.to(home) for name, scores in used.items()}
        unused = torch.full((len(sources),), math.nan, device=home)
        measured = dict(zip(values, where_all_measured(*values.values()), strict=True))
        q_sr, q_lq, f = (measured.get(name, unused) for name in parts)
        gain = f ** (q_lq / self.gamma) * (q_sr - q_lq)
        value = {"whole": f * q_lq + gain, "gain": gain, "base": f * q_lq, "quality": q_sr}[self.form]
        valid = torch.isfinite(value.detach())
        listed = [values.get(name, unused).detach().tolist() for name in parts]
        info = dict(zip(("quality_sr", "quality_lq", "fidelity"), listed, strict=True))
        return Scores(value=value, valid=valid, std=torch.full_like(value.detach(), math.nan),
                      errors=joined_errors(used, len(sources)), info=info)  # fmt: skip

    def _rate_sources(self, lqs: list[ImageSource], prompts: Sequence[str] | None) -> Scores:
        """Rate each different (source, prompt) once; one that cannot be read has a row of its own, without a value."""
        texts = [""] * len(lqs) if prompts is None else prompts
        keys = [_key(position, *pair) for position, pair in enumerate(zip(lqs, texts, strict=True))]
        first = {key: position for position, key in reversed(list(enumerate(keys)))}
        asked = sorted(first.values())
        row = {keys[position]: index for index, position in enumerate(asked)}
        given = None if prompts is None else [prompts[position] for position in asked]
        scores = ask(self.quality, [lqs[position] for position in asked], prompts=given)
        rows = torch.tensor([row[key] for key in keys], dtype=torch.long, device=scores.value.device)
        return Scores(value=scores.value[rows], valid=scores.valid[rows], std=scores.std[rows],
                      errors=tuple(scores.errors[index] for index in rows.tolist()))  # fmt: skip


def _key(position: int, lq: ImageSource, text: str) -> str:
    """Return a text that is equal where source and prompt are."""
    try:
        return group_keys([lq], [text])[0]
    except ImageError:
        return f"unreadable {position}"


def _default_fidelity(image_sr: Tensor, image_lq: Tensor, blur_px: float = 1.0) -> float:
    return fidelity_from_db(lr_consistency(image_sr, image_lq, blur_px=blur_px))
