"""How the embedded restorer's denoiser starts, what it is told, and what moves it.

Sources: DDIM (Song et al. 2021) with zero terminal SNR (Lin et al. 2024), x0-prediction; Muon (Jordan et al. 2024).
Deviations: noise of any strength at the first time, and rows whose deviation from the mean is scaled as their noise is
("tempered"), since the pipeline samples at temperatures below 1 and a denoiser that never saw them is out of its depth.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from restoration.nano.pipeline import RESIDUAL_CHANNELS, NanoSRPipeline, to_residual

SIGMA_FLOOR = 0.2
"""About that of the last of 8 steps: below it errors are weighed as if sigma were that large."""
LEAST_TIME = 30
FIRST_SHARE = 0.12
"""Of a batch: pure noise at the first time, where every sample begins; its strength says nothing, so it is any."""
TEMPERED_SHARE = 0.15
FIRST_STRENGTH = 1.1
GROUPS = 16
STRAIGHT = 0.8
SILU_SLOPE = 1.3
"""Of SiLU at 2, times what the last norm divides by."""


@torch.no_grad()
def start_straight(unet: Any) -> None:
    """Lay a straight way for the noisy residual: conv_in, last skip connection, conv_out.

    Of each group of the last GroupNorm three channels carry three of the 48 planes, in SiLU's linear range; one is
    constant, so that the norm keeps how large the residual is, which x0 needs to know. At the start the network says
    x0 = 0.8 x_t or so, which is right where there is little noise; where there is much it has to learn not to.
    A network with fewer than 5 channels per group has no room for it and starts at zero.
    """
    width = unet.config.block_out_channels[0]
    per = width // GROUPS
    if per < 5:
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
        return
    signal = [group * per + k for group in range(GROUPS) for k in range(3)]
    constant = [group * per + 3 for group in range(GROUPS)]
    unet.conv_in.weight[:, RESIDUAL_CHANNELS:] *= 3
    last = unet.up_blocks[-1].resnets[-1]
    skip = last.conv_shortcut.weight.shape[1] - width
    last.conv2.weight *= 0.3
    for plane, channel in enumerate(signal):
        unet.conv_in.weight[channel, :RESIDUAL_CHANNELS] *= 0.1
        unet.conv_in.weight[channel, plane, 1, 1] += 1
        last.conv_shortcut.weight[channel] *= 0.1
        last.conv_shortcut.weight[channel, skip + channel] += 1
    last.conv_shortcut.weight[constant] *= 0.1
    last.conv_shortcut.bias[constant] = 3.0
    unet.conv_norm_out.bias[signal] = 2.0
    unet.conv_out.weight *= 0.1
    for plane, channel in enumerate(signal):
        unet.conv_out.weight[plane, channel, 1, 1] += STRAIGHT * SILU_SLOPE
    probe = torch.cat([torch.randn(4, RESIDUAL_CHANNELS, 16, 16), torch.zeros(4, 3, 16, 16)], dim=1)
    unet.conv_out.bias -= unet(probe, 124).sample.mean(dim=(0, 2, 3))


def x0_loss(
    pipe: NanoSRPipeline, mean: NanoSRPipeline | None, hr: Tensor, lq: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return `loss` (x0's squared error over sigma's square, mean over rows) and its unweighed parts.

    `hr` (B, 3, 4 h, 4 w), `lq` (B, 3, h, w). `mean`: says the mean restoration for tempered rows; None: no such rows.
    Noise comes from `generator`, on the images' device.
    """
    count, device = len(hr), hr.device
    clean = to_residual(hr, lq, pipe.config.residual_std)
    first = max(1, round(count * FIRST_SHARE))
    tempered = 0 if mean is None else round(count * TEMPERED_SHARE)
    order = torch.randperm(count, device=device, generator=generator)  # windows come sorted by pose
    clean, lq, rest = clean[order], lq[order], count - first
    noise = torch.randn(clean.shape, device=device, generator=generator)
    strength = torch.rand((count, 1, 1, 1), device=device, generator=generator)
    last = pipe.scheduler.config.num_train_timesteps - 1
    # Times spread evenly over the batch: the loss of a batch varies less.
    spread = (torch.randperm(rest, device=device, generator=generator) + strength[:rest].flatten()) / max(rest, 1)
    times = torch.cat([(LEAST_TIME + spread * (last - LEAST_TIME)).long(), torch.full((first,), last, device=device)])
    if mean is not None and tempered:
        tempered_rows = slice(rest - tempered, rest)
        scaled = torch.rand((tempered, 1, 1, 1), device=device, generator=generator)
        centre = mean_residual(mean, lq[tempered_rows])
        clean[tempered_rows] = centre + scaled * (clean[tempered_rows] - centre)
        noise[tempered_rows] *= scaled
    noise[rest:] *= FIRST_STRENGTH * strength[rest:]
    bars = pipe.scheduler.alphas_cumprod.to(device)[times].view(-1, 1, 1, 1)
    predicted = pipe.unet(pipe.condition(lq, bars.sqrt() * clean + (1 - bars).sqrt() * noise), times).sample.float()
    errors = (predicted - clean).square().mean(dim=(1, 2, 3))
    weighed = errors / (1 - bars).flatten().clamp(min=SIGMA_FLOOR**2)
    return {"loss": weighed.mean(), "x0_first": errors[rest:].mean(), "x0_rest": errors[: rest - tempered].mean()}


