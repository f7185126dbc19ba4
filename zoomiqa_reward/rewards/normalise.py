"""Rewards made comparable within a group, that is among the restorations of one low-quality image, before they add up.

Without it the reward with the largest spread takes all of the advantage. Groups are told apart by the pixels of the
low-quality image and the prompt: by the prompt alone, different images that share a caption would be one group.
Every function leaves NaN where there was no measurement, and takes its statistics from the others. An infinitely good
value, such as the PSNR of equal images, becomes the best of its group by `with_finite_best` before.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoomiqa_reward.images.loading import ImageSource, ImageSources, hash_pixels, load_image, split_images
from zoomiqa_reward.runs.digest import digest

__all__ = ["METHODS", "find_groups", "group_index", "group_keys", "hash_pixels", "normalised", "variance_shares"]

METHODS = ("z", "minmax", "quantile", "raw")
FLAT = 1e-6
"""A group whose spread is not above this (times its mean, if above 1) is tied: dividing would amplify noise."""


def group_keys(lq: Sequence[ImageSource], prompts: Sequence[str] | None = None) -> list[str]:
    """Return for each low-quality image a text that is equal where its pixels and its prompt are.

    Raises ImageError for an image that cannot be read, ValueError where prompts are not as many.
    """
    if prompts is not None and len(prompts) != len(lq):
        raise ValueError(f"prompts holds {len(prompts)} for {len(lq)} low-quality images: pass one per image")
    texts = [""] * len(lq) if prompts is None else prompts
    return [digest(f"{hash_pixels(load_image(image))} {text}") for image, text in zip(lq, texts, strict=True)]


def group_index(groups: Sequence[Hashable] | Tensor) -> Tensor:
    """Return int64 [batch]: the number of each one's group, counted from 0 as they first appear.

    groups: [batch], or one hashable per image; tensors without dimensions count by their value. Raises ValueError for
    others.

    >>> group_index(["b", "a", "b"])
    tensor([0, 1, 0])
    """
    items: list[Any] = [item.tolist() if isinstance(item, Tensor) else item for item in groups]
    numbers: dict[Hashable, int] = {}
    try:
        return torch.tensor([numbers.setdefault(item, len(numbers)) for item in items], dtype=torch.long)
    except TypeError as error:
        raise ValueError(f"groups: give one number or text per image, equal within a group ({error})") from error


def find_groups(
    name: str, count: int, lq: ImageSources | None, prompts: Sequence[str] | None,
    groups: Sequence[Hashable] | Tensor | None,
) -> Tensor:  # fmt: skip
    """Return int64 [count]: the group of each image, from `groups`, else from the pixels of `lq` and the prompts.

    name: of the reward, for messages. Raises ValueError if neither is given, or if they are not as many as the images.
    """
    if groups is None:
        if lq is None:
            raise ValueError(
                f"reward {name!r} compares images within groups: give lq= (images of equal lq and prompt are a group) "
                "or groups="
            )
        groups = group_keys(split_images(lq), prompts)
    if len(groups) != count:
        raise ValueError(f"groups (or lq) holds {len(groups)} for {count} images: pass one per image")
    return group_index(groups)


def normalised(values: Tensor, groups: Tensor, method: str = "z") -> Tensor:
    """Return the values [batch] normalised within their groups (int64 [batch], as `group_index` gives them).

    z: (x - mean) / population standard deviation; minmax: (x - min) / (max - min); quantile: the share of the group
    below x, ties and x itself counted half, so within (0, 1); raw: as they are. A tied group, and a group of one,
    gives 0 for z, 0.5 for minmax and quantile. NaN and infinity are no measurements: NaN comes out.

    The graph of `values` is kept, except for quantile, which has steps. Statistics are taken as constants: with their
    gradient, the z-values of a group would have a sum that nothing can change. So each result depends on its own
    value, with slope 1 / standard deviation or 1 / range, 0 in a tied group.
    Raises ValueError for another method or shapes that differ.

    >>> normalised(torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 0, 1]))
    tensor([-1.,  1.,  0.])
    """
    if method not in METHODS:
        raise ValueError(f"normalise={method!r}: must be one of {', '.join(METHODS)}")
    if values.ndim != 1 or values.shape != groups.shape:
        raise ValueError(f"values {tuple(values.shape)} and groups {tuple(groups.shape)}: both must be [batch]")
    detached = values.detach()
    measured = torch.isfinite(detached)
    values = torch.where(measured, values, torch.full_like(detached, math.nan))
    if method == "raw":
        return values
    exact = detached.double()
    offset, scale, quantile = torch.zeros_like(exact), torch.zeros_like(exact), torch.full_like(exact, math.nan)
    for number in sorted(set(groups.tolist())):
        members = (groups.to(measured.device) == number) & measured
        if not bool(members.any()):
            continue
        group_values = exact[members]
        if method == "quantile":
            below = (group_values[:, None] > group_values[None]).double() + 0.5 * (
                group_values[:, None] == group_values[None]
            ).double()
            quantile[members] = below.mean(dim=1)
            continue
        spread = group_values.std(correction=0) if method == "z" else group_values.max() - group_values.min()
        offset[members] = group_values.mean() if method == "z" else group_values.min()
        if spread > FLAT * max(1.0, abs(float(group_values.mean()))):
            scale[members] = 1 / spread
    if method == "quantile":
        return quantile.to(values.dtype)
    scaled = (values - offset.to(values.dtype)) * scale.to(values.dtype)
    return scaled + 0.5 * (scale == 0) if method == "minmax" else scaled


def with_finite_bests(values: Tensor, groups: Tensor) -> Tensor:
    """Return the values [batch] with plus infinity as a number, each group's as `with_finite_best` says. No graph."""
    detached = values.detach()
    if not bool((detached == math.inf).any()):
        return values
    result = detached.clone()
    for number in sorted(set(groups.tolist())):
        members = groups.to(result.device) == number
        result[members] = with_finite_best(result[members])
    return torch.where(detached == math.inf, result, values)


