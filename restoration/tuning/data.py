"""Low-quality images of a run, with ground truth if there is one, and the crops of each round."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from zoomiqa_reward.images.loading import ImageSource, load_image

if TYPE_CHECKING:
    from restoration.evaluation.datasets import Dataset


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One image to restore; its pixels lie on the CPU and have no graph, wherever they come from."""

    name: str
    lq: Tensor
    """CHW in [0, 1]."""
    hr: Tensor | None = None
    """CHW in [0, 1], a whole number of times as large; None if there is none."""
    prompt: str = ""

    def __post_init__(self) -> None:
        for name in ("lq", "hr"):
            if (image := getattr(self, name)) is not None:
                object.__setattr__(self, name, image.detach().cpu())
        if self.hr is None:
            return
        times = self.hr.shape[1] // max(1, self.lq.shape[1])
        if times < 1 or self.hr.shape[1:] != (self.lq.shape[1] * times, self.lq.shape[2] * times):
            raise ValueError(
                f"{self.name}: hr {tuple(self.hr.shape)} must be a whole number of times as large as lq "
                f"{tuple(self.lq.shape)}"
            )


def load_examples(
    images: "Dataset |  Sequence[ImageSource | tuple[ImageSource, ImageSource | None]]",
    *,
    prompts: Sequence[str] | None = None,
) -> list[Example]:
    """Return examples from a `Dataset` of `restoration.evaluation.datasets`, a list of images, or of (lq, hr) pairs.

    An image is anything that `load_image` takes; one path is a list of one. Raises ImageError; ValueError if the
    number of prompts differs.
    """
    if hasattr(images, "items") and hasattr(images, "load"):
        pairs = [(item.name, images.load(index)) for index, item in enumerate(images.items)]
        examples = [Example(name=name, lq=pair.lq, hr=pair.hr) for name, pair in pairs]
    else:
        examples = []
        for index, given in enumerate([images] if isinstance(images, str | os.PathLike) else images):
            lq, hr = given if isinstance(given, tuple) else (given, None)
            examples.append(Example(name=str(index), lq=load_image(lq), hr=None if hr is None else load_image(hr)))
    if prompts is None:
        return examples
    if len(prompts) != len(examples):
        raise ValueError(f"prompts holds {len(prompts)} for {len(examples)} images")
    return [replace(example, prompt=text) for example, text in zip(examples, prompts, strict=True)]


def crop(example: Example, side: int | None, rng: np.random.Generator | None = None) -> Example:
    """Return the example cut to `side` px of its LR image, its ground truth likewise; smaller sides stay whole.

    rng: where; without it from the middle.
    """
    if side is None:
        return example
    height, width = example.lq.shape[1:]
    room = [max(0, length - side) for length in (height, width)]
    top, left = (length // 2 if rng is None else int(rng.integers(0, length + 1)) for length in room)
    lq = example.lq[:, top : top + side, left : left + side].contiguous()
    if example.hr is None:
        return replace(example, lq=lq)
    times = example.hr.shape[1] // height
    down, right = (times * length for length in lq.shape[1:])
    hr = example.hr[:, times * top : times * top + down, times * left : times * left + right]
    return replace(example, lq=lq, hr=hr.contiguous())


def pick_crops(examples: Sequence[Example], count: int, side: int | None, seed: Sequence[int]) -> list[Example]:
    """Return `count` crops of different images (as far as there are enough), the same for the same seed."""
    rng = np.random.default_rng(list(seed))
    order = [int(k) for _ in range(-(-count // len(examples))) for k in rng.permutation(len(examples))]
    return [crop(examples[k], side, rng) for k in order[:count]]
