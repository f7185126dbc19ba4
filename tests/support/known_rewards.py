"""Rewards whose check has a known outcome, and the photographs that they are checked with."""

import math

import torch
from tiny import make_image

from zoomiqa_reward import MetricReward
from zoomiqa_reward.check import Photograph
from zoomiqa_reward.model.ratings import Scores

LAPLACIAN = "zoomiqa_reward.check.baselines:laplacian"


def photo(name="a", seed=0, height=80, width=72):
    """Detail on several scales, kept off black and white."""
    return Photograph(name=name, image=0.1 + 0.8 * make_image(seed, height, width))


def wrapped(fn, name="r", score_range=(-10, 10), **options):
    return MetricReward(fn, name, True, score_range, **options)


def faithful(**options):
    """Better the closer to the photograph: always right, and smooth."""
    return wrapped(lambda image, hr: -(image - hr).square().mean(), "faithful", needs=("hr",), **options)


def verdicts(report):
    return {one.use: one.verdict for one in report.verdicts}


class Cut:
    """A reward of somebody else's that has no `grad` argument, says that it is differentiable, and is not."""

    name, fingerprint, needs = "cut", "0", frozenset()
    score_range = (0.0, 1.0)
    higher_is_better = differentiable = deterministic = True

    def __call__(self, images, lq=None, hr=None, prompts=None):
        value = torch.stack([image.detach().mean() for image in images])
        return Scores(value=value, valid=torch.ones(len(images), dtype=torch.bool), std=value * math.nan)
