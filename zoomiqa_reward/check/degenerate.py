"""Images that show nothing, or next to nothing, of their scene: what a policy drifts to if the reward lets it.

Each row starts with the worst honest candidate, the plain enlargement of the low-quality image. Then come images from
which the scene is gone or nearly gone: one colour, darkened, faded, blurred. No reward may like one of them better
than that candidate. Most of them are contentless (`images.content`), and for those a rating means nothing at all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoomiqa_reward.check.ladders import blur

HONEST = "enlarged"
"""How the first image of each row is called."""


@dataclass(frozen=True, kw_only=True)
class Emptying:
    """One way to take the scene out of an image."""

    kind: str
    steps: tuple[tuple[str, Callable[[Tensor], Tensor]], ...]
    """(label, function): [3, height, width] in [0, 1] of the clean image gives the emptied one of the same size."""

    def labels(self) -> tuple[str, ...]:
        """Return how the steps are called, the honest candidate first."""
        return (HONEST, *(label for label, _ in self.steps))


def empty_rows(hr: Tensor, enlarged: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Return by kind the enlarged low-quality image, then the emptied images; all have the size of `hr`."""
    return {way.kind: (enlarged, *(step(hr).clamp(0, 1) for _, step in way.steps)) for way in EMPTYINGS}


def _one_colour(image: Tensor) -> Tensor:
    return image.mean(dim=(1, 2), keepdim=True).expand_as(image).contiguous()


def _darkened(divisor: float) -> Callable[[Tensor], Tensor]:
    return lambda image: image / divisor


def _faded(divisor: float) -> Callable[[Tensor], Tensor]:
    return lambda image: 0.5 + (image - 0.5) / divisor


def _blurred(divisor: float) -> Callable[[Tensor], Tensor]:
    return lambda image: blur(image, min(image.shape[1:]) / divisor)


EMPTYINGS = (
    Emptying(kind="blank", steps=(("black", torch.zeros_like), ("white", torch.ones_like),
                                  ("mean colour", _one_colour))),
    Emptying(kind="dark", steps=(("1/8 as bright", _darkened(8)), ("1/32 as bright", _darkened(32)))),
    Emptying(kind="low contrast", steps=(("1/8 of it", _faded(8)), ("1/32 of it", _faded(32)))),
    Emptying(kind="blurred away", steps=(("sigma 1/16 side", _blurred(16)), ("sigma 1/8 side", _blurred(8)))),
)  # fmt: skip
