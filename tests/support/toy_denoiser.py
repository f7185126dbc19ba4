"""A denoiser of one linear layer, for losses that a test can write out: nothing in it but what stands here.

The network says W x + time / 1000 + 0.3 lq, with W = base + (alpha / rank) B A of the active adapter.
"""

import contextlib
from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler
from torch import nn

from restoration.tuning.config import TuneConfig
from restoration.tuning.context import Tuning
from restoration.tuning.data import Example
from restoration.tuning.denoisers.base import Condition
from restoration.tuning.lora import OLD, POLICY, add_lora, weights_of
from restoration.tuning.sampler.transitions import Schedule
from zoomiqa_reward.rewards.metric import MetricReward

SHAPE = (3, 4, 4)
RANK, ALPHA = 2, 4
SIZE = 48


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(SIZE, SIZE, bias=False)

    def forward(self, x):
        return self.layer(x.flatten(1)).reshape(x.shape)


class ToyDenoiser:
    """See `restoration.tuning.denoisers.base.Denoiser`. An image is 0.5 + 0.1 x0."""

    module_name, lora_targets, scale, patch_px = "unet", ("layer",), 1, 1

    def __init__(self, adapters=(POLICY,), seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.pipeline, self.module = None, OneLayer().requires_grad_(False)
        self.module.layer.weight.data = 0.2 * torch.randn(SIZE, SIZE, generator=generator)
        self.schedule = Schedule(DDIMScheduler(100, prediction_type="v_prediction", clip_sample=False))
        add_lora(self, RANK, ALPHA, adapters)
        for name in adapters:  # policy, old and base all differ
            self.move(generator, name)

    def move(self, generator, name=POLICY, size=0.1):
        for part in weights_of(self.module, name).values():
            part.data += size * torch.randn(part.shape, generator=generator)

    def encode(self, lq, prompts, generators):
        return Condition(lq=lq)

    def path(self, num_steps):
        return self.schedule.path(num_steps)

    def noise_shape(self, condition):
        return SHAPE

    def begin(self, noise, condition, path):
        return noise

    def predict(self, x_t, time, condition):
        return self.module(x_t) + torch.as_tensor(time).reshape(-1, 1, 1, 1) / 1000 + 0.3 * condition.lq

    def decode(self, x0, condition):
        return 0.5 + 0.1 * x0

    def encode_target(self, images, condition):
        return 10 * (images - 0.5)


def weight_parts(denoiser, name=POLICY):
    """An adapter's (A, B), as leaves of a graph of the test's own."""
    found = weights_of(denoiser.module, name)
    return [next(part for key, part in found.items() if f".lora_{which}." in key).detach().clone().requires_grad_()
            for which in "AB"]  # fmt: skip


def said(denoiser, x, time, lq, parts=None):
    """What the network says with adapter weights (A, B), or without any."""
    weight = denoiser.module.layer.get_base_layer().weight
    if parts is not None:
        weight = weight + ALPHA / RANK * parts[1] @ parts[0]
    return (x.flatten(1) @ weight.T).reshape(x.shape) + torch.as_tensor(time).reshape(-1, 1, 1, 1) / 1000 + 0.3 * lq


def loudness(image):
    """The reward: the mean square, so that its slope depends on the image."""
    return image.square().mean()


def toy_tuning(folder, adapters=(POLICY,), count=2, **changes):
    """A run on `count` images, nothing of which is done yet."""
    generator = torch.Generator().manual_seed(5)
    fields = {"images_per_round": count, "num_samples": 4, "rows_at_once": 4, "steps": 4, "crop_px": None,
              "max_grad_norm": 0.0, "ema_decay": 0.0}  # fmt: skip
    images = [
        Example(name=str(k), lq=(k + 1) / count * lq, hr=torch.rand(SHAPE, generator=generator))
        for k, lq in enumerate(torch.rand(count, *SHAPE, generator=generator))
    ]
    return Tuning(
        denoiser=ToyDenoiser(adapters), reward=MetricReward(loudness, "loudness", True, (0, 1), differentiable=True),
        examples=images, config=TuneConfig(**(fields | changes)), folder=folder, device=torch.device("cpu"),
        share=SimpleNamespace(scoring=contextlib.nullcontext), autocast=contextlib.nullcontext,
    )  # fmt: skip


BOTH = (POLICY, OLD)