@torch.no_grad()
def mean_residual(pipe: NanoSRPipeline, lq: Tensor) -> Tensor:
    """Return what the network says without any noise at the first time: the mean of what there could be."""
    last = pipe.scheduler.config.num_train_timesteps - 1
    nothing = torch.zeros((len(lq), RESIDUAL_CHANNELS, *lq.shape[-2:]), device=lq.device)
    return pipe.unet(pipe.condition(lq, nothing), last).sample.float()


class Optimizers:
    """Muon on the kernels of the blocks, seen as matrices (out, in x height x width); AdamW on everything else."""

    def __init__(self, unet: nn.Module, rate: float) -> None:
        """rate: Muon's peak; AdamW's is half of it."""
        named = dict(unet.named_parameters())
        self.kernels = [p for name, p in named.items() if p.ndim == 4 and "block" in name]
        inside = {id(p) for p in self.kernels}
        # The same storage under another shape: torch's Muon takes matrices alone.
        self.matrices = [nn.Parameter(p.detach().flatten(1)) for p in self.kernels]
        self.muon = torch.optim.Muon(
            self.matrices, lr=rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        others = [p for p in named.values() if id(p) not in inside]
        self.adam = torch.optim.AdamW(others, lr=rate / 2, betas=(0.9, 0.99), weight_decay=0.01)
        self.peaks: Sequence[tuple[torch.optim.Optimizer, float]] = ((self.muon, rate), (self.adam, rate / 2))

    def step(self, share: float) -> None:
        """Move by `share` of the peak rates, and forget the gradients."""
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for optimizer, peak in self.peaks:
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
        for kernel in self.kernels:
            kernel.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return both states."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def rate_share(step: int, done: float, *, warm_steps: int = 200) -> float:
    """Return the learning rate over its peak: warm-up by steps, flat until 30 % of the run, cosine down to 1 %.

    >>> [round(rate_share(1000, done), 3) for done in (0.0, 0.3, 0.65, 1.0)]
    [1.0, 1.0, 0.505, 0.01]
    """
    late = 1.0 if done < 0.3 else 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.3) / 0.7)))
    return min(1.0, (step + 1) / warm_steps) * (0.01 + 0.99 * late)


def averaging(decay: float) -> Any:
    """Return the update of an `AveragedModel` that follows fast at first, then with `decay`."""

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - now)

    return update
