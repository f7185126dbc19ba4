"""How the scales of one image combine: weights chosen on held-out photographs, never on opinion scores.

Three groups count alike: photographs at their own size; soft ones enlarged two to three times, as 4K images are,
with the damage enlarged too; and candidates of one low-quality image (every interpolation at x2 to x8 of a soft
photograph), which must be ranked among themselves. An image's label is the mean of its pseudo-MOS at full, half and
quarter size, because people look from more than one distance. All mixtures on a grid are tried; ties go to the more
even one.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from train_iqa.nano.degradations import Array, degrade, resize, sample_steps
from train_iqa.nano.labels import LabelScale, pseudo_mos
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images.filters import resize_bicubic
from zoomiqa_reward.images.loading import load_image
from zoomiqa_reward.protocol import Protocol, ViewPolicy
from zoomiqa_reward.runs.json_lines import plain, write_json
from zoomiqa_reward.runs.progress import progress

ENLARGEMENTS = (1.0, 2.4)
PER_PHOTOGRAPH = 4
CANDIDATE_PHOTOGRAPHS = 6
INTERPOLATIONS = (("nearest", "nearest"), ("bicubic", "bilinear"), ("bicubic", "bicubic"), ("bicubic", "lanczos"))
"""Kernels down and up."""
FACTORS = (2, 3, 4, 8)


def _chw(image: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def multi_scale_label(image: Tensor, reference: Tensor, scale: LabelScale) -> float:
    """Return the mean pseudo-MOS of a CHW pair at full, half and quarter size (sizes below 96 px left out)."""
    values = []
    for share in (1.0, 0.5, 0.25):
        size = [max(1, round(side * share)) for side in image.shape[1:]]
        if min(size) < 96 and share < 1:
            continue
        pair = [resize_bicubic(x, *size) for x in (image, reference)]
        values.append(float(pseudo_mos([pair[0]], [pair[1]], scale)[0]))
    return float(np.mean(values))


def validation_images(
    paths: list[Path], scale: LabelScale, enlargement: float, seed: int
) -> tuple[list[Tensor], NDArray[np.float64]]:
    """Return degraded images (CHW) of photographs enlarged by `enlargement`, and their labels."""
    rng = np.random.default_rng([seed, round(enlargement * 10)])
    images, labels = [], []
    for path in progress(paths, len(paths), f"validation images x{enlargement:g}"):
        pixels = np.ascontiguousarray(load_image(path).permute(1, 2, 0))
        width, height = pixels.shape[1], pixels.shape[0]
        reference = pixels
        if enlargement != 1:
            reference = resize(pixels, round(width * enlargement), round(height * enlargement), "bicubic")
        for _ in range(PER_PHOTOGRAPH):
            steps = sample_steps(rng)
            if enlargement == 1:
                image, _ = degrade(pixels, steps, rng)
            elif rng.random() < 0.5:  # damage of the enlarged size: done before enlarging
                image = resize(degrade(pixels, steps, rng)[0], reference.shape[1], reference.shape[0], "bicubic")
            else:
                image, _ = degrade(reference, steps, rng)
            images.append(_chw(image))
            labels.append(multi_scale_label(images[-1], _chw(reference), scale))
    return images, np.array(labels)


def candidate_images(
    paths: list[Path], scale: LabelScale, enlargement: float
) -> tuple[list[Tensor], NDArray[np.float64], NDArray[np.int64]]:
    """Return interpolated images (CHW) of enlarged photographs, their labels, and which photograph each is of."""
    images, labels, owners = [], [], []
    for owner, path in enumerate(progress(paths, len(paths), "candidates")):
        pixels = np.ascontiguousarray(load_image(path).permute(1, 2, 0))
        width, height = round(pixels.shape[1] * enlargement), round(pixels.shape[0] * enlargement)
        reference = resize(pixels, width, height, "bicubic")
        for down, up in INTERPOLATIONS:
            for factor in FACTORS:
                small = resize(reference, round(width / factor), round(height / factor), down)
                images.append(_chw(resize(small, width, height, up)))
                labels.append(multi_scale_label(images[-1], _chw(reference), scale))
                owners.append(owner)
    return images, np.array(labels), np.array(owners)


def mean_srcc(ratings: NDArray[np.float64], labels: NDArray[np.float64], owners: NDArray[np.int64]) -> float:
    """Return the SRCC within each owner's images, mean over owners; NaN without images.

    >>> mean_srcc(np.array([1.0, 2, 9, 8]), np.array([1.0, 2, 3, 4]), np.array([0, 0, 1, 1]))
    0.0
    """
    if not len(owners):
        return float("nan")
    return float(np.mean([spearmanr(ratings[owners == k], labels[owners == k]).statistic for k in np.unique(owners)]))


def choose_view_weights(
    checkpoint: Path, paths: list[Path], scale: LabelScale, folder: Path, *, seed: int, limit: int = 30
) -> ViewPolicy:
    """Return the checkpoint's view policy with the best weights; writes what was tried to `views.json`."""
    protocol = Protocol.load(checkpoint)
    scales = protocol.views.scales
    groups = []
    for enlargement in ENLARGEMENTS:
        images, labels = validation_images(paths[:limit], scale, enlargement, seed)
        groups.append((images, labels, np.zeros(len(labels), dtype=np.int64)))
    groups.append(candidate_images(paths[:limit][-CANDIDATE_PHOTOGRAPHS:], scale, ENLARGEMENTS[-1]))
    read: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]] = []
    unread = 0
    for images, labels, owners in groups:
        columns = []
        for share in (*scales, None):  # None: the whole image alone
            views = replace(
                protocol.views,
                scales=(share,) if share else (1.0,),
                weights=(1.0,) if share else (0.0,),
                whole_weight=0.0 if share else 1.0,
            )
            iqa = ZoomIQA.from_pretrained(str(checkpoint), protocol=replace(protocol, views=views))
            seen = progress(images, len(images), f"scale {share}")
            columns.append([float(iqa.rate([image], strict=True).mean[0]) for image in seen])
        # An image that some scale could not rate says nothing about their mixture.
        ratings = np.array(columns)
        good = np.isfinite(ratings).all(axis=0)
        unread += int((~good).sum())
        read.append((ratings[:, good], labels[good], owners[good]))
    tried = []
    for parts in itertools.product(range(11), repeat=len(scales) + 1):
        if sum(parts) != 10:
            continue
        weights = np.array(parts) / 10
        srcc = [mean_srcc(weights @ ratings, labels, owners) for ratings, labels, owners in read]
        tried.append((float(np.mean(srcc)), -float((weights**2).sum()), weights.tolist(), srcc))
    tried.sort(key=lambda row: (round(row[0], 3), row[1]), reverse=True)
    best = tried[0]
    report = {
        "scales": [*scales, "whole"],
        "groups": [*(f"enlarged x{e:g}" for e in ENLARGEMENTS), "candidates, within a photograph"],
        "unread_images": unread,
        "single": [[mean_srcc(column, labels, owners) for column in ratings] for ratings, labels, owners in read],
        "best": {"weights": best[2], "srcc": best[3]},
        "next": [{"weights": row[2], "srcc": row[3]} for row in tried[1:6]],
    }
    write_json(folder / "views.json", plain(report))
    return replace(protocol.views, weights=tuple(best[2][:-1]), whole_weight=best[2][-1])
