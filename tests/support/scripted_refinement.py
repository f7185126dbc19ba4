"""Refinement with a scripted model that looks, a reward that knows the target, and what makes two runs the same."""

import atexit
import functools
import shutil
import tempfile

import torch
from tiny import make_image, make_tiny_checkpoint

from restoration.refinement import refine
from zoomiqa_reward.model.checkpoint import load_checkpoint
from zoomiqa_reward.model.generate import Completion, Sampling
from zoomiqa_reward.model.ratings import Ratings
from zoomiqa_reward.model.reason import assess_images
from zoomiqa_reward.rewards.metric import MetricReward

LQ = make_image(0, 80, 96)
TARGET = LQ.repeat_interleave(2, 1).repeat_interleave(2, 2)


@functools.cache
def scripted_checkpoint():
    """Return a tiny checkpoint, for its tokenizer and template: what it answers is scripted."""
    folder = tempfile.mkdtemp(prefix="tiny-scripted-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return load_checkpoint(make_tiny_checkpoint(folder), device="cpu")


class Scripted:
    """A model whose answers are written by the test and read by the real protocol; rates by closeness to TARGET."""

    name = fingerprint = "scripted"

    def __init__(self, *answers):
        self.answers, self.looked = list(answers), []

    @property
    def checkpoint(self):
        return scripted_checkpoint()

    @property
    def protocol(self):
        return self.checkpoint.protocol

    def assess(self, images, strict=False):
        assert strict
        self.looked += [tuple(image.shape) for image in images]
        texts = list(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

        def write(checkpoint, rows, sampling):
            return [Completion(text=texts.pop(0), is_truncated=False) for _ in rows]

        [[found]] = assess_images(self.checkpoint, images, sampling=Sampling(), strict=True, write=write)
        return [found]

    def rate(self, images, mode, strict, question=None, batch_size=8):
        mean = torch.tensor([1 + 4 * near_target(image) for image in images])
        return Ratings(value=mean, std=torch.zeros_like(mean), valid=mean > 0, std_kind="token")


def answer(bbox, tool="crop", better="More detail.", avoid="Noise.", rating=2.0):
    """Both rounds' texts; a second round that says the same of the crop."""
    words = f"Directions for Improvement: {better} Issues to Avoid: {avoid}"
    first = f'<think>{words}</think><answer>{{"bbox_2d": {bbox}, "rating": {rating}, "tool": "{tool}"}}</answer>'
    again = f'<think>{words}</think><answer>{{"bbox_2d": [0, 0, 0, 0], "rating": {rating}, "tool": "final"}}</answer>'
    return first, again


ASKS = answer([0.25, 0.25, 0.5, 0.5])
CONTENT = answer([0, 0, 0, 0], tool="final")


def near_target(image):
    return float(1 - (image - TARGET).abs().mean())


def nearness(**options):
    return MetricReward(near_target, **({"name": "near", "higher_is_better": True, "score_range": (0, 1)} | options))


def grainy(image, seed):
    """Twice as large, with grain whose strength and place the seed fixes."""
    generator = torch.Generator().manual_seed(seed)
    large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    strength = 0.05 + 0.2 * torch.rand(1, generator=generator)
    return (large + strength * torch.randn(large.shape, generator=generator)).clamp(0, 1)


def run(restorer=grainy, reward=None, iqa=None, image=LQ, **options):
    options = {"min_gain": 0.0, "lr_consistency_slack_db": 1.0, "progress": False, "rounds": 2} | options
    return refine(restorer, image, reward or nearness(), assessor=iqa or Scripted(ASKS), **options)


def summary(result):
    return [
        (one.number, one.zoom_request, one.region, one.prompt, one.negative_prompt, one.attempts, one.reward,
         one.lr_consistency, one.accepted, one.reason, one.stop, one.pixels)
        for one in result.history
    ]  # fmt: skip


def same(left, right):
    return repr(summary(left)) == repr(summary(right)) and left.stopped == right.stopped  # repr: NaN equals NaN
