"""Judge a restoration together with its clean reference: good only if it looks good **and** shows what is there.

With Q the rating, 1 the bottom of its scale, and F in [0, 1] the similarity to the reference:

    R = 1 + F (Q - 1)

R stays on the scale of the rating. An image equal to its reference keeps its rating; one that shows something else is
rated as bad, however good it looks. By default F is HaarPSI, which already made the labels of embedded models, so
FSIM, VIF, PSNR and SSIM can still judge. The form is this project's.
"""

import math
from collections.abc import Sequence

from restoration.metrics.fidelity import haarpsi
from restoration.metrics.paired_scores import (
    Fidelity,
    PairedReward,
    fidelity_of_pairs,
    joined_errors,
    metric_names,
    where_all_measured,
)
from zoomiqa_reward.images.loading import ImageSources, split_images
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward, ask, fingerprint_of, needed_inputs
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest
from zoomiqa_reward.runs.settings import identity_of


class ReferencedReward(PairedReward):
    """`quality`, weighted by the similarity to the reference. Needs `hr`."""

    def __init__(
        self, quality: Reward, fidelity: Fidelity = haarpsi, *, fidelity_differentiable: bool = False,
        fingerprint: str | None = None,
    ) -> None:  # fmt: skip
        """Create the reward. `quality` needs no reference, and its range has a bottom.

        fidelity: `fn(image, reference)`, clipped to [0, 1]. fidelity_differentiable: whether its tensor keeps the
        graph; HaarPSI's does not. fingerprint: of `fidelity`; by default it covers all that this callable depends on,
        except files. Raises ValueError for a quality without a finite bottom or one that needs a reference.
        """
        self._require_alone(quality, "the form weights an image's own quality")
        low, high = quality.score_range
        if not math.isfinite(low):
            raise ValueError(
                f"quality {quality.name!r} has the range {quality.score_range}: its bottom must be finite, as a rating "
                "of 1..5 has it"
            )
        self.quality, self.fidelity = quality, fidelity
        self.name = f"referenced-{quality.name}"
        self.score_range = (low, high)
        self.needs = quality.needs | {"hr"}
        self.deterministic = quality.deterministic
        self.differentiable = quality.differentiable and fidelity_differentiable
        self._given_fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """Covers the quality and the fidelity."""
        fidelity: object = self._given_fingerprint or self.fidelity
        return state_digest(
            "referenced", fingerprint_of(self.quality), fidelity, *added_by_subclass(self, ReferencedReward)
        )

    @property
    def identity(self) -> dict[str, object]:
        """The identity of the quality, and the metric of fidelity by name, if it is one of the registry."""
        return {"name": self.name, "fidelity": sorted(self.labels), "quality": identity_of(self.quality)}

    @property
    def labels(self) -> frozenset[str]:
        """The metric that measures fidelity: it must not judge this reward."""
        return metric_names(self.fidelity)

    @canonical
    def __call__(
        self, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None, *, grad: bool = False,
    ) -> Scores:  # fmt: skip
        """Return R for each image. Not valid if its rating or its fidelity could not be measured.

        `info`: the lists `fidelity` and `quality`. Raises ValueError without hr, for another size, or for grad=True
        without a gradient.
        """
        sources = split_images(images)
        if grad:
            self._require_gradient()
        references = needed_inputs(self, len(sources), lq=lq, hr=hr, prompts=prompts)["hr"]
        quality = ask(self.quality, sources, prompts=prompts, grad=grad)
        fidelity = fidelity_of_pairs(sources, references, self.fidelity)
        low = self.score_range[0]
        q, f = where_all_measured(quality.value, fidelity.value.to(quality.value.device))
        value = low + f * (q - low)
        info = {"fidelity": fidelity.value.detach().tolist(), "quality": quality.value.detach().tolist()}
        return Scores(
            value=value, valid=~value.detach().isnan() & (value.detach() != -math.inf), std=f.detach() * quality.std,
            errors=joined_errors({"quality": quality, "fidelity": fidelity}, len(sources)), info=info,
        )  # fmt: skip