def with_finite_best(group_values: Tensor) -> Tensor:
    """Return a group's values with plus infinity as a number: above the best finite value by the group's range.

    By at least 5 % of that best value, and always above it. Statistics of infinity would be NaN for the whole group.

    >>> with_finite_best(torch.tensor([20.0, math.inf, 30.0]))
    tensor([20., 40., 30.])
    """
    is_perfect = group_values == math.inf
    if not bool(is_perfect.any()):
        return group_values
    finite = group_values[torch.isfinite(group_values)]
    if not len(finite):
        return torch.where(is_perfect, torch.zeros_like(group_values), group_values)
    best = float(finite.max())
    step = max(best - float(finite.min()), 0.05 * abs(best), 1e-3)
    return torch.where(is_perfect, torch.full_like(group_values, best + step), group_values)


def variance_shares(parts: Tensor, groups: Tensor) -> list[float]:
    """Return each part's share of the variance of their sum, within the groups; the shares sum to 1.

    parts: [terms, batch], weighted and normalised. share_k = sum_i a_ki A_i / sum_i A_i^2, where a_ki is part k of
    image i less its mean over i's group, and A_i = sum_k a_ki, the advantage before scaling: the covariance of a part
    with the sum over the variance of the sum. A part that pulls against the others has a negative share. Images where
    any part is NaN are left out. All NaN where the sum does not vary within any group: there is nothing to share.

    >>> variance_shares(torch.tensor([[0.0, 3.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    [0.75, 0.25]
    """
    parts = parts.detach().double().cpu()
    groups = groups.cpu()
    kept = torch.isfinite(parts).all(dim=0)
    parts, groups = parts[:, kept], groups[kept]
    centred = torch.zeros_like(parts)
    for number in sorted(set(groups.tolist())):
        members = groups == number
        centred[:, members] = parts[:, members] - parts[:, members].mean(dim=1, keepdim=True)
    total = centred.sum(dim=0)
    variance = float(total.square().sum())
    largest = max(1.0, float(parts.abs().max())) if parts.numel() else 1.0
    if variance <= parts.shape[1] * (FLAT * largest) ** 2:
        return [math.nan] * parts.shape[0]
    return [float((deviations * total).sum()) / variance for deviations in centred]
