"""Which images of a data set are for training, validation and test: its authors' parts, or a division by reference.

Two distortions of one photograph in two parts would let a model recognise the photograph. So where there is no official
split, whole references are drawn, seeded; the draw does not depend on the order of the images.
"""

from collections.abc import Collection, Sequence

import numpy as np

from train_iqa.data.record import IqaDataset, LabelledImage, group_name

SHARES = {"training": 0.6, "validation": 0.2, "test": 0.2}
PARTS = ("standard", "all", *SHARES)


def select(dataset: IqaDataset, part: str = "standard", *, seed: int = 0) -> tuple[LabelledImage, ...]:
    """Return the images of a part, in the data set's order.

    all: every image. standard: the official test part where there is one, else every image, as works that train on
    another set report it. training, validation, test: official, else by reference (`split_by_reference` and `seed`).
    The commands leave `seed` at 0 whatever the seed of a run is, so that what one stage trains on is no other's test.
    Raises ValueError: unknown part, a part without images, too few references.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r}: must be one of {', '.join(PARTS)}")
    if part == "all" or (part == "standard" and not dataset.has_official_split):
        chosen = dataset.images
    elif dataset.has_official_split:
        wanted = "test" if part == "standard" else part
        chosen = tuple(image for image in dataset.images if image.split == wanted)
    else:
        chosen = split_by_reference(dataset.images, seed=seed, groups=dataset.groups)[part]
    if not chosen:
        raise ValueError(f"{dataset.name}: part {part!r} holds no images")
    return chosen


def split_by_reference(
    images: Sequence[LabelledImage], *, shares: dict[str, float] | None = None, seed: int = 0,
    groups: Collection[str] = (),
) -> dict[str, tuple[LabelledImage, ...]]:  # fmt: skip
    """Return part -> images such that no reference is in two parts; an image without reference is its own.

    `shares` (0.6, 0.2, 0.2 by default) are of the references, rounded, and add up to 1. Raises ValueError where they do
    not, and where a part would stay empty.

    groups: `IqaDataset.groups`; without them, an image that is left out changes the parts of all others.
    """
    shares = SHARES if shares is None else shares
    if any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares {shares}: must be positive and add up to 1")
    names = sorted({*groups, *map(group_of, images)})
    order = np.random.default_rng(seed).permutation(len(names))
    ends = np.rint(np.cumsum([0.0, *shares.values()]) * len(names)).astype(int)
    part_of = {
        names[index]: part
        for part, start, end in zip(shares, ends[:-1], ends[1:], strict=True)
        for index in order[start:end]
    }
    splits = {part: tuple(image for image in images if part_of[group_of(image)] == part) for part in shares}
    if not all(splits.values()):
        raise ValueError(f"{len(names)} references are too few for the shares {shares}")
    return splits


def group_of(image: LabelledImage) -> str:
    """Return what must not be torn apart, see `group_name`."""
    return group_name(image.id, image.reference)
