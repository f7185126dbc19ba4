"""Average a reward over imperceptibly changed copies of an image: smoother, and harder to exploit.

Following the gradient of a rating, or selecting by it for long, finds invisible patterns with a high rating. A JPEG of
quality 95 or a shift by two pixels destroys such a pattern. A small model's rating of a small image also changes with
such a shift as much as between candidates. So each image is scored as a few copies: shifted by fractions of pixels,
enlarged or reduced by a few per cent, with a little noise, stored as a JPEG.
Source: expectation over transformation (Athalye et al. 2018). The gradient passes only through the JPEG coefficients
that the file keeps.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from zoomiqa_reward.images.filters import jpeg_with_slope
from zoomiqa_reward.images.loading import ImageError, ImageSource, ImageSources, load_image, split_images
from zoomiqa_reward.model.gradients import require_gradient
from zoomiqa_reward.model.numerics import canonical
from zoomiqa_reward.model.ratings import Scores
from zoomiqa_reward.rewards.base import Reward, ask, fingerprint_of, require_pointwise
from zoomiqa_reward.rewards.identity import added_by_subclass, state_digest
from zoomiqa_reward.runs.settings import identity_of

SHIFT_PX = 4.0
"""Largest shift, in both directions."""
ZOOM = (0.98, 1.04)
NOISE = 1 / 255
"""Largest standard deviation of the noise."""
QUALITY = (80, 98)
"""Range of the JPEG quality."""


def unseen_copy(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a copy of an image [3, height, width] in [0, 1] that looks the same, of the same size. Keeps the graph.

    Pixels that a shift uncovers are filled with the mirrored image.
    """
    _, height, width = image.shape
    zoom, noise = rng.uniform(*ZOOM), NOISE * rng.uniform()
    right, down = rng.uniform(-SHIFT_PX, SHIFT_PX, size=2)
    theta = torch.tensor([[1 / zoom, 0, 2 * right / width], [0, 1 / zoom, 2 * down / height]])
    grid = affine_grid(theta[None].to(image), [1, *image.shape], align_corners=False)
    moved = grid_sample(image[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)[0]
    pattern = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32)).to(image)
    before = (moved + noise * pattern).clamp(0, 1)
    return jpeg_with_slope(before, int(rng.integers(*QUALITY, endpoint=True)))


class RobustReward(Reward):
    """The mean of a reward over changed copies of each image. It may need `prompts`, but not `lq` or `hr`."""

    def __init__(self, reward: Reward, copies: int = 4) -> None:
        """Wrap `reward`. The copies of an image follow from its pixels, so other images do not change its value.

        Raises ValueError for less than one copy, for a reward that compares images within groups, and for one that
        compares with `lq` or `hr`, because a shifted copy no longer lies on them.
        """
        if copies < 1:
            raise ValueError(f"copies={copies}: must be at least 1")
        require_pointwise(reward, "the copies of one image would be its group")
        if compared := sorted(reward.needs & {"lq", "hr"}):
            raise ValueError(
                f"reward {reward.name!r} compares with {compared[0]}, on which a shifted copy no longer lies; wrap the "
                "terms that need the image alone, and add the others in a CompositeReward"
            )
        self.reward = reward
        self.copies = copies
        self.name = f"{reward.name}-robust{copies}"
        self.score_range = reward.score_range
        self.needs = reward.needs
        self.deterministic = reward.deterministic

    @property
    def differentiable(self) -> bool:  # type: ignore[override] # no value to assign: it follows from the wrapped reward
        """As for the wrapped reward."""
        return self.reward.differentiable

    @property
    def fingerprint(self) -> str:
        """Covers the wrapped reward and everything about the copies."""
        how = (self.copies, SHIFT_PX, ZOOM, NOISE, QUALITY)
        return state_digest("robust", how, fingerprint_of(self.reward), *added_by_subclass(self, RobustReward))

    @property
    def identity(self) -> dict[str, object]:
        """The number of copies, and the identity of the wrapped reward."""
        return {"name": self.name, "copies": self.copies, "reward": identity_of(self.reward)}

    @canonical
    def __call__(
        self, images: ImageSources, lq: ImageSources | None = None, hr: ImageSources | None = None,
        prompts: Sequence[str] | None = None, *, grad: bool = False,
    ) -> Scores:  # fmt: skip
        """Return the means; `std` is the standard deviation over the copies of an image (0 for one copy).

        An image is not valid if it cannot be read or if any of its copies cannot be measured. `info`: `errors`, and
        `copies` with the values of the copies of each image. grad=True keeps the graph of tensor images; each value
        depends on its own image only. Raises ValueError if there can be no graph, or for fewer prompts than images.
        """
        sources = split_images(images)
        if grad:
            require_gradient(sources)
        if prompts is not None and len(prompts) != len(sources):
            raise ValueError(f"prompts holds {len(prompts)} for {len(sources)} images: pass one per image")
        results = [self._one(source, None if prompts is None else prompts[k], grad) for k, source in enumerate(sources)]
        home = next((mean.device for mean, _, _, error in results if error is None), torch.device("cpu"))
        value = torch.stack([mean.to(home) for mean, *_ in results]) if results else torch.zeros(0)
        std = torch.stack([spread.to(home) for _, spread, *_ in results]) if results else torch.zeros(0)
        errors = tuple(error for *_, error in results)
        copies = [deviations for _, _, deviations, _ in results]
        return Scores(value=value, valid=~value.detach().isnan(), std=std, errors=errors, info={"copies": copies})

    def _one(
        self, source: ImageSource, prompt: str | None, grad: bool
    ) -> tuple[Tensor, Tensor, list[float], str | None]:
        """Return mean, standard deviation, the values of the copies, and the error."""
        nan = torch.tensor(float("nan"))
        try:
            image = load_image(source)
        except ImageError as error:
            return nan, nan, [], str(error)
        pixels = image.detach().cpu().contiguous().numpy().tobytes()
        seed = int.from_bytes(hashlib.sha256(pixels).digest()[:8], "big")
        rng = np.random.default_rng(seed)
        copies = [unseen_copy(image, rng) for _ in range(self.copies)]
        scores = ask(self.reward, copies, prompts=None if prompt is None else [prompt] * self.copies, grad=grad)
        copy_values = scores.value.detach().tolist()
        if not bool(scores.valid.all()):
            messages = [error for error in scores.errors if error]
            return (
                nan,
                nan,
                copy_values,
                f"{self.reward.name}: {messages[0] if messages else 'a copy could not be measured'}",
            )
        return scores.value.mean(), scores.value.detach().std(correction=0), copy_values, None
