"""A reward less the distance from the mean of its group: what few of the restorations of an image show is a guess.

The mean of several samples is the estimate with the least expected squared error. A reward without a reference may love
detail that one restoration alone has invented, or the one that has none at all; both lie far from that mean. Source of
the idea, for translations: Kumar and Byrne, "Minimum Bayes-risk decoding for statistical machine translation", 2004.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zoomiqa_reward.images.loading import ImageSources, load_image, split_images
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward, ask, fingerprint_of, require_reward
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest
from zoomiqa_reward.rewards.normalise import find_groups
from zoomiqa_reward.runs.settings import identity_of

CONSENSUS = 0.065
"""Rating per 8-bit level of distance. Chosen on photographs outside of all tables (docs/notes/selection.md)."""


class ConsensusReward(Reward):
    """The value of a reward less `weight` times the image's distance from the mean of its group.

    The distance is the root mean square over pixels and channels, in 8-bit levels: 0 to 255. The value depends on the
    group, so it has no meaning across groups or calls. Pass whole groups.
    """

    groupwise = True

    def __init__(self, reward: Reward, weight: float = CONSENSUS) -> None:
        """weight: units of the reward per level. The default fits ratings of 1 to 5.

        Raises ValueError for a weight that is not above 0 and finite, NoReward for an object that is no reward.
        """
        require_reward(reward)
        if not 0 < weight < math.inf:
            raise ValueError(f"weight={weight}: must be above 0 and finite; for no consensus use the reward alone")
        self.reward, self.weight = reward, weight
        self.name = f"{reward.name} - {weight:g} x distance"
        self.needs = frozenset(reward.needs | {"lq"})
        self.deterministic = reward.deterministic
        low, high = reward.score_range
        self.score_range = (low - 255 * weight, high)

    @property
    def fingerprint(self) -> str:
        """Covers the reward's fingerprint and the weight."""
        return state_digest(
            "consensus", fingerprint_of(self.reward), float(self.weight), *added_by_subclass(self, ConsensusReward)
        )

    @property
    def identity(self) -> dict[str, object]:
        """Weight, and identity of the reward."""
        return {"name": self.name, "weight": float(self.weight), "reward": identity_of(self.reward)}

    @canonical
    def __call__(
        self, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None, *, groups: Sequence[Hashable] | Tensor | None = None,
    ) -> Scores:  # fmt: skip
        """Return the values; `std` and `answers` are those of the reward.

        groups: one hashable per image, equal for images of one group; by default the pixels of `lq` and the prompt.
        `info["distance"]` holds the distances, and the info of the reward stays. The mean is that of the images that
        the reward could measure. If these differ in size there is none, and all of the group are not valid.
        Raises ValueError if the groups are unknown.
        """
        sources = split_images(images)
        index = find_groups(self.name, len(sources), lq, prompts, groups)
        scores = ask(self.reward, sources, lq=lq, hr=hr, prompts=prompts, groups=index.tolist())
        distance = torch.full((len(sources),), math.nan)
        errors = list(scores.errors) or [None] * len(sources)
        for number in sorted(set(index.tolist())):
            members = [k for k in torch.nonzero(index == number).flatten().tolist() if bool(scores.valid[k])]
            shown = [load_image(sources[k]) for k in members]
            if len(sizes := sorted({tuple(image.shape[:0:-1]) for image in shown})) > 1:
                listed = ", ".join(f"{width} x {height}" for width, height in sizes)
                for k in members:
                    errors[k] = f"its group has images of {listed} px, which have no mean; use the reward alone"
            elif shown:
                distance[members] = distances_from_mean(shown)
        value = scores.value - self.weight * distance.to(scores.value)
        valid = scores.valid & ~distance.isnan().to(scores.valid.device)
        return replace(scores, value=value, valid=valid, errors=tuple(errors),
                       info={**scores.info, "distance": distance.tolist()})  # fmt: skip


def distances_from_mean(images: Sequence[Tensor]) -> Tensor:
    """Return [n], float32 on the CPU: each CHW image's distance from the mean of all, in 8-bit levels.

    images: equally large, in [0, 1]; the distance is the root mean square over pixels and channels.

    >>> white, black = torch.ones(3, 2, 2), torch.zeros(3, 2, 2)
    >>> distances_from_mean([white, black, white]).tolist()
    [85.0, 170.0, 85.0]
    """
    stack = torch.stack([image.detach().cpu().double() for image in images])
    return 255 * (stack - stack.mean(dim=0)).square().mean(dim=(1, 2, 3)).sqrt().float()
